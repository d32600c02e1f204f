"""What can still be answered after it was taken, and to whom the answer goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.bus import answering
from muster.bus.answering import Answerable, Heard
from muster.bus.bus import Bus
from muster.bus.transports.memory import MemoryHub
from muster.core import limits
from muster.errors import UsageError

PLAIN = Answerable("id-1", "bob", 3, "", "thread", "trace")


def heard_of(*messages: tuple[str, str]) -> Heard:
    return Heard(Answerable(id_, sender, 0, "", id_, "") for id_, sender in messages)


def test_an_answer_goes_to_the_sender_and_is_one_hop_more() -> None:
    to, envelope = PLAIN.answer(16)
    assert to == "bob"
    assert envelope == {"causation_id": "id-1", "correlation_id": "thread", "hops": 4, "traceparent": "trace"}


def test_a_reply_goes_to_whoever_asked_and_always_gets_through() -> None:
    to, envelope = PLAIN._replace(reply_to="carol", hops=16).answer(16)
    assert to == "carol"
    assert envelope["priority"] == "control"
    assert (envelope["correlation_id"], envelope["causation_id"], envelope["hops"]) == ("id-1", "id-1", 16)


def test_the_newest_of_a_sender_is_found_or_the_one_that_is_named() -> None:
    heard = heard_of(("1", "bob"), ("2", "carol"), ("3", "bob"))
    assert heard.find("bob").id == "3"
    assert heard.find("carol").id == "2"
    assert heard.find("bob", "1").id == "1"
    for sender, message_id in (("dave", ""), ("bob", "2"), ("bob", "9")):
        with pytest.raises(UsageError, match="nothing to answer"):
            heard.find(sender, message_id)


async def test_only_the_newest_are_remembered_and_a_redelivered_one_is_new_again() -> None:
    hub = MemoryHub()
    for agent in ("alice", "bob"):
        hub.add_agent(agent)
    async with Bus(hub.transport("alice")) as alice, Bus(hub.transport("bob")) as bob:
        heard = Heard()
        for number in range(limits.HEARD_MAX):
            await alice.send("bob", number, message_id=f"m-{number}")
            delivery = await bob.receive(timeout_s=5)
            assert delivery is not None
            heard.note(delivery.message)
            if number == 0:
                first = delivery.message
            delivery.ack()
        heard.note(first)
        assert heard.find("alice").id == "m-0"
        await alice.send("bob", "one more", message_id="newest")
        delivery = await bob.receive(timeout_s=5)
        assert delivery is not None
        heard.note(delivery.message)
        delivery.ack()
        ids = [message.id for message in heard]
        assert len(ids) == limits.HEARD_MAX
        assert (ids[0], ids[-2:]) == ("m-2", ["m-0", "newest"])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    answering.save(tmp_path, heard_of(("1", "bob"), ("2", "carol")))
    assert [message.id for message in answering.load(tmp_path)] == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == [answering.FILE_NAME]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b'[["a"]]', b'[["i","s","x","","",""]]', b'{"a":1}', b"null", b"[null]", b"\xff"]
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / answering.FILE_NAME
    file.write_bytes(damage)
    file.chmod(0o600)
    assert list(answering.load(tmp_path)) == []
