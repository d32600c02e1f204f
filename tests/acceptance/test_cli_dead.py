"""`muster dead`: letters are listed, shown, given back and dropped, whatever is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.bus.transports.lanes import redrive

from .cli_world import a_world
from .quay import NASTY, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with a_world(tmp_path) as world:
        yield Desk(world)


def test_letters_are_listed_with_who_what_and_why_and_nothing_in_them_controls_the_terminal(desk: Desk) -> None:
    assert desk.dead("list") == (0, "no dead letters\n", "")
    (first, second) = desk.bury("one", {"n": 2}, type="job")
    rows = desk.listed()
    assert [row["id"] for row in rows] == [first, second]
    assert {key: rows[0][key] for key in ("agent", "from", "type", "attempts", "reason", "seq")} == {
        "agent": "desk", "from": "boat", "type": "job", "attempts": 1, "reason": NASTY, "seq": 1,
    }  # fmt: skip
    status, out, _ = desk.dead("list")
    assert (status, len(out.splitlines())) == (0, 3)
    assert "\x1b" not in out
    assert "\x07" not in out


def test_filters_choose(desk: Desk) -> None:
    desk.bury("a", type="job")
    desk.bury("b", type="note", agent="shelf")
    for words, agents in (
        (("--agent", "shelf"), ["shelf"]),
        (("--type", "job"), ["desk"]),
        (("--sender", "boat"), ["desk", "shelf"]),
        (("--sender", "desk"), []),
        (("--reason-contains", "AT ALL"), ["desk", "shelf"]),
        (("--reason-contains", "luck"), []),
        (("--older-than", "1h"), []),
        (("--older-than", "0"), ["desk", "shelf"]),
    ):
        assert [row["agent"] for row in desk.listed(*words)] == agents, words


def test_show_prints_the_body_as_data(desk: Desk) -> None:
    (letter_id,) = desk.bury("line\n\x1b[2Jgone")
    status, out, _ = desk.dead("show", letter_id)
    assert status == 0
    assert "line\n" in out
    assert "\x1b" not in out
    told = json.loads(desk.dead("show", letter_id, "--json")[1])
    assert (told["body"], told["from"], told["verified"]) == ("line\n\x1b[2Jgone", "boat", True)
    assert desk.dead("show", letter_id[:20])[0] == 0, "the beginning of an id is enough"


def test_a_redriven_letter_comes_back_as_the_message_it_was(desk: Desk) -> None:
    boat = desk.bus("boat")
    sent = boat.post("desk", {"n": 1}, type="job", message_id="order-7", correlation_id="c-1")
    boat.transport.close()
    reader = desk.bus()
    delivery = reader.receive_nowait()
    assert delivery is not None
    before = delivery.message
    delivery.dead_letter("no")
    reader.transport.close()
    status, out, err = desk.dead("redrive", "order-7", "--json")
    assert (status, [row["outcome"] for row in json.loads(out)]) == (0, ["redriven"]), err
    assert desk.listed() == []
    assert len(desk.on_their_way()) == 1

    reader = desk.bus()
    again = reader.receive_nowait()
    assert again is not None
    assert (again.body, again.sender, again.type, again.id, again.seq) == ({"n": 1}, "boat", "job", "order-7", sent.seq)
    assert (again.message.extras, again.created_ns) == (before.extras, before.created_ns)
    again.ack()
    reader.transport.close()
    assert desk.on_their_way() == []
    assert desk.bus().receive_nowait() is None


def test_a_living_recipient_is_woken(desk: Desk) -> None:
    desk.bury("again")
    reader = desk.bus()
    assert reader.receive_nowait() is None
    assert desk.dead("redrive", "--all")[:2] == (0, "1 redriven\n")
    delivery = reader.receive_nowait()  # looks at the bell, and at nothing else
    assert delivery is not None
    assert delivery.body == "again"
    reader.transport.close()


def test_a_letter_that_fails_again_is_dead_again_with_the_new_reason(desk: Desk) -> None:
    (letter_id,) = desk.bury("stubborn")
    desk.dead("redrive", letter_id)
    reader = desk.bus()
    delivery = reader.receive_nowait()
    assert delivery is not None
    delivery.dead_letter("still no good")
    reader.transport.close()
    assert [(row["id"], row["reason"]) for row in desk.listed()] == [(letter_id, "still no good")]
    assert desk.on_their_way() == []


def test_a_redriven_message_that_kills_its_reader_is_counted_and_dies_for_good(desk: Desk) -> None:
    (letter_id,) = desk.bury("poison")
    desk.dead("redrive", letter_id)
    deliveries = 0
    while True:
        reader = desk.bus()
        delivery = reader.receive_nowait()
        if delivery is None:
            break
        deliveries += 1
        assert delivery.attempt == deliveries
        reader.transport.close()  # as a death: neither finalised nor given back
    reader.transport.close()
    assert deliveries == reader.transport.attempts_max
    assert [row["id"] for row in desk.listed()] == [letter_id]


def test_a_letter_is_in_exactly_one_place_at_every_step(desk: Desk) -> None:
    (letter_id,) = desk.bury("once")

    def places() -> tuple[int, int]:
        return len(desk.letters()), len(desk.on_their_way())

    assert places() == (1, 0)
    desk.dead("redrive", letter_id)
    assert places() == (0, 1)
    assert desk.dead("redrive", letter_id)[0] == 2, "it is not dead any more"
    reader = desk.bus()
    delivery = reader.receive_nowait()
    assert delivery is not None
    assert places() == (0, 1)
    delivery.release()
    assert places() == (0, 1)
    again = reader.receive_nowait()
    assert again is not None
    assert again.attempt == 1, "a clean release counts no attempt"
    again.dead_letter("no")
    assert places() == (1, 0)
    reader.transport.close()


def test_a_letter_without_room_for_a_new_reason_keeps_the_old_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (letter_id,) = desk.bury("full")
    desk.dead("redrive", letter_id)
    reader = desk.bus()
    delivery = reader.receive_nowait()
    assert delivery is not None

    def no_room(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(redrive, "write_private", no_room)
    delivery.dead_letter("another reason")
    reader.transport.close()
    assert [(row["id"], row["reason"]) for row in desk.listed()] == [(letter_id, NASTY)]


def test_letters_that_cannot_be_read_are_listed_and_neither_used_nor_in_the_way(desk: Desk) -> None:
    (letter_id,) = desk.bury("fine")
    folder = desk.store / "agents/desk/inbox/dead"
    lane_id = "ab" * 16
    for seq, content in ((7, b""), (8, b"[1]\nx"), (9, b"\xff\xfe{"), (10, b'{"id": "x", "verified": true}\n')):
        path = folder / f"boat.{lane_id}.{seq}"
        path.write_bytes(content)
        path.chmod(0o600)
    (folder / f"boat.{lane_id}.11").symlink_to(desk.store / "keys/master")
    (folder / f"boat.{lane_id}.12").mkdir()
    assert len(desk.listed()) == 7
    status, out, _ = desk.dead("redrive", "--all", "--json")
    outcomes = {row["letter"].rpartition(".")[2]: row["outcome"] for row in json.loads(out)}
    assert status == 1
    assert outcomes == {"1": "redriven", **{str(seq): "refused" for seq in range(7, 13)}}
    reader = desk.bus()
    delivery = reader.receive_nowait()
    assert delivery is not None
    assert delivery.id == letter_id
    reader.transport.close()


def test_drop_removes_what_was_named_and_all_only_with_yes(desk: Desk) -> None:
    first, second, third = desk.bury("a", "b", "c")
    assert desk.dead("drop", second) == (0, "1 dropped\n", "")
    assert [row["id"] for row in desk.listed()] == [first, third]
    status, out, err = desk.dead("drop", "--all")
    assert (status, out) == (2, "")
    assert "2 dead letters" in err
    assert len(desk.letters()) == 2
    assert desk.dead("drop", "--all", "--yes") == (0, "2 dropped\n", "")
    assert desk.letters() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("redrive",), "--all"),
        (("redrive", "x", "--all"), "not both"),
        (("redrive", "nope"), "nope"),
        (("show", "nope"), "nope"),
        (("drop", "nope"), "nope"),
        (("list", "--agent", "nobody"), "nobody"),
        (("list", "--agent", "../desk"), "../desk"),
        (("list", "--older-than", "soon"), "soon"),
        (("lst",), "lst"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(desk: Desk, words: tuple[str, ...], said: str) -> None:
    desk.bury("a")
    status, out, err = desk.dead(*words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert len(desk.letters()) == 1


def test_a_forged_frame_is_never_delivered(desk: Desk) -> None:
    boat = desk.bus("boat")
    boat.post("desk", "honest")
    boat.transport.close()
    segment = next((desk.store / "agents/boat/outbox/desk").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    at = data.index(b"honest")
    data[at] ^= 1
    segment.write_bytes(data)
    reader = desk.bus()
    assert reader.receive_nowait() is None
    reader.transport.close()
    (row,) = desk.listed()
    assert row["from"] == "boat"
    status, out, _ = desk.dead("redrive", "--all")
    assert status == 1
    assert "signature" in out
    assert len(desk.letters()) == 1


def test_the_names_of_letters_on_their_way_are_part_of_the_format(desk: Desk) -> None:
    (_id,) = desk.bury("x")
    (letter,) = desk.letters()
    desk.dead("redrive", "--all")
    assert os.listdir(desk.store / "agents/desk/inbox/redrive") == [f"{letter.name}.0"]
