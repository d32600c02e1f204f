"""Damage, a full store, a fork and a lost bell cost what they touch and nothing beside it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from muster import errors
from muster.bus.bus import Bus
from muster.bus.transports.lanes import cursor, lookout, segment
from muster.security.keys import Keyring, load_master

from .lanes_world import (
    DEADLINE_S,
    Joined,
    damage,
    die,
    finish_all,
    frame_offsets,
    lanes,
    overwrite,
    segments,
    swallow_bell,
    take_all,
)

# ---------------------------------------------------------------------- damage


def test_a_damaged_seal_costs_no_message_of_the_next_segment(join: Joined, lane: Path) -> None:
    alice = join("alice")
    for n in range(300):
        alice.post("bob", n)
    assert len(segments(lane)) == 3
    for first in segments(lane)[:2]:
        path = lane / segment.segment_name(first)
        overwrite(path, frame_offsets(path)[1], 8)
    bob = join("bob")
    assert finish_all(bob) == list(range(300))
    assert lanes(bob).gaps == []


def test_a_walk_over_damage_to_a_message_in_flight_skips_none_of_the_whole_ones(join: Joined, lane: Path) -> None:
    alice, bob = join("alice"), join("bob")
    for n in range(1, 11):
        alice.post("bob", n)
    for delivery in take_all(bob)[:3]:
        delivery.ack()
    die(bob)
    damage(lane, 2, 3, 4, 5)
    bob = join("bob")
    assert finish_all(bob) == [6, 7, 8, 9, 10]
    assert lanes(bob).gaps == [("alice", 4, 5)], "2 and 3 were finalised before"
    assert lanes(bob).inbox.lookout.lanes["alice"].cursor.acked_base == 10  # type: ignore[union-attr]


@pytest.mark.parametrize("lost", [(4, 5, 6), (5, 6, 7), (3, 4, 5)])
def test_damage_behind_a_full_window_is_healed_once_acks_make_room(
    join: Joined, lane: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    monkeypatch.setattr(cursor, "WINDOW", 4)
    alice = join("alice")
    for n in range(1, 20):
        alice.post("bob", n)
    damage(lane, *lost)
    bob = join("bob")
    in_hand = take_all(bob)
    assert [delivery.body for delivery in in_hand] == [n for n in range(1, 5) if n not in lost]
    for delivery in in_hand:
        delivery.ack()
    assert finish_all(bob) == list(range(lost[-1] + 1, 20)), "each once, and none of them missing"
    assert bob.stats.gaps == len(lost)
    reported = [n for name, first, last in lanes(bob).gaps for n in range(first, last + 1) if name == "alice"]
    assert tuple(reported) == lost


def other_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(28)
        file.write((99).to_bytes(4, "little"))


def link_instead(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


HARMS = {
    "the lane page has another version": lambda store: other_version(store / "agents/alice/outbox/bob/lane"),
    "the cursor has another version": lambda store: other_version(store / "agents/bob/inbox/alice.cursor"),
    "the cursor is short": lambda store: os.truncate(store / "agents/bob/inbox/alice.cursor", 100),
    "the cursor is a link": lambda store: link_instead(store / "agents/bob/inbox/alice.cursor"),
    "the cursor is open to others": lambda store: (store / "agents/bob/inbox/alice.cursor").chmod(0o644),
    "a segment is open to others": lambda store: (store / f"agents/alice/outbox/bob/{1:020d}.seg").chmod(0o644),
    "a segment is a link": lambda store: link_instead(store / f"agents/alice/outbox/bob/{1:020d}.seg"),
    "the folder of dead letters is gone": lambda store: (store / "agents/bob/inbox/dead").rmdir(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_one_lane_leaves_the_others_readable(store: Path, join: Joined, harm: str) -> None:
    alice, bob, carol = join("alice"), join("bob"), join("carol")
    alice.post("bob", "first")
    assert finish_all(bob) == ["first"]
    alice.post("bob", "second")
    die(bob)
    HARMS[harm](store)
    carol.post("bob", "whole")
    bob = join("bob")
    assert "whole" in finish_all(bob)
    assert ("alice" in lanes(bob).inbox.unreadable) == ("folder" not in harm), "what cannot be read is named"


def test_a_damaged_base_is_found_by_the_ring_of_verdicts(store: Path, join: Joined) -> None:
    """Also where numbers have gone round the ring, and the segments of the first are long gone."""
    alice, bob = join("alice"), join("bob")
    for n in range(3 * cursor.WINDOW):
        alice.post("bob", n)
        assert finish_all(bob) == [n]
    die(bob)
    with (store / "agents/bob/inbox/alice.cursor").open("r+b") as file:
        file.seek(cursor.ACKED_BASE * 8)
        file.write(b"\xff" * 8)
    alice.post("bob", "next")
    assert finish_all(join("bob")) == ["next"]


# ---------------------------------------------------------------------- a store without room


def full(_fd: int, _data: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_dead_letter_that_finds_no_room_leaves_no_piece_and_is_stored_later(
    store: Path, join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = join("alice"), join("bob")
    receipt = alice.post("bob", "x")
    (delivery,) = take_all(bob)
    real = os.write

    def full_after_some(fd: int, data: bytes) -> int:
        real(fd, bytes(data[:100]))
        return full(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_after_some)
        delivery.dead_letter("why")
        for _ in range(3):
            bob.transport.scan()
    dead = store / "agents/bob/inbox/dead"
    assert (os.listdir(dead), receipt.state) == ([], "taken")
    bob.transport.scan()
    assert (len(os.listdir(dead)), receipt.state) == (1, "dead")


def test_a_suspect_whose_letter_finds_no_room_does_not_hold_up_others(
    join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, carol = join("alice"), join("bob"), join("carol")
    for n in range(2):
        alice.post("bob", ["in flight", n])
    assert len(take_all(bob)) == 2
    die(bob)
    bob = join("bob")
    (suspect,) = take_all(bob)
    assert suspect.attempt == 2
    carol.post("bob", "fresh")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        suspect.dead_letter("give up")
    assert sorted(map(str, finish_all(bob))) == ["['in flight', 1]", "fresh"]


# ---------------------------------------------------------------------- processes


def test_a_child_of_a_fork_takes_and_acks_nothing_of_its_parents(join: Joined) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", 1)
    receipt = alice.post("bob", 2)
    first = bob.receive_nowait()
    assert first is not None
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in (bob.receive_nowait, first.ack):
            try:
                call()
            except errors.ForkedBusError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert [delivery.body for delivery in take_all(bob)] == [2]
    assert receipt.state == "taken"


async def send_many(store: Path, count: int) -> None:
    """Send as fast as credit allows, and wait until the last message is finalised."""
    async with await Bus.open(store, "alice", Keyring.from_master(load_master(store), "alice")) as alice:
        for n in range(count - 1):
            await alice.send("bob", n, wait_s=DEADLINE_S)
            if n % 5 == 0:
                await asyncio.sleep(0.0003)  # the recipient finds an empty lane now and then, and needs the bell
        receipt = await alice.send("bob", count - 1, wait_s=DEADLINE_S)
        await receipt.wait_acked(timeout_s=DEADLINE_S)


async def receive_many(store: Path, count: int) -> tuple[list[Any], int]:
    """What came, and what the safety sweep found, though it runs several times a second."""
    async with await Bus.open(store, "bob", Keyring.from_master(load_master(store), "bob")) as bob:

        async def sweep() -> None:
            while True:
                await asyncio.sleep(0.25)
                bob._sweep()

        sweeper = asyncio.ensure_future(sweep())
        bodies: list[Any] = []
        while len(bodies) < count and (delivery := await bob.receive(timeout_s=DEADLINE_S)) is not None:
            bodies.append(delivery.body)
            delivery.ack()
        sweeper.cancel()
        return bodies, bob.stats.sweeps_found


def test_the_sweep_finds_nothing_while_two_processes_exchange_thousands_of_messages(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lookout, "RUNG_WITHIN_NS", 200_000_000
    )  # a message that nobody rang for is older at the next sweep
    pid = os.fork()
    if pid == 0:
        failed = True
        with contextlib.suppress(BaseException):
            asyncio.run(send_many(store, 2000))
            failed = False
        os._exit(failed)
    try:
        bodies, sweeps_found = asyncio.run(receive_many(store, 2000))
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert bodies == list(range(2000))
    assert (status, sweeps_found) == (0, 0)


@pytest.fixture
def _every_age_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that only the sweep found is its find however young it is: what a test posts need not grow old first."""
    monkeypatch.setattr(lookout, "RUNG_WITHIN_NS", 0)


@pytest.mark.usefixtures("_every_age_counts")
def test_what_only_the_sweep_found_is_counted(store: Path, join: Joined) -> None:
    alice, bob = join("alice"), join("bob")
    for n in range(3):
        alice.post("bob", n)
    assert swallow_bell(store, "bob") > 0
    assert bob.receive_nowait() is None
    bob.transport.sweep()
    assert finish_all(bob) == [0, 1, 2]
    assert bob.stats.sweeps_found == 3
    alice.post("bob", "rung for")
    assert finish_all(bob) == ["rung for"]
    assert bob.stats.sweeps_found == 3


@pytest.mark.usefixtures("_every_age_counts")
async def test_what_was_rung_for_right_before_the_sweep_is_not_its_find(store: Path, join: Joined) -> None:
    async with await Bus.open(store, "bob", Keyring.from_master(load_master(store), "bob")) as bob:
        join("alice").post("bob", "rung for")
        bob._sweep()  # the loop had no turn to hear the bell
        delivery = bob.receive_nowait()
        assert delivery is not None
        assert bob.stats.sweeps_found == 0


def test_what_came_less_than_a_reminder_before_the_sweep_is_not_its_find(store: Path, join: Joined) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "perhaps about to be rung for")
    swallow_bell(store, "bob")
    bob.transport.sweep()
    assert finish_all(bob) == ["perhaps about to be rung for"]
    assert bob.stats.sweeps_found == 0


@pytest.mark.usefixtures("_every_age_counts")
def test_what_waited_for_room_in_the_window_is_not_the_sweeps_find(
    join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "WINDOW", 2)
    alice, bob = join("alice"), join("bob")
    for n in range(4):
        alice.post("bob", n)
    in_hand = take_all(bob)
    bob.transport.sweep()
    assert bob.receive_nowait() is None
    for delivery in in_hand:
        delivery.ack()
    assert finish_all(bob) == [2, 3]
    assert bob.stats.sweeps_found == 0
