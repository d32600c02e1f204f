"""`fsck` names every loss, mends what the format lets it mend, and harm to one inbox stays there (I25).

Five recipients have sixty messages each from one sender, ten of them finalised. One lane is harmed, in every way a file can be.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes import locks
from muster.bus.transports.lanes.fsck.findings import LOSS, NOTICE, Finding
from muster.bus.transports.lanes.fsck.store import check_store
from muster.bus.transports.lanes.segment import list_segments, segment_name
from muster.bus.transports.lanes.transport import LanesTransport
from muster.core.settings import BusSettings
from muster.security.keys import Keyring, load_master

RECIPIENTS = ("anna", "bert", "cleo", "dora", "emil")
HARMED, OTHERS = RECIPIENTS[2], (*RECIPIENTS[:2], *RECIPIENTS[3:])
STORED, FINALISED = 60, 10
BODY = "x" * 1000


class Yard:
    """A store, and buses on it that are closed at the end of a test."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.lane = store / "agents/hub/outbox" / HARMED
        self.inbox = store / "agents" / HARMED / "inbox"
        self.cursor = self.inbox / "hub.cursor"
        self.buses: list[Bus] = []

    def bus(self, agent: str) -> Bus:
        bus = Bus(LanesTransport(self.store, agent, Keyring.from_master(load_master(self.store), agent)))
        self.buses.append(bus)
        return bus

    def close(self) -> None:
        for bus in self.buses:
            bus.transport.close()
        self.buses.clear()

    def segment(self, at: int) -> Path:
        return self.lane / segment_name(list_segments(str(self.lane))[at])

    def drained(self, agent: str) -> list[int]:
        """What `agent` still receives, acked; numbers as the sender wrote them into the bodies."""
        bus, numbers = self.bus(agent), []
        while (delivery := bus.receive_nowait()) is not None:
            numbers.append(delivery.body[0])
            delivery.ack()
        bus.transport.close()
        return numbers


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def flip(path: Path, at: int) -> None:
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 0x41]))


def frame_at(path: Path, index: int) -> int:
    """Where the commit word of a segment's frame number `index` (from 0) stands; of the one behind the last: the seal or the end."""
    data, at = path.read_bytes(), 64
    for _ in range(index):
        at += 8 + ((int.from_bytes(data[at : at + 4], "little") + 7) & ~7)
    return at


def frames_in(path: Path) -> int:
    data, at, count = path.read_bytes(), 64, 0
    while (word := int.from_bytes(data[at : at + 8], "little")) and (word >> 32) & 0xFF == 1:
        at, count = at + 8 + (((word & 0xFFFFFFFF) + 7) & ~7), count + 1
    return count


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = filled(tmp_path / "fleet", BusSettings())
    yield made
    made.close()


@pytest.fixture
def durable_yard(tmp_path: Path) -> Iterator[Yard]:
    made = filled(tmp_path / "fleet", BusSettings(durable=True))
    yield made
    made.close()


def filled(path: Path, settings: BusSettings) -> Yard:
    store = create_store(path, settings)
    for agent in ("hub", *RECIPIENTS):
        add_agent(store, agent)
    made = Yard(store)
    hub = made.bus("hub")
    for agent in RECIPIENTS:
        for number in range(1, STORED + 1):
            hub.post(agent, [number, BODY])
        bus = made.bus(agent)
        for _ in range(FINALISED):
            delivery = bus.receive_nowait()
            assert delivery is not None
            delivery.ack()
        bus.transport.close()
    hub.transport.ring_again()  # reclaims what is finalised
    made.close()
    firsts = list_segments(str(made.lane))
    assert firsts[0] > 1, "nothing was reclaimed"
    assert len(firsts) == 3, "a segment in the middle is wanted"
    return made


def harms(yard: Yard) -> dict[str, Callable[[], Any]]:
    """Every way in which a file of one lane can be harmed."""
    segment, first, last, page = yard.segment(1), yard.segment(0), yard.segment(-1), yard.lane / "lane"
    return {
        "a commit word": lambda: overwrite(segment, frame_at(segment, 2), b"\xff" * 8),
        "a commit word zeroed": lambda: overwrite(segment, frame_at(segment, 2), bytes(8)),
        "a frame wiped": lambda: overwrite(segment, frame_at(segment, 2), b"\xff" * 900),
        "a body": lambda: flip(segment, frame_at(segment, 2) + 500),
        "a frame's header": lambda: flip(segment, frame_at(segment, 2) + 8 + 40),
        "the last commit word": lambda: overwrite(last, frame_at(last, frames_in(last) - 1), b"\xff" * 8),
        "the last body": lambda: flip(last, frame_at(last, frames_in(last) - 1) + 500),
        "a body of the last segment": lambda: flip(last, frame_at(last, 0) + 500),
        "the word behind the last frame": lambda: overwrite(last, frame_at(last, frames_in(last)), b"\xff" * 8),
        "a seal": lambda: overwrite(segment, frame_at(segment, frames_in(segment)), b"\xff" * 8),
        "a seal zeroed": lambda: overwrite(segment, frame_at(segment, frames_in(segment)), bytes(8)),
        "a segment's magic": lambda: flip(segment, 3),
        "a segment's lane id": lambda: flip(segment, 12),
        "the last segment's header": lambda: flip(last, 26),
        "a segment cut in a frame": lambda: os.truncate(segment, 3000),
        "a segment cut between frames": lambda: os.truncate(segment, frame_at(segment, 2)),
        "the last segment cut between frames": lambda: os.truncate(last, frame_at(last, 2)),
        "a segment cut to nothing": lambda: os.truncate(segment, 0),
        "the last segment cut": lambda: os.truncate(last, frame_at(last, 1) + 100),
        "a segment gone": segment.unlink,
        "the first segment gone": first.unlink,
        "the last segment gone": last.unlink,
        "all segments gone": lambda: remove(*yard.lane.glob("*.seg")),
        "the lane page's id": lambda: flip(page, 10),
        "the lane page cut": lambda: os.truncate(page, 100),
        "the lane page gone": page.unlink,
        "the word want": lambda: flip(page, 56),
        "the lane page's version": lambda: overwrite(page, 28, b"\x63\x62\x61\x60"),
        "the cursor's version": lambda: overwrite(yard.cursor, 28, b"\x63\x62\x61\x60"),
        "a segment's version": lambda: overwrite(segment, 44, b"\x63\x62\x61\x60"),
        "the cursor's id": lambda: flip(yard.cursor, 10),
        "the cursor cut": lambda: os.truncate(yard.cursor, 1000),
        "the cursor gone": yard.cursor.unlink,
        "the word taken": lambda: flip(yard.cursor, 32),
        "the word acked_base": lambda: flip(yard.cursor, 40),
        "the word credit": lambda: flip(yard.cursor, 48),
        "a verdict": lambda: flip(yard.cursor, 128 + 8 * 7),
        "a count of attempts": lambda: flip(yard.cursor, 2048 + 8 * 7 + 1),
        "a spare cursor": lambda: os.truncate(next(yard.inbox.glob("spare-*")), 10),
        "a link in the inbox": lambda: (yard.inbox / "emil.cursor").symlink_to(yard.store / "keys/master"),
        "a cursor with two names": lambda: os.link(yard.cursor, yard.store / "other"),
        "a cursor open to others": lambda: yard.cursor.chmod(0o644),
        "a segment open to others": lambda: segment.chmod(0o644),
        "an inbox open to others": lambda: yard.inbox.chmod(0o755),
        "the folder of dead letters gone": (yard.inbox / "dead").rmdir,
        "a lock file gone": (yard.inbox.parent / "inbox.lock").unlink,
        "a name among the senders gone": (yard.inbox.parent / "senders/hub").unlink,
        "the bell gone": (yard.inbox.parent / "bell").unlink,
    }


HARMS = (
    "a commit word", "a commit word zeroed", "a frame wiped", "a body", "a frame's header", "the last commit word", "the last body",
    "a body of the last segment", "the word behind the last frame", "a seal", "a seal zeroed", "a segment's magic",
    "a segment's lane id", "the last segment's header", "a segment cut in a frame", "a segment cut to nothing",
    "a segment cut between frames", "the last segment cut between frames", "the last segment cut",
    "a segment gone", "the first segment gone", "the last segment gone", "all segments gone", "the lane page's id",
    "the lane page cut", "the lane page gone", "the word want", "the cursor's id",
    "the cursor's version", "the lane page's version", "a segment's version", "the cursor cut", "the cursor gone",
    "the word taken", "the word acked_base", "the word credit", "a verdict", "a count of attempts", "a spare cursor",
    "a link in the inbox", "a cursor with two names", "a cursor open to others", "a segment open to others", "an inbox open to others",
    "the folder of dead letters gone", "a lock file gone", "a name among the senders gone", "the bell gone",
)  # fmt: skip


#: What nobody can know of: the end of a lane was taken away as a whole, and nothing else tells that it was there.
UNKNOWABLE = ("the last segment gone", "all segments gone")


def wrong(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.place, finding.text, finding.outcome) for finding in findings if finding.severity != NOTICE]


def told_lost(findings: list[Finding]) -> set[int]:
    numbers: set[int] = set()
    for finding in findings:
        if finding.severity == LOSS and finding.first is not None:
            numbers |= set(range(finding.first, (finding.last or STORED) + 1))
    return numbers


def test_a_store_in_use_is_clean(yard: Yard) -> None:
    assert check_store(yard.store) == []
    bus = yard.bus(HARMED)
    bus.receive_nowait()
    yard.bus("hub").post(HARMED, [STORED + 1, BODY])
    assert wrong(check_store(yard.store)) == []


def test_every_harm_is_tried(yard: Yard) -> None:
    assert set(harms(yard)) == set(HARMS)


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_one_inbox_leaves_the_others_readable(yard: Yard, harm: str) -> None:
    harms(yard)[harm]()
    for agent in OTHERS:
        assert yard.drained(agent) == list(range(FINALISED + 1, STORED + 1)), agent


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_told_and_mended_once_and_only_what_was_told_is_lost(yard: Yard, harm: str) -> None:
    harms(yard)[harm]()
    before = snapshot(yard.store)
    told = check_store(yard.store)
    assert wrong(told) or (harm in UNKNOWABLE and told), "the harm is not found"
    assert snapshot(yard.store) == before, "a check without --repair changed something"
    assert all(
        HARMED in finding.place or HARMED in (finding.lane or "") for finding in told if finding.severity != NOTICE
    ), wrong(told)

    repaired = check_store(yard.store, repair=True)
    assert told_lost(repaired) == told_lost(told)
    assert wrong(check_store(yard.store)) == [], wrong(repaired)

    received = yard.drained(HARMED)  # first: a cursor that had to be made anew grants credit once its owner is there
    hub = yard.bus("hub")
    for number in range(STORED + 1, STORED + 4):
        hub.post(HARMED, [number, BODY])
    received += yard.drained(HARMED)
    assert received == sorted(received), "out of order"
    assert received[-3:] == [STORED + 1, STORED + 2, STORED + 3]
    if harm not in UNKNOWABLE:
        missing = set(range(FINALISED + 1, STORED + 1)) - set(received) - told_lost(told)
        assert not missing, f"lost without a word: {missing}"
    assert wrong(check_store(yard.store)) == []


def snapshot(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(store)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(store.rglob("*"))
    }


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_anywhere_in_one_lane_never_lose_in_silence(yard: Yard, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted([*yard.lane.iterdir(), yard.cursor])
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(files)
        size = rng.choice((1, 8, 64, 2000))
        overwrite(
            path, rng.randrange(max(1, path.stat().st_size - size)), rng.choice((bytes(size), rng.randbytes(size)))
        )
    told = check_store(yard.store, repair=True)
    assert wrong(check_store(yard.store)) == [], (seed, wrong(told))
    received = set(yard.drained(HARMED))
    yard.bus("hub").post(HARMED, [STORED + 1, BODY])
    received |= set(yard.drained(HARMED))
    missing = set(range(FINALISED + 1, STORED + 2)) - received - told_lost(told)
    assert not missing, (seed, missing, wrong(told))
    for agent in OTHERS:
        assert yard.drained(agent) == list(range(FINALISED + 1, STORED + 1)), (seed, agent)


def test_what_a_living_process_owns_is_told_and_left_alone(yard: Yard) -> None:
    harms(yard)["a commit word"]()
    hub = yard.bus("hub")
    before = yard.segment(1).read_bytes()
    found = check_store(yard.store, repair=True)
    assert [finding.outcome for finding in found if finding.lane] == [
        f"left alone: process {os.getpid()} holds outbox.lock"
    ]
    assert yard.segment(1).read_bytes() == before
    assert not locks.acquire(str(yard.store / "agents/hub/outbox.lock")), "the living owner lost its lock"
    hub.transport.close()


def test_the_ring_of_verdicts_proves_a_base_that_is_damaged(yard: Yard) -> None:
    hub, bus = yard.bus("hub"), yard.bus("anna")
    for number in range(STORED + 1, 401):
        hub.post("anna", [number, "short"])
        while (delivery := bus.receive_nowait()) is not None:
            if delivery.body[0] != 399:  # a later one is finalised, this is not
                delivery.ack()
    yard.close()
    cursor = yard.store / "agents/anna/inbox/hub.cursor"
    for words in ((40,), (32, 40, 48)):  # acked_base alone, and with taken and credit
        whole = cursor.read_bytes()
        for at in words:
            flip(cursor, at)
        assert len(wrong(check_store(yard.store, repair=True))) == len(words)
        assert cursor.read_bytes()[32:48] == whole[32:48], "taken or acked_base differ from what they were"
    assert wrong(check_store(yard.store)) == []
    assert yard.drained("anna") == [399]


def test_a_lost_message_is_named_by_its_id_where_it_can_be_read(yard: Yard) -> None:
    hub = yard.bus("hub")
    receipt = hub.post(HARMED, [STORED + 1, BODY])
    hub.transport.close()
    last = yard.segment(-1)
    flip(last, frame_at(last, frames_in(last) - 1) + 500)
    (found,) = (finding for finding in check_store(yard.store) if finding.severity == LOSS)
    assert (found.message_id, found.first, found.lane) == (receipt.id, STORED + 1, f"hub to {HARMED}")


def test_damaged_facts_of_a_dead_letter_are_replaced_and_its_bytes_are_kept(yard: Yard) -> None:
    bus = yard.bus(HARMED)
    delivery = bus.receive_nowait()
    assert delivery is not None
    delivery.dead_letter("no")
    bus.transport.close()
    (letter,) = (yard.inbox / "dead").iterdir()
    overwrite(letter, 0, b"\xff" * 20)
    whole = letter.read_bytes()
    found = check_store(yard.store, repair=True)
    assert [(finding.first, finding.outcome) for finding in found] == [(11, "repaired")]
    assert letter.read_bytes().endswith(whole)
    assert wrong(check_store(yard.store)) == []


def test_what_is_of_a_younger_format_is_told_and_not_changed(yard: Yard) -> None:
    for path in (yard.lane / "lane", yard.cursor):
        overwrite(path, 28, b"\x63")
    before = snapshot(yard.store)
    found = check_store(yard.store, repair=True)
    assert [finding.text for finding in found if "version 99" not in finding.text] == []
    assert len(found) == 2
    assert snapshot(yard.store) == before


def test_a_durable_store_knows_what_was_at_the_end_of_a_lane(durable_yard: Yard) -> None:
    first = int(durable_yard.segment(-1).name[:20])
    durable_yard.segment(-1).unlink()
    told = check_store(durable_yard.store, repair=True)
    assert told_lost(told) == set(range(first, STORED + 1))
    assert wrong(check_store(durable_yard.store)) == []
    durable_yard.bus("hub").post(HARMED, [STORED + 1, BODY])
    assert durable_yard.drained(HARMED) == [*range(FINALISED + 1, first), STORED + 1]


def test_a_page_that_is_made_anew_shows_a_durable_lane_without_its_sender(durable_yard: Yard) -> None:
    (durable_yard.lane / "lane").unlink()
    assert told_lost(check_store(durable_yard.store, repair=True)) == set()
    assert durable_yard.drained(HARMED) == list(range(FINALISED + 1, STORED + 1))


class Died(Exception):
    """The process ended here."""


@pytest.mark.parametrize(
    "harm",
    ["a frame wiped", "a body", "a segment gone", "the last segment cut", "the last commit word", "the cursor cut"],
)
def test_a_repair_that_is_killed_at_any_step_is_finished_by_the_next(
    tmp_path_factory: pytest.TempPathFactory, yard: Yard, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harms(yard)[harm]()
    told = told_lost(check_store(yard.store))
    for step in range(100):
        copy = Yard(tmp_path_factory.mktemp("copy") / "fleet")
        copy_store(yard.store, copy.store)
        with monkeypatch.context() as patch:
            died = die_at(step, patch, copy.store)
            with contextlib.suppress(Died):
                check_store(copy.store, repair=True)
        if not died():
            break
        assert told_lost(check_store(copy.store, repair=True)) <= told, step
        assert wrong(check_store(copy.store)) == [], step
        received = set(copy.drained(HARMED))
        assert set(range(FINALISED + 1, STORED + 1)) - received <= told, step
        copy.close()
    assert step > 0, "the repair did not change anything"


def copy_store(source: Path, target: Path) -> None:
    """Files, folders and FIFOs."""
    target.mkdir(mode=0o700)
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        if path.is_dir():
            to.mkdir(mode=0o700)
        elif path.is_fifo():
            os.mkfifo(to, 0o600)
        else:
            to.write_bytes(path.read_bytes())
            to.chmod(0o600)


def die_at(step: int, patch: pytest.MonkeyPatch, store: Path) -> Callable[[], bool]:
    """Let the process end at the change number `step` that it makes to a file; whether it came so far."""
    made = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **more: Any) -> Any:
            nonlocal made
            if made >= step:
                made = step + 1
                raise Died(f"before change {step} in {store}")
            made += 1
            return call(*args, **more)

        return changed

    for name in ("rename", "unlink", "link", "truncate", "pwrite", "write", "posix_fallocate", "chmod"):
        patch.setattr(os, name, dying(getattr(os, name)))
    return lambda: made > step
