"""However a run of 50 agents ends: the exit status says how, what it recorded is complete, `--resume` does the rest, and nothing is left.

Half of the work resists: it ignores SIGTERM, has children of its own, and one of them has left its session.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from muster.supervise.tree import descendants_of
from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place, assert_recorded_once, count_of, lines_of, wait_for_lines

AGENTS = 50
QUICK = [f"quick-{number}" for number in range(60)]
STUBBORN = [f"stubborn-{number}" for number in range(55)]
#: Prints its input. A stubborn one goes on for ever unless the file `calm` is there; "fails" fails when it is told to.
WORK = """
echo "$1"
test -e calm && exit 0
case $1 in
quick*) exit 0 ;;
fails) until test -e fail; do sleep 0.02; done; exit 7 ;;
esac
trap "" TERM HUP INT
setsid sleep 600 &
sleep 601
"""


class Busy:
    """A run whose quick tasks are recorded and whose agents all work on stubborn ones."""

    def __init__(self, place: Place, *options: str, inputs: list[str], terminal: bool = False) -> None:
        self.place = place
        self.results = place.work / "results.jsonl"
        self.inputs = inputs
        script = place.script("work.sh", WORK)
        words = ["-j", str(AGENTS), "--results", str(self.results), *options, "-a", place.inputs(inputs)]
        self._words = [*words, "sh", script, "{}"]
        self.run = place.start("run", *self._words, terminal=terminal)
        quick = sum(name.startswith("quick") for name in inputs)
        self.stuck = min(AGENTS, len(inputs) - quick)
        wait_for_lines(self.results, quick)
        eventually(lambda: self.count_stubborn() >= self.stuck, PATIENCE_S, f"{self.stuck} stubborn tasks")
        self.run.ping()
        place.note(descendants_of(self.run.process.pid))

    def count_stubborn(self) -> int:
        return sum(_arguments(pid) in {b"sleep 601", b"sleep 0.02"} for pid in descendants_of(self.run.process.pid))

    def assert_complete_so_far(self, done: list[str]) -> None:
        """What was shown is what was recorded, once; and it is exactly what was done."""
        lines = lines_of(self.results)
        assert {line["input"] for line in lines if line["outcome"] == "done"} == set(done)
        assert max(Counter(line["task"] for line in lines).values()) == 1
        shown = Counter(self.run.output.decode().split())
        assert shown == Counter(line["input"] for line in lines if line["stdout"])

    def assert_resumable(self) -> None:
        """The rest is done, and each input has one line in the end."""
        (self.place.work / "calm").touch()
        done = {line["input"] for line in lines_of(self.results) if line["outcome"] == "done"}
        resumed = self.place.carry_out("run", "--resume", *self._words)
        assert resumed.process.returncode == 0, resumed.errors
        assert_recorded_once(self.results, self.inputs)
        assert sorted(resumed.output.decode().split()) == sorted({*self.inputs} - done)


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        return b""


def test_a_run_that_is_complete_leaves_nothing(place: Place) -> None:
    report = place.work / "report.json"
    (place.work / "calm").touch()
    inputs = QUICK + STUBBORN
    script = place.script("work.sh", WORK)
    run = place.start("run", "-j", str(AGENTS), "--report", str(report), "-a", place.inputs(inputs), "sh", script, "{}")
    run.store()
    run.ping()
    assert run.end() == 0, run.errors
    assert sorted(run.output.decode().split()) == sorted(inputs)
    told = json.loads(report.read_bytes())
    assert (told["agents"], told["tasks"], told["done"], told["delivered_ratio"]) == (
        AGENTS,
        len(inputs),
        len(inputs),
        1.0,
    )
    place.assert_nothing_is_left()


# --------------------------------------------------------------------------- stopped from outside


def ctrl_c_and_the_grace_passes(run: Muster) -> None:
    run.type(b"\x03")


def ctrl_c_twice(run: Muster) -> None:
    run.type(b"\x03")
    run.wait_for("Ctrl-C again")
    run.type(b"\x03")


def terminate(run: Muster) -> None:
    run.process.send_signal(signal.SIGTERM)


def hang_up_the_terminal(run: Muster) -> None:
    run.hang_up()


@pytest.mark.parametrize(
    ("stop", "grace", "status"),
    [
        (ctrl_c_and_the_grace_passes, "1s", 130),
        (ctrl_c_twice, "10m", 130),
        (terminate, "1s", 143),
        (hang_up_the_terminal, "1s", 129),
    ],
)
def test_a_run_that_is_stopped_leaves_nothing_but_its_results(
    place: Place, stop: Callable[[Muster], None], grace: str, status: int
) -> None:
    busy = Busy(place, "--grace", grace, inputs=QUICK + STUBBORN, terminal=True)
    stop(busy.run)
    assert busy.run.end() == status, busy.run.errors
    place.assert_nothing_is_left()
    busy.assert_complete_so_far(QUICK)
    busy.assert_resumable()
    place.assert_nothing_is_left()


def test_ctrl_c_lets_running_tasks_finish_and_starts_no_other(place: Place) -> None:
    results, started = place.work / "results.jsonl", place.work / "started"
    inputs = [f"task-{number}" for number in range(200)]
    work = place.script("work.sh", f'echo "$1" >> {started}; sleep 0.4; echo "$1"')
    words = ["-j", str(AGENTS), "--results", str(results), "-a", place.inputs(inputs), "sh", work, "{}"]
    run = place.start("run", *words, terminal=True)
    wait_for_lines(results, 10)
    run.ping()
    run.type(b"\x03")
    assert run.end() == 130, run.errors
    place.assert_nothing_is_left()
    begun = started.read_text().split()
    assert len(begun) < len(inputs), "it was over before it was stopped: nothing was proven"
    assert sorted(line["input"] for line in lines_of(results)) == sorted(begun) == sorted(run.output.decode().split())
    assert {line["outcome"] for line in lines_of(results)} == {"done"}
    assert place.carry_out("run", "--resume", *words).process.returncode == 0
    assert_recorded_once(results, inputs)
    assert sorted(started.read_text().split()) == sorted(inputs), "each has run once"
    place.assert_nothing_is_left()


def test_a_killed_command_line_takes_its_fleet_along(place: Place) -> None:
    busy = Busy(place, "--grace", "1s", inputs=QUICK + STUBBORN)
    busy.run.process.kill()
    assert busy.run.end() == -signal.SIGKILL
    eventually(lambda: not place.processes() and not place.files(), PATIENCE_S, "the fleet has ended by itself")
    place.assert_nothing_is_left()
    assert {line["input"] for line in lines_of(busy.results)} == set(QUICK)
    busy.assert_resumable()


# --------------------------------------------------------------------------- stopped by itself


def test_a_halted_run_kills_what_runs_and_leaves_nothing(place: Place) -> None:
    busy = Busy(place, "--halt", "now,fail=1", inputs=[*QUICK, "fails", *STUBBORN])
    (place.work / "fail").touch()
    assert busy.run.end() == 3, busy.run.errors
    place.assert_nothing_is_left()
    busy.assert_complete_so_far(QUICK)
    failed = [line for line in lines_of(busy.results) if line["outcome"] == "failed"]
    assert [(line["input"], line["exit_status"]) for line in failed] == [("fails", 7)]
    busy.assert_resumable()


def test_tasks_over_their_time_are_killed_with_all_that_resists(place: Place) -> None:
    results = place.work / "results.jsonl"
    inputs = STUBBORN[:AGENTS]
    words = ["-j", str(AGENTS), "--results", str(results), "-a", place.inputs(inputs)]
    command = ["sh", place.script("work.sh", WORK), "{}"]
    run = place.carry_out("run", "--timeout", "2s", *words, *command)
    assert run.process.returncode == 1, run.errors
    place.assert_nothing_is_left()
    lines = lines_of(results)
    assert sorted(line["input"] for line in lines) == sorted(inputs)
    assert {line["outcome"] for line in lines} == {"timeout"}
    assert min(line["duration_s"] for line in lines) >= 2
    (place.work / "calm").touch()
    assert place.carry_out("run", "--resume", *words, *command).process.returncode == 0
    assert_recorded_once(results, inputs)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true", "{}", ":::", "a"], 0),
        (["sh", "-c", "exit $0", ":::", "0", "3"], 1),
        (["--retries", "-1", "true", ":::", "a"], 2),
        (["no-such-command-anywhere", ":::", "a"], 2),
        (["--halt", "soon,fail=1", "false", ":::", "a", "b"], 3),
    ],
)
def test_the_exit_status_says_how_it_ended(place: Place, words: list[str], status: int) -> None:
    run = place.carry_out("run", "-j", "1", *words)
    assert run.process.returncode == status, run.errors
    assert "Traceback" not in run.errors
    assert not place.processes()


def test_a_store_is_not_left_behind_when_the_run_cannot_start(place: Place) -> None:
    directory = place.work / "is-a-directory"
    directory.mkdir()
    run = place.carry_out("run", "--results", str(directory), "true", ":::", "a")
    assert run.process.returncode == 1, run.errors
    assert not place.root.exists() or not place.files()
    assert count_of(place.work / "none") == 0
    assert os.listdir(directory) == []
