"""Attempts that take more memory, descriptors or time than their kind may are ended whole, reported with figures, and nothing else is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from muster.agent.bounds import MemoryWatch, memory_bytes, rss_bytes
from muster.agent.worker import EXIT_REPLACE
from muster.core.protocol import Result
from muster.core.spec import AgentLimits

from .worker_world import one_agent

HERE = str(Path(__file__).parent)
MB = 1_000_000
#: Holds the megabytes of its first argument and sleeps.
HOLD = "import sys, time; held = b'x' * (int(sys.argv[1]) * 1000000); time.sleep(600)"
#: The same in a process that ignores SIGTERM, has forked twice, left its session and cleared its environment.
HOLD_ESCAPED = f"""
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve({sys.executable!r}, ["python", "-c", {HOLD!r}, sys.argv[1]], dict())
    os._exit(0)
os.wait()
time.sleep(600)
"""


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, "{}")


def assert_over_memory(result: Result, limit_bytes: int) -> None:
    assert result.outcome == "failed"
    assert result.error is not None
    assert result.error["code"] == "limit.rss"
    assert result.error["limit_bytes"] == limit_bytes
    assert result.error["rss_bytes"] > limit_bytes
    assert "limits.rss" in result.error["message"]


@pytest.mark.parametrize("script", [HOLD, HOLD_ESCAPED], ids=["the command itself", "a process that has got away"])
async def test_an_attempt_over_its_memory_is_killed_with_everything_it_started(tmp_path: Path, script: str) -> None:
    bounds = AgentLimits(rss_bytes=80 * MB)
    async with one_agent(tmp_path, command=python(script), bounds=bounds, kill_grace_s=60.0) as world:
        result = await world.run("w", 1, "200")
        assert_over_memory(result, 80 * MB)
        assert (result.signal, result.exit_status) == (9, None)
        assert "python" in result.error["message"] if result.error else False
        assert world.below() == [], "the report comes when nothing is left"


async def test_many_small_processes_count_together(tmp_path: Path) -> None:
    spawn = f"""
import subprocess, sys, time
for _ in range(6):
    subprocess.Popen([sys.executable, "-c", {HOLD!r}, "30"])
time.sleep(600)
"""
    async with one_agent(tmp_path, command=python(spawn), bounds=AgentLimits(rss_bytes=150 * MB)) as world:
        result = await world.run("w", 1)
        assert_over_memory(result, 150 * MB)
        assert result.error is not None
        assert result.error["processes"] >= 4
        assert world.below() == []


async def test_a_neighbour_in_the_same_worker_is_not_touched(tmp_path: Path) -> None:
    script = 'case $1 in big) exec "$0" -c "$2" 200;; *) until test -e done; do sleep 0.02; done;; esac'
    command = ("sh", "-c", script, sys.executable, "{}", HOLD)
    async with one_agent(
        tmp_path, command=command, slots=2, cwd=str(tmp_path), bounds=AgentLimits(rss_bytes=80 * MB)
    ) as world:
        world.assign("w", 1, "small")
        assert_over_memory(await world.run("w", 2, "big"), 80 * MB)
        (tmp_path / "done").touch()
        assert (await world.expect(Result)).outcome == "done"


async def test_what_has_got_away_from_one_attempt_is_not_held_against_another(tmp_path: Path) -> None:
    """Its session is its own by now: the marks in its environment say whose it is."""
    marked = HOLD_ESCAPED.replace("dict()", "os.environ")
    script = 'case $1 in big) exec "$0" -c "$2" 200;; *) until test -e done; do sleep 0.02; done;; esac'
    command = ("sh", "-c", script, sys.executable, "{}", marked)
    async with one_agent(
        tmp_path, command=command, slots=2, cwd=str(tmp_path), bounds=AgentLimits(rss_bytes=80 * MB)
    ) as world:
        world.assign("w", 1, "small")
        assert_over_memory(await world.run("w", 2, "big"), 80 * MB)
        (tmp_path / "done").touch()
        assert (await world.expect(Result)).outcome == "done"


async def test_an_attempt_within_its_memory_is_left_alone(tmp_path: Path) -> None:
    brief = HOLD.replace("600", "2.5")  # longer than two looks
    async with one_agent(tmp_path, command=python(brief), bounds=AgentLimits(rss_bytes=200 * MB)) as world:
        assert (await world.run("w", 1, "50")).outcome == "done"


async def test_a_handler_over_its_memory_is_reported_and_its_worker_replaced(tmp_path: Path) -> None:
    bounds = AgentLimits(rss_bytes=150 * MB)
    async with one_agent(tmp_path, handler="handlers_for_tests:hold", cwd=HERE, bounds=bounds) as world:
        assert_over_memory(await world.run("w", 1, 300), 150 * MB)
        assert await world.exited() == EXIT_REPLACE
        await world.started(incarnation=2)
        assert (await world.run("w", 2, 0, incarnation=2)).outcome == "done"


async def test_a_commands_bound_of_descriptors_holds_from_its_first_instruction(tmp_path: Path) -> None:
    # The hard one, too: some runtimes lift the soft one when they start.
    async with one_agent(
        tmp_path, command=("sh", "-c", "ulimit -Hn; ulimit -Sn; sh -c 'ulimit -Hn'"), bounds=AgentLimits(fds=64)
    ) as world:
        for number in range(1, 21):  # the worker's own bound is not used up
            assert (await world.run("w", number)).stdout.split() == [b"64", b"64", b"64"]


async def test_a_command_that_runs_out_of_descriptors_fails_by_itself(tmp_path: Path) -> None:
    script = "held = [open('/dev/null') for _ in range(100)]"
    async with one_agent(tmp_path, command=python(script), bounds=AgentLimits(fds=64)) as world:
        result = await world.run("w", 1)
        assert (result.outcome, result.exit_status) == ("failed", 1)
        assert b"Too many open files" in result.stderr


@pytest.mark.parametrize(
    ("command", "status"), [(("no-such-command",), 127), (("/no/such/path",), 127), (("/etc/passwd",), 126)]
)
async def test_a_command_that_cannot_run_is_told_as_ever_under_a_limit(
    tmp_path: Path, command: tuple[str, ...], status: int
) -> None:
    async with one_agent(tmp_path, command=command, bounds=AgentLimits(fds=64)) as world:
        for number in (1, 2):
            result = await world.run("w", number)
            assert result.error is not None
            assert (result.exit_status, result.error["code"]) == (status, "usage.command_not_found")


@pytest.mark.parametrize(("timeout_s", "outcome"), [(None, "failed"), (60.0, "failed"), (0.1, "timeout")])
async def test_no_attempt_takes_longer_than_the_kinds_wall_time(
    tmp_path: Path, timeout_s: float | None, outcome: str
) -> None:
    stubborn = "trap '' TERM; setsid sleep 600 & sleep 600; sleep 600"
    bounds = AgentLimits(wall_s=0.3)
    async with one_agent(tmp_path, command=("sh", "-c", stubborn), bounds=bounds, kill_grace_s=0.2) as world:
        result = await world.run("w", 1, timeout_s=timeout_s)
        assert result.outcome == outcome
        if outcome == "failed":
            assert result.duration_s >= 0.3
            assert result.error is not None
            assert (result.error["code"], result.error["limit_s"]) == ("limit.wall", 0.3)
        assert world.below() == []


async def test_a_handler_that_blocks_beyond_its_wall_time_costs_its_worker(tmp_path: Path) -> None:
    bounds = AgentLimits(wall_s=0.2)
    kind = {"handler": "handlers_for_tests:block", "cwd": HERE, "bounds": bounds, "kill_grace_s": 0.2}
    async with one_agent(tmp_path, **kind) as world:
        result = await world.run("w", 1, 600)
        assert result.error is not None
        assert (result.outcome, result.error["code"]) == ("failed", "limit.wall")
        assert await world.exited() == EXIT_REPLACE


class _Loop:
    """A clock that stands still, and the timers that were asked of it."""

    def __init__(self) -> None:
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return 100.0

    def call_at(self, when: float, function: Callable[[], None]) -> _Timer:
        self.timers.append(_Timer(when, function))
        return self.timers[-1]

    def pending(self) -> list[float]:
        return [timer.at - 100.0 for timer in self.timers if not timer.is_cancelled]


@dataclass
class _Timer:
    at: float
    function: Callable[[], None]
    is_cancelled: bool = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.is_cancelled = True


def a_watch() -> tuple[_Loop, MemoryWatch]:
    loop = _Loop()
    return loop, MemoryWatch(loop)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit_bytes", [None, memory_bytes(), 1 << 60])
def test_memory_that_has_no_reachable_limit_is_never_looked_at(limit_bytes: int | None) -> None:
    loop, watch = a_watch()
    watch.watch(1, limit_bytes, lambda: [os.getpid()], lambda _: None)
    assert loop.pending() == []


def test_the_farther_a_limit_the_rarer_the_looks_and_the_nearest_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.agent.bounds.memory_bytes", lambda: 1 << 50)
    loop, watch = a_watch()
    watch.watch("far", 50_000 * MB, lambda: [os.getpid()], lambda _: None)
    assert loop.pending() == [10.0]
    watch.watch("near", 8_000 * MB, lambda: [os.getpid()], lambda _: None)
    assert loop.pending() == [2.0]
    watch.watch("nearest", 500 * MB, lambda: [os.getpid()], lambda _: None)
    assert loop.pending() == [1.0], "never more than once a second"
    for key in ("far", "near", "nearest"):
        watch.forget(key)
    assert loop.pending() == [], "nothing is looked at when nothing runs"


def test_a_breach_is_told_once_and_the_others_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.agent.bounds.memory_bytes", lambda: 1 << 50)
    loop, watch = a_watch()
    told: list[str] = []
    watch.watch("over", MB, lambda: [os.getpid()], lambda error: told.append(error.code))
    watch.watch("under", 4_000 * MB, lambda: [os.getpid()], lambda error: told.append("wrong"))
    for _ in range(2):
        timer = next(timer for timer in loop.timers if not timer.is_cancelled)
        timer.is_cancelled = True
        timer.function()
    assert told == ["limit.rss"]
    assert len(loop.pending()) == 1


def test_a_process_that_is_gone_holds_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert rss_bytes(pid) == 0
    assert rss_bytes(os.getpid()) > MB
