"""Hybrid fleets from the command line: tasks through teams, deaths of every coordinator, a team that is given up."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world, lines_of, wait_for_lines

pytestmark = pytest.mark.timeout(180)

TASKS = 200
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


def test_a_team_whose_coordinator_cannot_be_kept_alive_works_on_in_other_teams(world: World) -> None:
    run, results = start_run(world)
    wait_for_lines(results, 5)
    others = {row["name"]: row["pid"] for row in world.ps() if row["name"] in ("team-1", "team-3")}
    give_up(world, "team-2")
    began = time.monotonic()

    def owners() -> bool:
        return {"w-3", "w-4"} <= {line["agent"] for line in lines_of(results)[before:]}

    before = len(lines_of(results))
    eventually(owners, 10.0, "the agents of team-2 work for others")
    print(f"after {time.monotonic() - began:.1f} s")
    assert others == {row["name"]: row["pid"] for row in world.ps() if row["role"] == "team"}
    assert_done_once(world, run, results)


def give_up(world: World, team: str) -> None:
    """Kill a team's coordinator whenever it is there, until it is started no more."""
    last, alone_since = 0, time.monotonic()
    while time.monotonic() - alone_since < 2.5:
        for row in world.ps():
            if row["name"] == team and row["pid"] not in (None, last):
                last, alone_since = row["pid"], time.monotonic()
                os.kill(last, signal.SIGKILL)


def noted(store: Path, event: str) -> bool:
    """Whether the event log of a fleet has such an entry."""
    path = store / "events.jsonl"
    return path.exists() and f'"event":"{event}"' in path.read_text()


def test_a_root_killed_while_it_dissolves_a_team_goes_on_with_that(world: World) -> None:
    run, results = start_run(world, "--name", "heirs")
    wait_for_lines(results, 5)
    last = 0
    while not noted(world.root / "heirs", "team.given_up"):
        for row in world.ps():
            if row["name"] == "team-2" and row["pid"] not in (None, last):
                last = row["pid"]
                os.kill(last, signal.SIGKILL)
    kill(world, "coordinator", "coordinator")
    eventually(lambda: noted(world.root / "heirs", "team.dissolved"), PATIENCE_S, "the team is at its end")
    kill(world, "coordinator", "coordinator")
    assert_done_once(world, run, results)


def test_a_team_whose_log_is_destroyed_is_given_up_and_its_attempts_run_again(world: World) -> None:
    run, results = start_run(world, "--name", "torn")
    wait_for_lines(results, 5)
    log = world.root / "torn" / "coordinator-team-2" / "log"
    for path in log.iterdir():
        path.write_bytes(os.urandom(8192))
    kill(world, "team", "team-2")
    eventually(lambda: noted(world.root / "torn", "team.dissolved"), PATIENCE_S, "the team is at its end")
    # Up to two attempts were running when its workers were killed, and two waited.
    assert_done_once(world, run, results, died=4)


def test_a_fleet_that_ends_while_a_team_is_dissolved_leaves_nothing(world: World) -> None:
    run, results = start_run(world, "--name", "late", "--grace", "3s")
    wait_for_lines(results, 5)
    last = 0
    while not noted(world.root / "late", "team.given_up"):
        for row in world.ps():
            if row["name"] == "team-2" and row["pid"] not in (None, last):
                last = row["pid"]
                os.kill(last, signal.SIGKILL)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)  # type: ignore[attr-defined]
    ended = world.finish(run)  # type: ignore[arg-type]
    assert time.monotonic() - began < 3 + 1 + 3, "grace, a second, and room for a busy machine"
    assert ended.returncode == 130, ended.stderr
    world.assert_nothing_left()
    ran = executions(world)
    assert len(lines_of(results)) == sum(ran.values()), "what was begun was finished"
