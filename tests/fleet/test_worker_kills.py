"""A tenth of the workers is killed every second: each task still runs to its end once, and never twice at a time."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from tests.acceptance.place import Muster, Place, lines_of, wait_for_lines

from muster.core.limits import TASK_DEATHS_MAX

from . import figures
from .form import FORM
from .witness import Witness

#: A tenth of the workers, this often.
PAUSE_S = 1.0
PATIENCE = 10 * FORM.worker_kill_s + 120

pytestmark = [pytest.mark.timeout(int(2 * PATIENCE)), pytest.mark.slow]


class Reaper:
    """Kills a tenth at a time, everybody once before anybody twice: the restart budget of a worker is not what is tested."""

    def __init__(self, run: Muster, agents: int) -> None:
        self.run = run
        self.seed = random.randrange(1 << 32)
        self._chance = random.Random(self.seed)
        self._tenth = max(1, agents // 10)
        self._left: list[str] = []
        self._dead: set[int] = set()
        self.kills = 0

    def strike(self) -> None:
        """SIGKILL a tenth of the workers; those that are being born are let off this time."""
        alive = self.run.workers()
        if len(self._left) < self._tenth:
            fresh = [name for name in sorted(alive) if name not in self._left]
            self._chance.shuffle(fresh)
            self._left = fresh + self._left
        victims = [self._left.pop() for _ in range(min(self._tenth, len(self._left)))]
        for name in victims:
            pid = alive.get(name)
            if pid is not None and pid not in self._dead:
                self._dead.add(pid)
                os.kill(pid, signal.SIGKILL)
                self.kills += 1


def test_a_tenth_of_the_workers_killed_every_second_neither_loses_nor_doubles_anything(place: Place) -> None:
    witness = Witness(place)
    count = int(FORM.agents / 0.5 * (FORM.worker_kill_s + 2))
    inputs = [str(number) for number in range(1, count + 1)]
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = place.start(
        "run", "-j", str(FORM.agents), "--agents-per-worker", "1", "--results", str(results), "--report", str(report),
        "-a", place.inputs(inputs), *witness.command(0),
    )  # fmt: skip
    run.store()
    wait_for_lines(results, 1)
    reaper = Reaper(run, FORM.agents)
    print(f"seed {reaper.seed}")
    began = time.monotonic()
    for second in range(FORM.worker_kill_s):
        reaper.strike()
        time.sleep(max(0.0, began + (second + 1) * PAUSE_S - time.monotonic()))
    assert run.process.poll() is None, "the last kill came too late to mean anything"
    status = run.end(PATIENCE)

    lines = lines_of(results)
    assert sorted(line["task"] for line in lines) == list(range(1, count + 1)), "each task is recorded once"
    # A task that lost its worker five times is given up, with evidence: that is the promise for what kills its workers.
    given_up = [line for line in lines if line["outcome"] != "done"]
    for line in given_up:
        assert line["outcome"] == "dead", line
        assert line["error"]["message"].count("its worker") >= TASK_DEATHS_MAX, line
    assert status == (1 if given_up else 0), run.errors
    told = json.loads(report.read_bytes())
    assert (told["tasks"], told["done"], told["duplicates"]) == (count, count - len(given_up), 0)
    assert told["worker_deaths"] == told["restarts"] == reaper.kills
    done = [line["input"] for line in lines if line["outcome"] == "done"]
    again = witness.assert_none_ran_beside_another(done, interrupted=True)
    assert again > 0, "no kill met a running task"
    place.assert_nothing_is_left()

    figures.note(f"workers killed in {FORM.worker_kill_s} s, of {FORM.agents}", reaper.kills, "")
    figures.note("  tasks that were interrupted and ran again", again, "")
    figures.note("  tasks lost, recorded twice, or run beside themselves", 0, "", goal=0)
    figures.note("  tasks given up after five deaths", len(given_up), "")
