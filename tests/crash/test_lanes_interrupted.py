"""Lanes that are interrupted, wiped, begun anew or poisoned: nothing accepted is lost, and numbers mean one message each.

Deaths at every system call and every instruction: `test_system_call_points.py` and `test_instruction_points.py`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes import segment
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, load_master

BODY = b"x" * 900


def transport(store: Path, agent: str) -> LanesTransport:
    return LanesTransport(store, agent, Keyring.from_master(load_master(store), agent))


def fresh(tmp_path: Path, name: str) -> Path:
    store = create_store(tmp_path / name)
    add_agent(store, "alice")
    add_agent(store, "bob")
    return store


def drain(store: Path) -> list[int]:
    """Everything that can still be received, finalised; with the order checked."""
    bus = Bus(transport(store, "bob"))
    seen: list[int] = []
    last_seq = 0
    while (delivery := bus.receive_nowait()) is not None:
        assert delivery.body[1] == BODY
        assert delivery.seq > last_seq
        last_seq = delivery.seq
        seen.append(delivery.body[0])
        delivery.ack()
    bus.transport.close()
    return seen


def test_an_exception_right_after_the_commit_does_not_let_the_next_send_overwrite_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that raises between the commit store and the move of the cached tail: the frame is accepted and stays."""
    store = fresh(tmp_path, "signal")
    bus = Bus(transport(store, "alice"))
    bus.post("bob", [0, BODY])
    writer = bus.transport._outbox.lanes["bob"]._writer  # type: ignore[attr-defined]
    at, seq = writer._at, writer.next_seq
    bus.post("bob", [1, BODY])
    writer._at, writer.next_seq = at, seq  # as if the interruption had come before both moved
    assert bus.post("bob", [2, BODY]).seq == 3
    bus.transport.close()
    assert drain(store) == [0, 1, 2]


def test_a_wiped_outbox_begins_a_new_lane_and_its_messages_are_delivered(tmp_path: Path) -> None:
    import shutil

    store = fresh(tmp_path, "wiped")
    bus = Bus(transport(store, "alice"))
    for n in range(12):
        bus.post("bob", [n, BODY])
    bus.transport.close()
    assert drain(store) == list(range(12))
    shutil.rmtree(store / "agents/alice/outbox/bob")
    bus = Bus(transport(store, "alice"))
    assert bus.post("bob", [50, BODY]).seq == 1
    bus.transport.close()
    assert drain(store) == [50]


def test_segments_removed_behind_the_sender_begin_a_new_lane_instead_of_reusing_numbers(tmp_path: Path) -> None:
    store = fresh(tmp_path, "rewound")
    bus = Bus(transport(store, "alice"))
    for n in range(5):
        bus.post("bob", [n, BODY])
    bus.transport.close()
    assert drain(store) == list(range(5))
    for name in os.listdir(store / "agents/alice/outbox/bob"):
        if name.endswith(".seg"):
            os.unlink(store / "agents/alice/outbox/bob" / name)
    bus = Bus(transport(store, "alice"))
    bus.post("bob", [60, BODY])
    bus.transport.close()
    assert drain(store) == [60]


def test_a_living_recipient_follows_a_lane_that_began_anew(tmp_path: Path) -> None:
    import shutil

    store = fresh(tmp_path, "follow")
    recipient = Bus(transport(store, "bob"))
    for round_ in range(3):
        sender = Bus(transport(store, "alice"))
        sender.post("bob", [round_, BODY])
        sender.transport.close()
        delivery = recipient.receive_nowait()
        assert delivery is not None
        assert delivery.body[0] == round_
        delivery.ack()
        shutil.rmtree(store / "agents/alice/outbox/bob")
    recipient.transport.close()


def test_poison_is_dead_lettered_after_its_attempts_and_neighbours_in_flight_are_not(tmp_path: Path) -> None:
    """The reader dies each time it handles message 3, with three other messages in its hands."""
    store = fresh(tmp_path, "poison")
    bus = Bus(transport(store, "alice"))
    for n in range(6):
        bus.post("bob", [n, BODY])
    bus.transport.close()
    handled: list[int] = []
    for _ in range(20):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            mine = Bus(transport(store, "bob"))
            in_hand = []
            while True:
                delivery = mine.receive_nowait()
                if delivery is not None:
                    in_hand.append(delivery)
                    if len(in_hand) < 4:
                        continue
                if not in_hand:
                    os._exit(0)
                delivery = in_hand.pop(0)
                if delivery.body[0] == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                delivery.ack()
                os.write(writer, bytes((delivery.body[0],)))
        os.close(writer)
        while chunk := os.read(reader, 100):
            handled += list(chunk)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break
    assert sorted(handled) == [0, 1, 2, 4, 5]
    assert [name.split(".")[-1] for name in os.listdir(store / "agents/bob/inbox/dead")] == ["4"]


def test_an_unlinked_segment_is_never_one_that_still_holds_an_unacked_message(tmp_path: Path) -> None:
    store = fresh(tmp_path, "reclaim")
    sender, recipient = Bus(transport(store, "alice")), Bus(transport(store, "bob"))
    directory = store / "agents/alice/outbox/bob"
    held = []
    for n in range(60):
        sender.post("bob", [n, BODY])
        delivery = recipient.receive_nowait()
        assert delivery is not None
        if n == 20:
            held.append(delivery)
        else:
            delivery.ack()
    firsts = segment.list_segments(str(directory))
    assert firsts[0] <= 21, "the segment of the unacked message stays"
    assert firsts[0] > 1, "the segments before it are gone"
    held[0].ack()
    sender.transport.on_bell()
    assert segment.list_segments(str(directory))[0] > 21
    sender.transport.close()
    recipient.transport.close()


def test_an_ack_of_the_old_lane_does_not_finalise_the_equal_number_of_the_new_one(tmp_path: Path) -> None:
    import shutil

    store = fresh(tmp_path, "equal")
    recipient, sender = Bus(transport(store, "bob")), Bus(transport(store, "alice"))
    sender.post("bob", "old")
    old = recipient.receive_nowait()
    assert old is not None
    sender.transport.close()
    shutil.rmtree(store / "agents/alice/outbox/bob")
    sender = Bus(transport(store, "alice"))
    receipt = sender.post("bob", "new")
    new = recipient.receive_nowait()
    assert new is not None
    assert (old.seq, new.seq, new.body) == (1, 1, "new")
    old.ack()
    assert receipt.state == "taken"
    new.ack()
    assert receipt.state == "acked"
    sender.transport.close()
    recipient.transport.close()
