"""The spawner is killed, or everything at once: `--resume` completes the run, and nothing old runs beside anything new."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from muster.supervise.tree import descendants_of, is_gone, start_time_of
from muster.testing import eventually

from .commands import ONE_AT_A_TIME
from .place import PATIENCE_S, PYTHON, Muster, Place, assert_recorded_once, lines_of, wait_for_lines

INPUTS = [f"input-{number}" for number in range(1, 25)]
AGENTS = 8


def kill_the_spawner(run: Muster) -> None:
    """Its workers hear of it from the kernel and end what they run."""
    told = run.ping()
    assert told is not None
    os.kill(told["pid"], signal.SIGKILL)


def kill_the_tree(run: Muster) -> None:
    """Command line, spawner, coordinator, workers and commands, top down."""
    run.ping()
    pids = [run.process.pid, *descendants_of(run.process.pid)]
    run.place.note(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all_but_the_commands(run: Muster) -> None:
    """The worst: all that could have ended the commands is stopped first, so that none of it can react, and dies; the commands live on."""
    told = run.ping()
    assert told is not None
    fleet = [run.process.pid, told["pid"], told["coordinator"]["pid"], *(worker["pid"] for worker in told["workers"])]
    commands = [pid for pid in descendants_of(run.process.pid) if pid not in fleet]
    run.place.note(commands)
    identified = [(pid, start_time_of(pid) or 0) for pid in commands]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in fleet:
            os.kill(pid, number)
    run.process.wait()
    alive = [pid for pid, started in identified if not is_gone(pid, started)]
    assert alive, "no command has survived: this test would prove nothing"


@pytest.mark.parametrize(
    ("kill", "wrapper"),
    [
        (kill_the_spawner, []),
        (kill_the_tree, []),
        (kill_all_but_the_commands, []),
        (kill_all_but_the_commands, ["env", "-i"]),  # nothing in its environment tells whose it is
    ],
    ids=["spawner", "tree", "all-but-the-commands", "all-but-commands-without-environment"],
)
def test_resume_completes_a_killed_run_and_runs_nothing_beside_its_remains(
    place: Place, kill: Callable[[Muster], None], wrapper: list[str]
) -> None:
    results, journals = place.work / "results.jsonl", place.work / "journals"
    journals.mkdir()
    command = [*wrapper, *PYTHON, place.script("one_at_a_time.py", ONE_AT_A_TIME), str(journals), "1", "{}"]
    words = ["run", "-j", str(AGENTS), "--results", str(results), "-a", place.inputs(INPUTS), *command]
    run = place.start(*words)
    wait_for_lines(results, 1)
    kill(run)
    status = run.end()
    assert status in {1, -signal.SIGKILL}, run.errors
    if status == 1:
        assert "what it recorded is safe" in run.errors
    recorded = {line["input"] for line in lines_of(results)}
    assert 0 < len(recorded) < len(INPUTS)

    resumed = place.carry_out(words[0], "--resume", *words[1:])
    assert resumed.end() == 0, resumed.errors
    assert_recorded_once(results, INPUTS)
    assert {*resumed.output.decode().split()} == {*INPUTS} - recorded
    for name in INPUTS:
        assert_ran_alone(journals / name, once=name in recorded)
    place.assert_nothing_is_left()


def assert_ran_alone(journal: Path, *, once: bool) -> None:
    """No instance met a living one of the same input; a recorded one has not run again; a cut off one ran once more."""
    words = Counter(line.split()[0] for line in journal.read_text().splitlines())
    assert words["overlap"] == 0, journal.read_text()
    assert words["start"] == 1 if once else 1 <= words["start"] <= 2, journal.read_text()
    assert words["end"] >= 1


def test_resume_of_a_run_that_still_runs_is_refused_and_harms_nothing(place: Place) -> None:
    results = place.work / "results.jsonl"
    words = ["--results", str(results), "sh", "-c", 'while ! test -e go; do sleep 0.05; done; echo "$1"', "sh", "{}"]
    run = place.start("run", "-j", "2", *words, ":::", "a", "b")
    run.store()
    second = place.carry_out("run", "--resume", "-j", "2", *words, ":::", "a", "b")
    assert second.process.returncode == 1
    assert "another run is writing" in second.errors
    (place.work / "go").touch()
    assert run.end() == 0, run.errors
    assert_recorded_once(results, ["a", "b"])
    place.assert_nothing_is_left()


def test_a_results_line_torn_by_a_crash_is_cut_and_its_task_runs_again(place: Place) -> None:
    results = place.work / "results.jsonl"
    words = ["-j", "2", "--results", str(results), "echo", "{}", ":::", *INPUTS[:10]]
    assert place.carry_out("run", *words).process.returncode == 0
    with results.open("r+b") as file:
        file.truncate(results.stat().st_size - 7)
    resumed = place.carry_out("run", "--resume", *words)
    assert resumed.process.returncode == 0, resumed.errors
    assert "cut a torn line" in resumed.errors
    assert len(resumed.output.splitlines()) == 1
    assert_recorded_once(results, INPUTS[:10])


def test_leftovers_of_a_crash_are_found_and_ended_by_doctor(place: Place) -> None:
    run = place.start("run", "-j", "4", "sleep", "{}", ":::", "600", "601", "602", "603")
    store = run.store()
    eventually(lambda: len(run.workers()) == 4, PATIENCE_S, "four workers")
    eventually(lambda: sum("sleep" in words for words in arguments(run)) == 4, PATIENCE_S, "four commands")
    kill_all_but_the_commands(run)
    assert place.processes()
    doctor = place.carry_out("doctor", "--fix")
    assert store.name in (doctor.output.decode() + doctor.errors)
    place.assert_nothing_is_left()


def arguments(run: Muster) -> list[str]:
    """First argument of every process below the command line."""
    words = []
    for pid in descendants_of(run.process.pid):
        with contextlib.suppress(OSError):
            words.append(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
    return words
