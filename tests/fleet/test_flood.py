"""Many processes flood one inbox with ten times what it may hold: what it costs those who wait, and what the bounds are worth."""

from __future__ import annotations

import time

import pytest
from tests.acceptance.flood import Bounds, Flood
from tests.acceptance.place import Place

from . import figures
from .form import FORM

SENDERS, INBOX = (16, 1_600) if FORM.name == "brief" else (50, 5_000)
BOUNDS = Bounds(senders=SENDERS, inbox_messages=INBOX, outbox_bytes=256 << 10, body_bytes=200)
TIMES = 10
#: How long blocked senders are watched.
WATCHED_S = 3.0 if FORM.name == "brief" else 10.0

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.mark.parametrize("overflow", ["wait", "refuse"])
def test_a_flood_from_many_processes_keeps_every_bound_and_loses_nothing(place: Place, overflow: str) -> None:
    place.script("fleet.toml", BOUNDS.toml())
    assert place.carry_out("up", "-d").process.returncode == 0
    flood = Flood(place, BOUNDS, overflow=overflow, times=TIMES, wait_s=800.0 if overflow == "wait" else 0.0)
    how = f"{SENDERS} senders, {TIMES} x an inbox of {INBOX:,}, {overflow!r}"
    try:
        stored = flood.until_nothing_moves()
        assert 0 < stored <= INBOX
        before, began_s = flood.spent(), time.monotonic()
        time.sleep(WATCHED_S)
        after, watched_s = flood.spent(), time.monotonic() - began_s
        assert flood.accepted() == stored
        began_s = time.monotonic()
        senders, sink = flood.drain(800.0)
        took_s = time.monotonic() - began_s

        heard = flood.heard_by_sender()
        assert len(heard) == SENDERS
        for name, got in heard.items():
            assert [number for _seq, number in got] == list(range(flood.each)), f"{name}: lost, doubled or out of order"
            assert [seq for seq, _number in got] == list(range(1, flood.each + 1))
        assert sink["deepest"] <= INBOX
        assert flood.most_bytes <= BOUNDS.outbox_bytes
        assert flood.total_bytes <= BOUNDS.fleet_bytes
    finally:
        flood.close()
        place.carry_out("down", "--now")
    figures.note(f"flood, {how}: most in the inbox", sink["deepest"], "", goal=INBOX)
    figures.note(
        "  most bytes of segments of one sender", flood.most_bytes / 1024, "KiB", goal=BOUNDS.outbox_bytes / 1024
    )
    figures.note(
        "  tries in vain for each accepted message", sum(one["tried_in_vain"] for one in senders) / sink["got"], ""
    )
    figures.note("  drained, messages per second", sink["got"] / took_s, "/s")
    seconds = watched_s * SENDERS
    goals = (0.5, 2.0) if overflow == "wait" else (None, None)
    figures.note(
        "  a blocked sender: share of a processor", (after.cpu_ns - before.cpu_ns) / 1e7 / seconds, "%", goal=goals[0]
    )
    figures.note(
        "  a blocked sender: wakes per second", (after.switches - before.switches) / seconds, "/s", goal=goals[1]
    )
