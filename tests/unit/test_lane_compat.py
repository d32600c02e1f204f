"""What an older muster left behind is read by this one, and what a newer one left is refused by name and left alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import read_settings, unread
from muster.bus.transports.lanes import inspect
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.overflow import read_policy
from muster.bus.transports.lanes.tombstones import list_tombstones
from muster.bus.transports.lanes.words import READABLE, VERSION
from muster.core.settings import EVICT_OLDEST
from muster.errors import StoreVersionError

from .golden_store import (
    ACKED,
    DATA,
    DEAD,
    EVICTED,
    EXPLICIT,
    FILLER,
    KEPT,
    SETTINGS,
    STORED,
    TAKEN,
    archive_of,
    body,
    join,
    unpack,
)

ARCHIVES = sorted(DATA.glob("store-v*.tar.xz"))
LANE = "agents/alice/outbox/bob"
#: (file, offset of its header's check, bytes that the check covers): the places a version stands in.
HEADERS = {
    "lane page": (f"{LANE}/lane", 24),
    "segment": (f"{LANE}/{1:020d}.seg", 40),
    "cursor": ("agents/bob/inbox/alice.cursor", 24),
}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return unpack(request.param, tmp_path)


@pytest.fixture
def joined() -> Iterator[Callable[[Path, str], Bus]]:
    buses: list[Bus] = []

    def open_bus(store: Path, agent: str) -> Bus:
        buses.append(join(store, agent))
        return buses[-1]

    yield open_bus
    for bus in buses:
        bus.transport.close()


def finish_all(bus: Bus) -> dict[tuple[str, bool], list[tuple[int, object]]]:
    """Everything that comes, acked one by one: (number, body) for each lane."""
    found: dict[tuple[str, bool], list[tuple[int, object]]] = {}
    while (delivery := bus.receive_nowait()) is not None:
        message = delivery.message
        found.setdefault((message.sender, message.control), []).append((message.seq, delivery.body))
        delivery.ack()
    return found


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def raise_version(path: Path, check_at: int, version: int) -> None:
    """Make a header claim `version`, its check correct: what a later muster would write."""
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[check_at : check_at + 4], "little") == zlib.crc32(data[:check_at])
    data[check_at + 4 : check_at + 8] = version.to_bytes(4, "little")
    path.write_bytes(data)


def test_there_is_a_golden_store_of_every_version_before_the_one_that_is_written() -> None:
    missing = [version for version in range(1, VERSION) if not archive_of(version).exists()]
    assert missing == [], "python -m tests.unit.golden_store, run on the sources of that version, writes it"


def test_every_pending_message_of_an_old_store_is_delivered_once_and_none_that_was_finalised(
    store: Path, joined
) -> None:
    found = finish_all(joined(store, "bob"))
    alices = [n for n in range(1, STORED + 1) if n not in (*ACKED, DEAD)]
    assert sorted(found.pop(("alice", False))) == [(n, body(n)) for n in alices]
    assert found.pop(("alice", True)) == [(1, "stop"), (2, "go")]
    assert found.pop(("carol", False)) == [(1, b"\x00bytes\xff"), (3, None)], "the second expired untaken"
    assert found == {}
    assert finish_all(joined(store, "alice")) == {}, "everything on bob's lane was acked"


def test_what_an_old_recipient_had_taken_comes_again_with_its_attempts_counted(store: Path, joined) -> None:
    bob = joined(store, "bob")
    attempts = {}
    while (delivery := bob.receive_nowait()) is not None:
        if delivery.sender == "alice" and not delivery.message.control:
            attempts[delivery.seq] = delivery.attempt
        delivery.ack()
    assert {seq for seq, attempt in attempts.items() if attempt == 2} == set(TAKEN)
    assert all(attempt == 1 for seq, attempt in attempts.items() if seq not in TAKEN)


def test_an_old_store_shows_its_depths_and_dead_letters_before_anybody_opens_it(store: Path) -> None:
    views = {(view.sender, view.control): view for view in inspect.lanes_to(store, "bob")}
    assert {lane: (view.last, view.taken, view.acked_base) for lane, view in views.items()} == {
        ("alice", False): (STORED, 7, 3),
        ("alice", True): (2, 0, 0),
        ("carol", False): (3, 0, 0),
    }
    (letter,) = list_letters(f"{store}/agents/bob/inbox")
    assert (letter["sender"], letter["seq"], letter["reason"]) == ("alice", DEAD, "golden")
    assert unread(store) > 0


def test_a_sender_goes_on_behind_an_old_lane_and_knows_its_verdicts_and_explicit_ids(store: Path, joined) -> None:
    alice = joined(store, "alice")
    for seq, message_id in EXPLICIT.items():
        assert alice.post("bob", body(seq), type="work", message_id=message_id).seq == seq, "no second copy"
    receipt = alice.post("bob", body(STORED + 1), type="work")
    assert receipt.seq == STORED + 1
    states = {n: alice.transport.state("bob", control=False, seq=n) for n in (*ACKED, *TAKEN, DEAD, 8)}
    assert states == {**dict.fromkeys(ACKED, "acked"), **dict.fromkeys(TAKEN, "taken"), DEAD: "dead", 8: "stored"}
    seqs = [seq for seq, _body in finish_all(joined(store, "bob"))["alice", False]]
    assert sorted(seqs) == [n for n in range(1, STORED + 2) if n not in (*ACKED, DEAD)]
    assert receipt.state == "acked"


def test_an_old_lane_rolls_and_is_reclaimed_as_a_new_one(store: Path, joined) -> None:
    alice, bob = joined(store, "alice"), joined(store, "bob")
    finish_all(bob)
    for _ in range(40):
        alice.post("bob", FILLER)
        finish_all(bob)
    (view,) = [view for view in inspect.lanes_to(store, "bob") if (view.sender, view.control) == ("alice", False)]
    assert (view.last, view.depth) == (STORED + 40, 0)
    assert view.segments <= 2


def test_bounds_evictions_and_redriven_letters_of_version_2_are_kept(tmp_path: Path, joined) -> None:
    store = unpack(archive_of(2), tmp_path)
    assert read_settings(store).render() == SETTINGS.render()
    stones = list_tombstones(f"{store}/agents/dora/inbox")
    assert [(stone.lane, stone.seq) for stone in stones] == [("carol", seq) for seq in EVICTED]
    found = finish_all(joined(store, "dora"))["carol", False]
    assert sorted(found) == [(1, "again"), *((seq, seq) for seq in KEPT)]
    assert read_policy(f"{store}/agents/dora") == EVICT_OLDEST


@pytest.mark.parametrize("where", list(HEADERS))
@pytest.mark.parametrize("version", [VERSION + 1, 255])
def test_an_unknown_version_is_refused_by_name_and_nothing_is_lost_or_changed(
    tmp_path: Path, joined, where: str, version: int
) -> None:
    store = unpack(archive_of(1), tmp_path)
    name, check_at = HEADERS[where]
    original = (store / name).read_bytes()
    raise_version(store / name, check_at, version)
    before = contents(store)

    both = rf"version {version};.*reads versions {READABLE[0]} to {VERSION}$"
    bob = joined(store, "bob")
    found = finish_all(bob)
    assert sorted(found) == [("alice", True), ("carol", False)], "only the lane that cannot be read is set aside"
    with pytest.raises(StoreVersionError, match=both):
        raise bob.transport.inbox.unreadable["alice"]
    bob.transport.close()
    with pytest.raises(StoreVersionError, match=both):
        joined(store, "alice").post("bob", "more")
    lane_files = [path for path in before if path.startswith(LANE + "/") or path.endswith("inbox/alice.cursor")]
    after = contents(store)
    assert {path: after.get(path) == before[path] for path in lane_files} == dict.fromkeys(lane_files, True)

    (store / name).write_bytes(original)
    found = finish_all(joined(store, "bob"))
    assert [seq for seq, _body in sorted(found["alice", False])] == [
        n for n in range(1, STORED + 1) if n not in (*ACKED, DEAD)
    ], "back under a muster that reads it, everything is there"
