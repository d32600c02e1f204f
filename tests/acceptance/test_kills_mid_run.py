"""2,000 real files through 50 agents: the same bytes as without muster, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from muster.core import limits
from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place, assert_recorded_once, count_of, wait_for_lines

WORKER_KILLS = 14
COORDINATOR_KILLS = 4


def hashing(place: Place, files: list[str], *options: str) -> Muster:
    return place.start("run", "-j", "50", *options, "-a", place.inputs(files), "sha256sum", "{}")


def test_a_run_over_2000_files_says_what_sha256sum_says(
    place: Place, real_files: list[str], hashed_directly: list[bytes]
) -> None:
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = hashing(place, real_files, "--results", str(results), "--report", str(report))
    assert run.end() == 0, run.errors
    assert sorted(run.output.splitlines()) == sorted(hashed_directly)
    assert_recorded_once(results, real_files)
    told = json.loads(report.read_bytes())
    assert (told["agents"], told["tasks"], told["done"], told["failed"]) == (50, 2000, 2000, 0)
    assert (told["delivered_ratio"], told["duplicates"], told["reassigned"], told["restarts"]) == (1.0, 0, 0, 0)
    place.assert_nothing_is_left()


def test_keep_order_prints_in_the_order_of_the_inputs(
    place: Place, real_files: list[str], hashed_directly: list[bytes]
) -> None:
    run = hashing(place, real_files, "--keep-order")
    assert run.end() == 0, run.errors
    assert run.output.splitlines() == hashed_directly


@pytest.mark.parametrize("order", [(), ("--keep-order",)], ids=["as-they-end", "keep-order"])
def test_killed_workers_and_coordinators_change_nothing(
    place: Place, real_files: list[str], hashed_directly: list[bytes], order: tuple[str, ...]
) -> None:
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = hashing(place, real_files, *order, "--results", str(results), "--report", str(report))
    killed_workers, killed_coordinators = kill_at_random(run, results, len(real_files))
    assert run.end() == 0, run.errors
    output = run.output.splitlines()
    assert sorted(output) == sorted(hashed_directly)
    if order:
        assert output == hashed_directly
    assert_recorded_once(results, real_files)
    told = json.loads(report.read_bytes())
    assert (told["tasks"], told["done"], told["failed"], told["duplicates"]) == (2000, 2000, 0, 0)
    assert told["restarts"] == told["worker_deaths"] == killed_workers
    assert told["coordinator_restarts"] == killed_coordinators
    assert told["reassigned"] > 0, "none of the killed workers held a task"
    place.assert_nothing_is_left()


def kill_at_random(run: Muster, results: Path, total: int) -> tuple[int, int]:
    """SIGKILL workers and coordinators, spread over the first four fifths of the run; how many of each."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    plan = ["worker"] * WORKER_KILLS + ["coordinator"] * COORDINATOR_KILLS
    chance.shuffle(plan)
    run.store()
    killed: set[int] = set()
    deaths: Counter[str] = Counter()
    limit = {"worker": limits.RESTARTS_MAX, "coordinator": limits.COORDINATOR_RESTARTS_MAX}  # beyond it they stay dead
    for at, kind in enumerate(plan):
        threshold = (at + 1) * total * 4 // 5 // len(plan)
        wait_for_lines(results, threshold)

        def victim(kind: str = kind) -> tuple[str, int] | None:
            alive = {kind: run.coordinator()} if kind == "coordinator" else run.workers()
            fresh = [
                (name, pid) for name, pid in alive.items() if pid and pid not in killed and deaths[name] < limit[kind]
            ]
            return chance.choice(fresh) if fresh else None

        found = eventually(victim, PATIENCE_S, f"a living {kind}")
        assert found is not None
        deaths[found[0]] += 1
        killed.add(found[1])
        os.kill(found[1], signal.SIGKILL)
    assert count_of(results) < total, "the kills came too late to mean anything"
    return WORKER_KILLS, COORDINATOR_KILLS
