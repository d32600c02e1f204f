"""A command that outlives its killed worker never runs beside its successor.

What works is two forks below the command, in another session, deaf to SIGTERM, with an empty environment: neither group nor session nor
marks nor signals lead to it, only the kernel's re-parenting does. A second living instance of an input would note "overlap".
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from muster.supervise.platform import environ_of, stat_of
from muster.supervise.tree import descendants_of
from muster.testing import eventually

from .commands import OUTLIVE
from .place import PATIENCE_S, PYTHON, Muster, Place, assert_recorded_once

INPUTS = ["a", "b", "c", "d", "e", "f"]


def kill_workers(run: Muster) -> None:
    for pid in run.workers().values():
        os.kill(pid, signal.SIGKILL)


def kill_workers_and_coordinator(run: Muster) -> None:
    pids = [run.coordinator(), *run.workers().values()]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


def kill_workers_while_the_coordinator_is_away(run: Muster) -> None:
    """The coordinator cannot hear of the deaths when they happen: it is stopped, and killed only after the workers are gone."""
    coordinator, workers = run.coordinator(), run.workers()
    assert coordinator is not None
    os.kill(coordinator, signal.SIGSTOP)
    for pid in workers.values():
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: not set(run.workers().values()) & set(workers.values()), PATIENCE_S, "the workers are proven dead"
    )
    os.kill(coordinator, signal.SIGKILL)


def start(place: Place) -> tuple[Muster, Path, list[str]]:
    """A run whose agents all work on the first attempt of an input that only a kill ends."""
    journals = place.work / "journals"
    journals.mkdir()
    command = [*PYTHON, place.script("outlive.py", OUTLIVE), str(journals), "{}"]
    words = ["-j", str(len(INPUTS)), "--results", str(place.work / "results.jsonl"), *command, ":::", *INPUTS]
    run = place.start("run", *words)
    wait_for_starts(journals, len(INPUTS))
    pids = workers_of(journals)
    place.note(pids)
    for pid in pids:
        assert not any(entry.startswith(b"MUSTER") for entry in environ_of(pid))
        stat = stat_of(pid)
        assert stat is not None
        assert stat.parent in run.workers().values(), "it hangs below its worker although it has forked twice"
    return run, journals, words


def workers_of(journals: Path) -> list[int]:
    """Pids of what has started to work."""
    lines = [line for path in journals.glob("[a-z]") for line in path.read_text().splitlines()]
    return [int(line.split()[1]) for line in lines if line.startswith("start")]


def wait_for_starts(journals: Path, count: int) -> None:
    eventually(lambda: len(workers_of(journals)) >= count, PATIENCE_S, f"{count} starts")


def assert_one_after_the_other(journals: Path) -> None:
    for name in INPUTS:
        words = [line.split()[0] for line in (journals / name).read_text().splitlines()]
        assert words == ["start", "start", "end"], f"{name}: {words}"


@pytest.mark.parametrize(
    "kill", [kill_workers, kill_workers_and_coordinator, kill_workers_while_the_coordinator_is_away]
)
def test_what_a_killed_worker_left_is_dead_before_its_task_runs_again(
    place: Place, kill: Callable[[Muster], None]
) -> None:
    run, journals, _ = start(place)
    kill(run)
    assert run.end() == 0, run.errors
    assert_recorded_once(place.work / "results.jsonl", INPUTS)
    assert sorted(run.output.decode().split()) == INPUTS
    assert_one_after_the_other(journals)
    place.assert_nothing_is_left()


def test_what_a_killed_spawner_left_is_dead_before_its_tasks_are_resumed(place: Place) -> None:
    run, journals, words = start(place)
    told = run.ping()
    assert told is not None
    os.kill(told["pid"], signal.SIGKILL)
    assert run.end() == 1
    resumed = place.carry_out("run", "--resume", *words)
    assert resumed.process.returncode == 0, resumed.errors
    assert_recorded_once(place.work / "results.jsonl", INPUTS)
    assert_one_after_the_other(journals)
    place.assert_nothing_is_left()


def test_a_worker_killed_again_and_again_never_doubles_what_it_ran(place: Place) -> None:
    """Four deaths of one task, each while its work is in full swing: below the limit at which it would be given up."""
    journals, results = place.work / "journals", place.work / "results.jsonl"
    journals.mkdir()
    script = place.script("outlive.py", OUTLIVE.replace("600 if first else 0.1", "600"))
    run = place.start("run", "-j", "2", "--results", str(results), *PYTHON, script, str(journals), "{}", ":::", "a")
    for death in range(1, 5):
        wait_for_starts(journals, death)
        worker = workers_of(journals)[-1]
        place.note([worker])
        ancestor = stat_of(worker)
        assert ancestor is not None
        os.kill(ancestor.parent, signal.SIGKILL)
    wait_for_starts(journals, 5)
    assert [line.split()[0] for line in (journals / "a").read_text().splitlines()] == ["start"] * 5
    assert descendants_of(run.process.pid)
    run.process.send_signal(signal.SIGINT)
    run.wait_for("stopping")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    place.assert_nothing_is_left()
