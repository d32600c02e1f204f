"""`muster run` over 2,000 times `true`, beside xargs -P and GNU parallel at the same number of jobs."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.setting import muster_program, program, program_environment, scratch

TASKS = 2_000
#: GNU parallel starts some fifty jobs a second; its rate is known long before it has run 2,000.
PARALLEL_TASKS = 400
#: Agents of one process in the comparison with shared workers.
SHARED = 25
_LIMIT_S = 60


def _tasks(full: int) -> int:
    return effort(full, 100)


def inputs(count: int) -> bytes:
    """That many lines."""
    return "".join(f"{number}\n" for number in range(count)).encode()


def carry_out(command: list[str], env: dict[str, str], feed_bytes: bytes = b"") -> tuple[float, bytes, str]:
    """Run a command to its end: seconds, standard output, standard error. Raises MeasureError unless it succeeds."""
    with tempfile.TemporaryFile() as feed:
        feed.write(feed_bytes)
        feed.seek(0)
        began = time.perf_counter()
        try:
            ended = subprocess.run(command, env=env, stdin=feed, capture_output=True, check=False, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise MeasureError(f"{Path(command[0]).name} did not end within {_LIMIT_S} s") from None
        took_s = time.perf_counter() - began
    said = ended.stderr.decode(errors="replace")
    if ended.returncode != 0:
        raise MeasureError(f"{Path(command[0]).name} ended with status {ended.returncode}: {said[-300:]}")
    return took_s, ended.stdout, said


def _muster(jobs: int, *options: str) -> Figures:
    with scratch() as directory:
        report = directory / "report.json"
        env = {**program_environment(), "MUSTER_STORE_DIR": str(directory / "stores")}
        command = [muster_program(), "run", "-j", str(jobs), "-q", "--report", str(report), *options, "true"]
        tasks = _tasks(TASKS)
        took_s, _out, _said = carry_out(command, env, inputs(tasks))
        told = json.loads(report.read_text())
        if (told["tasks"], told["done"], told["delivered_ratio"], told["duplicates"]) != (tasks, tasks, 1.0, 0):
            raise MeasureError(f"{told['done']} of {told['tasks']} tasks were done")
        if list((directory / "stores").glob("*/spec.json")):
            raise MeasureError("the run left its store behind")
    return {"per_s": tasks / took_s}


@functools.cache
def _runs_every_input(*command: str) -> None:
    """`true` leaves no trace; with `echo` in its place, once, it is seen that a peer runs the command for every input."""
    some = inputs(100)
    out = carry_out([*command, "echo"], _peer_environment(), some)[1]
    if sorted(out.split()) != sorted(some.split()):
        raise MeasureError(f"{Path(command[0]).name} did not run the command for every input")


@functools.cache
def _peer_environment() -> dict[str, str]:
    # parallel keeps notes in the home directory; not in the user's.
    home = tempfile.mkdtemp(prefix="muster-bench-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return {**program_environment(), "HOME": home, "PARALLEL_HOME": home}


def _peer(command: list[str], count: int) -> Figures:
    _runs_every_input(*command)
    return {"per_s": count / carry_out([*command, "true"], _peer_environment(), inputs(count))[0]}


def _xargs(jobs: int) -> Figures:
    return _peer([program("xargs"), "-P", str(jobs), "-n", "1"], _tasks(TASKS))


def _parallel(jobs: int) -> Figures:
    return _peer([program("parallel"), "-j", str(jobs)], _tasks(PARALLEL_TASKS))


def _case(jobs: int) -> Case:
    case = Case(
        f"run{jobs}",
        f"muster run -j {jobs} over {TASKS:,} × true, from start to end",
        [
            Contender("muster", lambda: _muster(jobs)),
            Contender("xargs -P", lambda: _xargs(jobs)),
            Contender("GNU parallel", lambda: _parallel(jobs)),
        ],
        [
            Goal("per_s", "muster", "xargs -P", ">=", 0.9),
            Goal("per_s", "muster", "GNU parallel", ">=", 3.0),
        ],
        rounds=2,
    )
    if jobs >= 2 * SHARED:
        # For comparison: the same agents in a few processes instead of one each.
        case.contenders.append(Contender("muster, shared", lambda: _muster(jobs, "--agents-per-worker", str(SHARED))))
        case.goals.append(Goal("per_s", "muster, shared", "xargs -P", ">=", label=f"{SHARED}/worker"))
    return case


def cases() -> list[Case]:
    return [_case(2), _case(50)]
