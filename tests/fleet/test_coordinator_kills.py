"""The coordinator is killed again and again while hundreds of agents work: the work goes on, and nobody can tell from the results."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.acceptance.place import Place, assert_recorded_once, wait_for_lines

from muster.core.names import COORDINATOR
from muster.testing import eventually

from . import figures
from .form import COORDINATOR_PAUSE_S, FORM
from .kills import Kills
from .standing import Standing
from .witness import Witness

#: How long one task takes, about. Nothing is prefetched behind tasks of this length: who starts one was just given it.
TASK_S = 1.5
PATIENCE = 4 * COORDINATOR_PAUSE_S * FORM.coordinator_kills + 120

pytestmark = [pytest.mark.timeout(int(3 * PATIENCE) + 600), pytest.mark.slow]

BACKLOG = """
[fleet]
name = "harbour"

[agents.quick]
count = 2
handler = "hand:work"
slots = 64

[agents.w]
count = {agents}
command = {command}
"""
HANDLER = """
async def work(number):
    return number
"""
#: Tasks in one message.
BATCH = 500


def test_a_coordinator_killed_again_and_again_neither_loses_nor_doubles_anything(place: Place) -> None:
    witness = Witness(place)
    count = int(FORM.agents / TASK_S * COORDINATOR_PAUSE_S * (FORM.coordinator_kills + 0.5))
    inputs = [str(number) for number in range(1, count + 1)]
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = place.start(
        "run", "-j", str(FORM.agents), "--agents-per-worker", "1", "--results", str(results), "--report", str(report),
        "-a", place.inputs(inputs), *witness.command(int(TASK_S)),
    )  # fmt: skip
    store = run.store()
    kills = Kills(store / "coordinator", run.coordinator)
    wait_for_lines(results, 1)
    for _ in range(FORM.coordinator_kills):
        kills.strike()
        time.sleep(max(0.0, kills.at_s[-1] + COORDINATOR_PAUSE_S - time.time()))
    assert run.process.poll() is None, "the last kill came too late to mean anything"
    noted = [line for line in (store / "events.jsonl").read_text().splitlines() if '"event":"worker.' in line]
    assert run.end(PATIENCE) == 0, run.errors

    assert_recorded_once(results, inputs)
    told = json.loads(report.read_bytes())
    assert (told["tasks"], told["done"], told["failed"], told["duplicates"]) == (count, count, 0, 0)
    assert told["delivered_ratio"] == 1.0
    assert told["coordinator_restarts"] == FORM.coordinator_kills
    # Nobody but coordinators was killed: no worker may have been taken for dead, nor any answer for an old one.
    assert (told["worker_deaths"], told["restarts"], told["stale_refused"]) == (0, 0, 0), noted
    witness.assert_none_ran_beside_another(inputs, interrupted=False)
    place.assert_nothing_is_left()
    kills.note(f"{FORM.coordinator_kills} kills of the coordinator of {FORM.agents} agents")
    figures.note("  tasks recorded once, of as many", len(inputs), "", goal=count, at_least=True)


def test_a_coordinator_with_much_behind_and_much_before_it_is_soon_at_work_again(place: Place) -> None:
    witness = Witness(place)
    (place.work / "hand.py").write_text(HANDLER)
    command = json.dumps(witness.command(int(TASK_S), "{input}"))
    standing = Standing(place, BACKLOG.format(agents=FORM.agents, command=command), patience_s=PATIENCE)
    finished, total = FORM.finished, FORM.finished + FORM.open_tasks
    standing.speak(submit(standing, range(1, finished + 1), "quick"))
    wait_for_done(standing, finished, 60 + finished / 50)
    standing.speak(submit(standing, range(finished + 1, total + 1), "w"))
    kills = Kills(standing.store / "coordinator", lambda: standing.ping()["coordinator"]["pid"])
    eventually(lambda: witness.started() > FORM.agents // 2, PATIENCE, "agents work on the open tasks")
    for _ in range(3):
        kills.strike()
    wait_for_done(standing, total, PATIENCE + 20 * FORM.open_tasks * TASK_S / FORM.agents)
    told = standing.speak(status(standing))
    assert {key: count for key, count in told["tasks"].items() if count} == {"submitted": total, "done": total}
    inputs = [str(number) for number in range(finished + 1, total + 1)]
    witness.assert_none_ran_beside_another(inputs, interrupted=False)
    kills.note(f"{FORM.agents} agents, {finished:,} tasks finished, {FORM.open_tasks:,} open")
    standing.down()


async def submit(standing: Standing, numbers: range, kind: str) -> None:
    """Send tasks whose input is their number, as many to a message as fit well."""
    async with await standing.operator() as bus:
        for first in range(0, len(numbers), BATCH):
            tasks = [[number, number, kind] for number in numbers[first : first + BATCH]]
            await bus.send(COORDINATOR, {"tasks": tasks}, type="task.submit", wait_s=60.0)


async def status(standing: Standing) -> dict[str, Any]:
    """What the coordinator says of the fleet as a whole."""
    async with await standing.operator() as bus:
        return await standing.status(bus)


def wait_for_done(standing: Standing, count: int, patience_s: float) -> None:
    """Until so many tasks are done."""
    eventually(
        lambda: standing.speak(status(standing))["tasks"]["done"] >= count, patience_s, f"{count} tasks are done"
    )
