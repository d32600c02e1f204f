"""What an interruption, a death or a removed file leaves half done is taken up again; nothing accepted is lost for it."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent
from muster.bus.transports.lanes import outlane, segment
from muster.core import limits
from muster.security.keys import Keyring, load_master

from .lanes_world import (
    BODY,
    DEADLINE_S,
    Joined,
    die,
    finish_all,
    frame_offsets,
    heard,
    lanes,
    overwrite,
    segments,
    swallow_bell,
    take_all,
)

# ---------------------------------------------------------------------- interruptions of the sender


def test_an_interrupted_roll_is_taken_up_where_it_was(
    join: Joined, lane: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipient went on to the successor already when its maker comes back from the interruption."""
    alice, bob = join("alice"), join("bob")
    real = segment.SegmentWriter._use

    def interrupted(self: segment.SegmentWriter, *args: Any) -> None:
        if args[2] > 1:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(segment.SegmentWriter, "_use", interrupted)
    with pytest.raises(KeyboardInterrupt):
        while True:
            alice.post("bob", BODY)
            finish_all(bob)
    monkeypatch.undo()
    successor = lane / segment.segment_name(segments(lane)[-1])
    inode = successor.stat().st_ino
    bob.transport.scan()
    assert take_all(bob) == []
    receipts = [alice.post("bob", n) for n in range(3)]
    assert finish_all(bob) == [0, 1, 2]
    assert [receipt.state for receipt in receipts] == ["acked"] * 3
    assert successor.stat().st_ino == inode, "a file that somebody reads is not replaced"


def interrupt_at_line(n: int, call: Any) -> bool:
    """Run `call` and raise KeyboardInterrupt before the n-th line it executes in the sender's code; False if it has fewer."""
    files = {segment.__file__, outlane.__file__}
    left = n

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interruption_before_any_line_of_a_send_that_rolls_loses_nothing_and_leaves_no_segment(
    store: Path, join: Joined
) -> None:
    alice, n, interrupted = join("alice"), 0, True
    while interrupted:
        n += 1
        add_agent(store, recipient := f"bob{n}")
        for i in range(7):
            alice.post(recipient, [i, BODY])
        interrupted = interrupt_at_line(n, partial(alice.post, recipient, [7, BODY]))
        for i in range(8, 20):
            alice.post(recipient, [i, BODY])
        bob = join(recipient)
        assert [body[0] for body in finish_all(bob)] in ([*range(20)], [*range(7), *range(8, 20)]), f"line {n}"
        die(bob)
        alice.transport.on_bell()
        alice.transport.ring_again()
        assert len(segments(store / "agents/alice/outbox" / recipient)) == 1, f"line {n}: what is finalised is freed"
    assert n > 60, "the scenario must reach the lines it is about"


def test_a_retry_after_a_death_between_commit_and_ring_rings(
    store: Path, join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, alice = join("bob"), join("alice")
    assert take_all(bob) == []

    def dies(*_args: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(lanes(alice)._bells, "ring", dies)
    with pytest.raises(KeyboardInterrupt):
        alice.post("bob", "hi", message_id="job-1")
    assert not heard(bob)
    die(alice)
    alice = join("alice")
    assert alice.post("bob", "hi", message_id="job-1").seq == 1
    assert heard(bob)
    assert finish_all(bob) == ["hi"], "once"


def test_a_death_between_the_new_page_and_the_removal_of_old_segments_does_not_block_the_lane(
    join: Joined, lane: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = join("alice")
    alice.post("bob", "old")
    die(alice)
    (lane / "lane").unlink()
    real = os.unlink

    def dies_at_segment(path: Any, **kwargs: Any) -> None:
        if str(path).endswith(".seg"):
            raise KeyboardInterrupt
        real(path, **kwargs)

    alice = join("alice")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", dies_at_segment)
        with pytest.raises(KeyboardInterrupt):
            alice.post("bob", "never stored")
    die(alice)
    assert segments(lane) == [1]
    join("alice").post("bob", "new")
    assert finish_all(join("bob")) == ["new"]


# ---------------------------------------------------------------------- what restarts leave


def test_a_restarted_sender_rings_again_for_what_its_predecessor_left_untaken(store: Path, join: Joined) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "unheard")
    assert swallow_bell(store, "bob") > 0
    die(alice)
    alice = join("alice")
    assert bob.receive_nowait() is None
    alice._upkeep._resume()
    assert alice.stats.rerings == 1
    assert finish_all(bob) == ["unheard"]
    alice._upkeep._resume()
    assert alice.stats.rerings == 1, "everything was taken: nobody is rung for nothing"


async def test_a_restarted_sender_in_a_loop_does_so_by_itself(
    store: Path, join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RERING_S", 0.02)
    alice, master = join("alice"), load_master(store)
    async with await Bus.open(store, "bob", Keyring.from_master(master, "bob")) as bob:
        alice.post("bob", "unheard")
        assert swallow_bell(store, "bob") > 0
        die(alice)
        async with await Bus.open(store, "alice", Keyring.from_master(master, "alice")):
            delivery = await bob.receive(timeout_s=DEADLINE_S)
        assert delivery is not None
        assert delivery.body == "unheard"


def test_a_restarted_sender_frees_the_segments_that_were_finalised_while_it_was_away(join: Joined, lane: Path) -> None:
    alice = join("alice")
    for _ in range(100):
        alice.post("bob", BODY)
    die(alice)
    assert len(finish_all(join("bob"))) == 100
    assert len(segments(lane)) > 2
    join("alice")._upkeep._resume()
    assert len(segments(lane)) == 1


def test_one_damaged_lane_does_not_keep_a_restarted_sender_from_resuming_the_others(store: Path, join: Joined) -> None:
    alice, receivers = join("alice"), [join("bob"), join("carol")]
    for recipient in ("bob", "carol"):
        alice.post(recipient, "unheard")
        alice.post(recipient, "damaged")
    die(alice)
    for name in ("bob", "carol"):  # each in turn, because the order of a directory is nobody's promise
        swallow_bell(store, "bob")
        swallow_bell(store, "carol")
        path = store / "agents/alice/outbox" / name / segment.segment_name(1)
        whole = path.read_bytes()
        overwrite(path, frame_offsets(path)[0][2], 8)
        alice = join("alice")
        alice._upkeep._resume()
        die(alice)
        path.write_bytes(whole)
        assert [heard(bus) for bus in receivers] == [name != "bob", name != "carol"]


def test_an_identity_that_only_receives_leaves_the_outbox_to_whoever_sends_as_it(
    store: Path, join: Joined, lane: Path
) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "unheard")
    swallow_bell(store, "bob")
    die(alice)
    (lane / "tmp-of-the-living-sender").touch(mode=0o600)
    join("alice", send=False)._upkeep._resume()
    assert (lane / "tmp-of-the-living-sender").exists()
    assert not heard(bob)


def test_a_restarted_recipient_tells_the_sender_that_waits_for_its_predecessors_last_ack(
    store: Path, join: Joined
) -> None:
    alice, bob = join("alice"), join("bob")
    receipt = alice.post("bob", "hi")
    alice.transport.want("bob", control=False, seq=receipt.seq)
    (delivery,) = take_all(bob)
    delivery.ack()
    assert swallow_bell(store, "alice") > 0, "as if bob had died between the verdict and the ring"
    die(bob)
    bob = join("bob")
    assert bob.receive_nowait() is None
    assert heard(alice)
    assert alice.transport.on_bell()
    assert receipt.state == "acked"


def test_a_sender_is_told_of_each_number_it_wants_even_a_lower_one_later(join: Joined) -> None:
    alice, bob = join("alice"), join("bob")
    for n in (1, 2):
        alice.post("bob", n)
    one, two = take_all(bob)
    alice.transport.on_bell()
    alice.transport.want("bob", control=False, seq=2)
    two.ack()
    assert alice.transport.on_bell()
    alice.transport.want("bob", control=False, seq=1)
    one.ack()
    assert alice.transport.on_bell()


# ---------------------------------------------------------------------- removed files


def test_verdicts_on_a_removed_lane_finalise_nothing_of_the_new_one(join: Joined, lane: Path) -> None:
    alice, bob = join("alice"), join("bob")
    for n in range(3):
        alice.post("bob", ["old", n])
    old = take_all(bob)
    die(alice)
    shutil.rmtree(lane)
    alice = join("alice")
    receipts = [alice.post("bob", ["new", n]) for n in range(3)]
    assert [delivery.body for delivery in take_all(bob)] == [["new", n] for n in range(3)]
    for delivery in old:
        delivery.ack()
    assert [receipt.state for receipt in receipts] == ["taken"] * 3
    die(bob)
    assert finish_all(join("bob")) == [["new", n] for n in range(3)]


def test_a_drained_lane_removed_below_its_living_sender_begins_anew_with_the_next_message(
    join: Joined, lane: Path
) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", 1)
    assert finish_all(bob) == [1]
    alice.transport.ring_again()  # the safety net sees that everything was taken
    shutil.rmtree(lane)
    lanes(alice)._outbox.lanes["bob"].look_ns = 0  # it looks again after a twentieth of a second
    alice.post("bob", 2)
    assert finish_all(bob) == [2]
    assert lanes(alice)._outbox.lanes["bob"].times_lost == 1


def test_a_lane_removed_with_unread_messages_is_noticed_when_its_sender_would_ring_again(
    join: Joined, lane: Path
) -> None:
    alice = join("alice")
    alice.post("bob", "unread, and gone")
    shutil.rmtree(lane)
    alice.transport.ring_again()
    assert lanes(alice)._outbox.lanes["bob"].times_lost == 1
    alice.post("bob", "after")
    assert finish_all(join("bob")) == ["after"]
