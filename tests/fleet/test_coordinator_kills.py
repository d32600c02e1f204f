"""The coordinator is killed again and again while hundreds of agents work: the work goes on, and nobody can tell from the results."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from tests.acceptance.place import PATIENCE_S, Muster, Place, assert_recorded_once, wait_for_lines

from muster.testing import eventually

from . import figures
from .follower import Follower
from .form import COORDINATOR_PAUSE_S, FORM
from .witness import Witness

#: How long one task takes, about. Nothing is prefetched behind tasks of this length: who starts one was just given it.
TASK_S = 1.5
PATIENCE = 4 * COORDINATOR_PAUSE_S * FORM.coordinator_kills + 120

pytestmark = [pytest.mark.timeout(int(2 * PATIENCE)), pytest.mark.slow]


def kill_coordinator(run: Muster, before: set[int]) -> float:
    """SIGKILL a coordinator that is not one of `before`; when."""
    pid = eventually(
        lambda: (run.coordinator() or 0) not in {0, *before} and run.coordinator(), PATIENCE_S, "a new one"
    )
    assert pid
    before.add(pid)
    killed_s = time.time()
    os.kill(pid, signal.SIGKILL)
    return killed_s


def wait_for_recovery(follower: Follower, count: int) -> None:
    """Until so many coordinators have given out their first task."""
    eventually(lambda: len(follower.recoveries) >= count, PATIENCE_S, f"a task is given out after kill {count}")


def test_a_coordinator_killed_again_and_again_neither_loses_nor_doubles_anything(place: Place) -> None:
    witness = Witness(place)
    count = int(FORM.agents / TASK_S * COORDINATOR_PAUSE_S * (FORM.coordinator_kills + 0.5))
    inputs = [str(number) for number in range(1, count + 1)]
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = place.start(
        "run", "-j", str(FORM.agents), "--agents-per-worker", "1", "--results", str(results), "--report", str(report),
        "-a", place.inputs(inputs), *witness.command(int(TASK_S)),
    )  # fmt: skip
    follower = Follower(run.store() / "coordinator" / "log")
    wait_for_lines(results, 1)
    seen: set[int] = set()
    kills: list[float] = []
    for number in range(FORM.coordinator_kills):
        kills.append(kill_coordinator(run, seen))
        wait_for_recovery(follower, number + 1)
        time.sleep(max(0.0, kills[-1] + COORDINATOR_PAUSE_S - time.time()))
    assert run.process.poll() is None, "the last kill came too late to mean anything"
    assert run.end(PATIENCE) == 0, run.errors
    follower.stop()

    assert_recorded_once(results, inputs)
    told = json.loads(report.read_bytes())
    assert (told["tasks"], told["done"], told["failed"], told["duplicates"]) == (count, count, 0, 0)
    assert told["delivered_ratio"] == 1.0
    assert told["coordinator_restarts"] == FORM.coordinator_kills
    assert told["worker_deaths"] == told["restarts"] == told["stale_refused"] == 0
    witness.assert_none_ran_beside_another(inputs, interrupted=False)
    place.assert_nothing_is_left()

    assert len(follower.recoveries) == len(kills)
    waits = sorted(found.assigned_s - killed_s for found, killed_s in zip(follower.recoveries, kills, strict=True))
    title = f"{len(kills)} kills of the coordinator of {FORM.agents} agents: kill to first assignment"
    figures.note(f"{title}, median", waits[len(waits) // 2], "s", goal=2.0)
    figures.note(f"{title}, worst", waits[-1], "s", goal=2.0)
