"""Hybrid fleets from the command line: tasks through teams, deaths of every coordinator, a team that is given up."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world, lines_of, wait_for_lines

pytestmark = pytest.mark.timeout(180)

TASKS = 120
#: Each execution leaves a line, so that one that ran twice is seen.
WORK = 'echo {input} >> "$RAN"; sleep 0.2; echo out {input}'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        one.env["RAN"] = str(one.work / "ran")
        yield one


def start_run(world: World, *options: str, tasks: int = TASKS) -> tuple[object, Path]:
    results = world.work / "results.jsonl"
    words = ["run", "-j", "6", "--agents-per-worker", "1", "--agents-per-team", "2", "--results", str(results), *options]
    return world.start(*words, "--shell", WORK, ":::", *map(str, range(1, tasks + 1))), results


def executions(world: World) -> Counter[str]:
    return Counter((world.work / "ran").read_text().split())


def kill(world: World, role: str, name: str) -> None:
    os.kill(world.pid_of(role, name), signal.SIGKILL)


def assert_done_once(world: World, run: object, results: Path, *, died: int = 0) -> None:
    """Every task is recorded once, shown once, and was executed once, or once more for an attempt that died."""
    ended = world.finish(run)  # type: ignore[arg-type]
    assert ended.returncode == 0, ended.stderr
    wanted = [str(number) for number in range(1, TASKS + 1)]
    assert sorted(str(line["task"]) for line in lines_of(results)) == sorted(wanted)
    assert sorted(ended.stdout.split("\n")[:-1]) == sorted(f"out {number}" for number in wanted)
    ran = executions(world)
    assert set(ran) == set(wanted)
    assert sum(ran.values()) - TASKS <= died, [number for number, count in ran.items() if count > 1]
    world.assert_nothing_left()


def test_a_run_in_teams_does_every_task_once_and_says_which_agent_did_it(world: World) -> None:
    run, results = start_run(world)
    wait_for_lines(results, 1)
    roles = Counter(row["role"] for row in world.ps())
    assert (roles["coordinator"], roles["team"], roles["worker"]) == (1, 3, 6)
    assert_done_once(world, run, results)
    assert {line["agent"] for line in lines_of(results)} == {f"w-{number}" for number in range(1, 7)}


@pytest.mark.parametrize(
    "victims",
    [[("team", "team-2")], [("coordinator", "coordinator")], [("team", "team-1"), ("coordinator", "coordinator")]],
    ids=["team", "root", "both"],
)
def test_a_coordinator_killed_at_work_is_followed_by_one_that_loses_and_repeats_nothing(
    world: World, victims: list[tuple[str, str]]
) -> None:
    run, results = start_run(world)
    for lines in (10, 60):
        wait_for_lines(results, lines)
        for role, name in victims:
            kill(world, role, name)
    assert_done_once(world, run, results)


def test_coordinators_and_workers_killed_at_random_lose_nothing(world: World) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    run, results = start_run(world)
    died = 0
    for lines in range(5, TASKS - 30, 10):
        wait_for_lines(results, lines)
        rows = [row for row in world.ps() if row["role"] != "spawner" and row["pid"]]
        if not rows:
            break  # the machine was so slow that the run is over
        row = chance.choice(rows)
        died += row["role"] == "worker"
        os.kill(row["pid"], signal.SIGKILL)
    assert_done_once(world, run, results, died=died)
