"""Ten times what an inbox may hold: senders are slowed, nothing accepted is lost, and no bound is passed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muster.bus.transports.lanes import inspect
from muster.core import limits
from muster.testing import eventually

from .flood import Bounds, Flood
from .place import PATIENCE_S, Place

#: Four senders; the inbox is full long before their segments are.
MESSAGES_BITE = Bounds(senders=4, inbox_messages=600, outbox_bytes=256 << 10, body_bytes=200)
#: The same with large bodies: what each sender may hold in bytes is used up first.
BYTES_BITE = Bounds(senders=4, inbox_messages=600, outbox_bytes=128 << 10, body_bytes=4000)
#: How long blocked senders are watched. Each may wake once a second, to ring again; whoever polled would wake a hundred times.
WATCHED_S = 3.0
WAKES_PER_S_MAX = 8


@pytest.mark.parametrize("overflow", ["wait", "refuse"])
@pytest.mark.parametrize("bounds", [MESSAGES_BITE, BYTES_BITE], ids=["messages", "bytes"])
def test_a_flood_of_ten_times_the_capacity_slows_senders_loses_nothing_and_stays_within_bounds(
    place: Place, bounds: Bounds, overflow: str
) -> None:
    place.script("fleet.toml", bounds.toml())
    assert place.carry_out("up", "-d").process.returncode == 0
    flood = Flood(place, bounds, overflow=overflow, times=10, wait_s=600.0 if overflow == "wait" else 0.0)
    try:
        stored = flood.until_nothing_moves()
        assert 0 < stored <= bounds.inbox_messages, "an inbox held more than its bound"
        if overflow == "wait":
            before = flood.spent()
            time.sleep(WATCHED_S)  # not for luck: whatever happens in this time counts
            after = flood.spent()
            assert after.switches - before.switches <= WAKES_PER_S_MAX * WATCHED_S * bounds.senders, "they poll"
            assert after.cpu_ns - before.cpu_ns <= 0.02 * WATCHED_S * 1e9 * bounds.senders
        assert flood.accepted() == stored, "something was accepted although nothing was taken"

        senders, sink = flood.drain(300.0)
        heard = flood.heard_by_sender()
        assert {name: [number for _seq, number in got] for name, got in heard.items()} == {
            told["sender"]: list(range(told["accepted"])) for told in senders
        }, "each accepted message comes once, in the order in which it was sent"
        assert all([seq for seq, _number in got] == list(range(1, len(got) + 1)) for got in heard.values())
        assert sum(map(len, heard.values())) == sink["got"] == bounds.senders * flood.each
        assert sink["deepest"] <= bounds.inbox_messages
        assert flood.most_bytes <= bounds.outbox_bytes, "a sender held more bytes than it may"
        assert flood.total_bytes <= bounds.fleet_bytes
        if overflow == "wait":
            assert [told["refused"] for told in senders] == [0] * bounds.senders
            # At first, after the wish to be rung is stored, and at the ring of each ack; hardly ever by the clock.
            assert all(told["tried_in_vain"] <= 3 * told["accepted"] + 100 for told in senders), "they try unrung"
        else:
            assert all(told["refused"] > 0 for told in senders), "a sender was never slowed"
    finally:
        flood.close()
        place.carry_out("down", "--now")


#: `giver.py NAME COUNT`: gives COUNT tasks as fast as the coordinator takes them in.
GIVER = """
import asyncio, sys, muster

async def main(name, count):
    async with muster.join(name, wait_s=30) as me:
        for number in range(count):
            await me.send("coordinator", f"{name}.{number}", type="task@w", wait_s=600)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
GIVERS, CAPACITY = 3, 60


def test_a_flood_of_tasks_slows_assignment_and_overfills_nobody_even_where_a_worker_is_stopped(place: Place) -> None:
    """One agent's inbox is full of what its command never reads, another one's worker is stopped: the others do the work."""
    place.script(
        "fleet.toml",
        f'[fleet]\nname = "flood"\n[agents.w]\ncount = 3\nshell = true\ncommand = "echo {{}} >> {place.work}/done"\n'
        f"[bus]\nagents_max = 12\ninbox_messages_max = {CAPACITY}\nlane_messages_max = {CAPACITY}\n",
    )
    assert place.carry_out("up", "-d").process.returncode == 0
    store, done = place.root / "flood", place.work / "done"
    env = place.env | {"MUSTER_STORE": str(store)}
    stopped: int | None = None
    givers: list[subprocess.Popen[bytes]] = []
    try:
        fill(place, "w-1")
        told = place.start("ps", "--json")
        assert told.end() == 0
        workers = {row["name"]: row["pid"] for row in json.loads(told.output) if row["role"] == "worker"}
        stopped = workers["w-2"]
        os.kill(stopped, signal.SIGSTOP)
        script, each = place.script("giver.py", GIVER), 10 * CAPACITY // GIVERS
        givers = [
            subprocess.Popen([sys.executable, script, f"g-{number}", str(each)], cwd=place.work, env=env)
            for number in range(GIVERS)
        ]
        deepest = dict.fromkeys(("w-1", "w-2", "w-3"), 0)

        def nearly_all_done() -> bool:
            for agent in deepest:
                deepest[agent] = max(deepest[agent], assigned(store, agent))
            return done.exists() and len(done.read_text().splitlines()) >= GIVERS * each - HELD_MAX

        eventually(nearly_all_done, 300.0, "the others do the work")
        assert all(depth <= HELD_MAX for depth in deepest.values()), (
            f"more was assigned than can be worked on: {deepest}"
        )
        assert deepest["w-2"] > 0, "nothing was assigned to the stopped one, so nothing was tried"
        os.kill(stopped, signal.SIGCONT)
        stopped = None
        wanted = sorted(f"g-{giver}.{number}" for giver in range(GIVERS) for number in range(each))
        eventually(lambda: sorted(done.read_text().split()) == wanted, 2 * PATIENCE_S, "every task is done once")
        assert [giver.wait(PATIENCE_S) for giver in givers] == [0] * GIVERS
    finally:
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
        for giver in givers:
            giver.kill()
            giver.wait()
        place.carry_out("down", "--now")


#: Assignments that one agent may have: its slot, and what is prefetched.
HELD_MAX = 1 + limits.PREFETCH


def fill(place: Place, agent: str) -> None:
    """Send until the inbox takes no more."""
    for _ in range(CAPACITY + 1):
        refused = place.carry_out("send", agent, "nobody reads this")
        if refused.process.returncode:
            assert "grants no more" in refused.errors
            return
    raise AssertionError("an inbox took more than its bound")


def assigned(store: Path, agent: str) -> int:
    """Assignments in an agent's inbox that it has not taken note of."""
    return sum(
        kind == "task.assign"
        for view in inspect.lanes_to(store, agent)
        for kind in inspect.unfinalised_types(store, view)
    )
