"""Promises of the coordinator under deaths of anybody at any moment. A failure prints its seed; the seed repeats it exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.simulate.planted import PLANTED

from muster.coordinator.tasks import backoff_s
from muster.testing.simulator import simulate
from muster.testing.simulator.__main__ import explain
from muster.testing.simulator.timeline import Process, Timeline

SEEDS, BLOCKS = 100, 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_in_every_seed(block):
    for seed in range(block, SEEDS, BLOCKS):
        outcome = simulate(seed)
        if outcome.violation:
            pytest.fail(explain(outcome), pytrace=False)


def test_the_seeds_have_deaths_of_coordinators_in_them():
    died = [simulate(seed).coordinators - 1 for seed in range(20)]
    assert sum(died) > 20
    assert sum(count > 0 for count in died) > 5


def test_the_same_seed_gives_the_same_history_whatever_the_hash_seed():
    command = [sys.executable, "-m", "muster.testing.simulator", "--seeds", "6", "--json"]
    digests = []
    for hash_seed in ("0", "1"):
        run = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True, timeout=50
        )
        digests.append([json.loads(line)["digest"] for line in run.stdout.splitlines()])
    assert len(set(digests[0])) == 6
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found_within_the_seeds(name):
    for seed in range(SEEDS):
        outcome = simulate(seed, **PLANTED[name])
        if outcome.violation:
            assert f"SEED={seed} TRACE=1" in explain(outcome)
            return
    pytest.fail(f"{name}: {SEEDS} seeds noticed nothing")


def test_what_a_process_cancels_as_it_goes_on_does_not_come_though_it_was_due_while_it_was_stopped():
    timeline = Timeline()
    came: list[str] = []
    process = Process(timeline, "one", 1, lambda _process, _what: None)
    late = process.call_later(2.0, came.append, "late")
    process.call_later(1.0, late.cancel)
    process.call_later(3.0, came.append, "later")
    process.stop()
    while timeline.step():
        pass
    process.go_on()
    while timeline.step():
        pass
    assert came == ["later"]


def test_backoff_of_failed_tasks_is_the_same_in_every_replay():
    waits = [backoff_s(number, failures, 0.5, 60.0) for number in range(1, 200) for failures in (1, 2, 3)]
    assert waits == [backoff_s(number, failures, 0.5, 60.0) for number in range(1, 200) for failures in (1, 2, 3)]
    assert all(0.25 <= backoff_s(number, 1, 0.5, 60.0) < 0.5 for number in range(1, 200))
    assert len({round(backoff_s(number, 1, 0.5, 60.0), 6) for number in range(1, 200)}) > 190
    assert backoff_s(5, 60, 0.5, 60.0) <= 60.0
