"""A worker runs commands: output, exit statuses, environment, bad input, time limits, and nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from muster.core import limits
from muster.core.protocol import Cancel, Result
from muster.testing import eventually

from .worker_world import World, one_agent

#: Ignores SIGTERM, forks twice, leaves the session and clears the environment: what a tree must not get away with.
ESCAPE = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1] + ".tmp", "w").write(str(os.getpid()))
        os.rename(sys.argv[1] + ".tmp", sys.argv[1])
        os.execve({sys.executable!r}, ["python", "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"], dict())
    os._exit(0)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.005)
"""


def shell(script: str) -> tuple[str, ...]:
    """A command that runs `script` with the input as $1."""
    return ("sh", "-c", script, "sh", "{}")


async def test_a_command_ends_with_its_output_and_status(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=shell('echo "out $1"; echo "err $1" >&2; exit 3')) as world:
        result = await world.run("w", 1, "a b")
        assert (result.outcome, result.exit_status, result.signal) == ("failed", 3, None)
        assert (result.stdout, result.stderr) == (b"out a b\n", b"err a b\n")
        assert (result.stdout_bytes, result.stdout_file) == (8, None)
        assert (await world.run("w", 2, "c")).stdout == b"out c\n", "the output file is used again and starts empty"


async def test_success_is_done_and_timed(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=shell("sleep 0.05")) as world:
        before = time.time()
        result = await world.run("w", 1)
        assert (result.outcome, result.exit_status, result.error) == ("done", 0, None)
        assert 0.05 <= result.duration_s < 10
        assert before - 1 < result.started_unix_s < time.time() + 1


async def test_inputs_that_are_no_text_become_json(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("printf", "%s", "{}")) as world:
        assert (await world.run("w", 1, {"a": [1, None]})).stdout == b'{"a": [1, null]}'
        assert (await world.run("w", 2, 7)).stdout == b"7"


async def test_an_input_is_never_read_by_a_shell_unless_asked_for(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("printf", "%s", "{}")) as world:
        assert (await world.run("w", 1, "$(id); `id` 'x")).stdout == b"$(id); `id` 'x"
    async with one_agent(tmp_path, store="other", command=("printf %s {} | tr a-z A-Z",), shell=True) as world:
        assert (await world.run("w", 1, "$(id); `id` 'x")).stdout == b"$(ID); `ID` 'X"


async def test_a_child_knows_who_and_where_it_is(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=shell("env"), env={"COLOUR": "blue"}) as world:
        result = await world.run("w", 4, attempt=2)
        found = dict(line.split("=", 1) for line in result.stdout.decode().splitlines() if "=" in line)
        assert found["COLOUR"] == "blue"
        assert (found["MUSTER_AGENT"], found["MUSTER_TASK"], found["MUSTER_ATTEMPT"]) == ("w", "4", "2")
        assert (found["MUSTER_FLEET"], found["MUSTER_STORE_ID"]) == ("world", world.spec.store_id)
        assert (found["MUSTER_STORE"], found["MUSTER_SOCKET"]) == (str(world.store), str(world.store / "sockets" / "w"))
        assert world.master.hex() not in result.stdout.decode()


async def test_a_child_gets_no_input_no_descriptors_and_its_own_session(tmp_path: Path) -> None:
    script = 'cat | wc -c; ls /proc/self/fd; cut -d" " -f5-6 /proc/$$/stat; echo $$; trap'
    async with one_agent(tmp_path, command=shell(script)) as world:
        lines = (await world.run("w", 1)).stdout.decode().splitlines()
        assert lines[0] == "0"
        assert lines[1:5] == ["0", "1", "2", "3"], "the fourth is the listing's own"
        group, session = lines[5].split()
        assert group == session == lines[6]
        assert lines[7:] == []


async def test_the_working_directory_is_the_kinds(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "tool").write_text("#!/bin/sh\npwd\n")
    (place / "tool").chmod(0o755)
    async with one_agent(tmp_path, command=("./tool",), cwd=str(place)) as world:
        assert (await world.run("w", 1)).stdout == f"{place}\n".encode()


async def test_a_script_without_a_first_line_runs_as_a_shell_script(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo got $1\n")
    script.chmod(0o755)
    async with one_agent(tmp_path, command=(str(script), "{}")) as world:
        assert (await world.run("w", 1, "x")).stdout == b"got x\n"


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("no-such-command-here",), 127, "not found"),
        (("/no/such/path",), 127, "not found"),
        (("/etc/passwd",), 126, "Permission denied"),
        (("/",), 126, "Permission denied"),
    ],
)
async def test_a_command_that_cannot_run_is_one_failed_task(
    tmp_path: Path, command: tuple[str, ...], status: int, said: str, slots: int
) -> None:
    async with one_agent(tmp_path, command=command, slots=slots) as world:
        for number in (1, 2):
            result = await world.run("w", number, "x")
            assert (result.outcome, result.exit_status) == ("failed", status)
            assert result.error is not None
            assert result.error["code"] == "usage.command_not_found"
            assert said in result.error["message"]


async def test_a_missing_working_directory_is_told_from_a_missing_command(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",), cwd=str(tmp_path / "gone")) as world:
        result = await world.run("w", 1)
        assert (result.outcome, result.exit_status) == ("failed", 126)
        assert result.error is not None
        assert "working directory" in result.error["message"]


async def test_arguments_the_system_refuses_are_the_tasks_failure(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("echo", "{}")) as world:
        nul = await world.run("w", 1, "a\0b")
        long = await world.run("w", 2, "x" * 300_000)
        fine = await world.run("w", 3, "fine")
        assert [nul.outcome, long.outcome, fine.outcome] == ["failed", "failed", "done"]
        assert nul.error is not None and "null byte" in nul.error["message"]
        assert long.error is not None and "longer than the system allows" in long.error["message"]


async def test_a_command_that_moved_is_found_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
        (place / "tool").write_text(f"#!/bin/sh\necho {place.name}\n")
        (place / "tool").chmod(0o755)
    path = f"{first}:{second}:{os.environ['PATH']}"
    async with one_agent(tmp_path, command=("tool",), env={"PATH": path}) as world:
        assert (await world.run("w", 1)).stdout == b"first\n"
        (first / "tool").unlink()
        assert (await world.run("w", 2)).stdout == b"second\n"


async def test_a_death_by_signal_is_told_with_the_signal(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=shell("kill -KILL $$")) as world:
        result = await world.run("w", 1)
        assert (result.outcome, result.exit_status, result.signal) == ("killed", None, signal.SIGKILL)


# --------------------------------------------------------------------------- output


@pytest.mark.parametrize("with_spool", [True, False])
async def test_output_of_any_size_is_reported_truthfully(tmp_path: Path, with_spool: bool) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    command = shell('head -c "$1" /dev/zero | tr "\\0" x; head -c 3 /dev/zero >&2')
    async with one_agent(tmp_path, command=command, fleet={"spool": str(spool) if with_spool else None}) as world:
        edge = limits.OUTPUT_INLINE_BYTES_MAX
        exact = await world.run("w", 1, str(edge))
        assert (exact.stdout, exact.stdout_bytes, exact.stdout_file) == (b"x" * edge, edge, None)
        large = await world.run("w", 2, str(edge + 1))
        assert large.stdout_bytes == edge + 1
        assert (large.stderr, large.stderr_file) == (b"\0\0\0", None)
        if with_spool:
            assert large.stdout_file == str(spool / "2.1.out")
            kept = Path(large.stdout_file)
            assert kept.read_bytes() == b"x" * (edge + 1)
            assert kept.stat().st_mode & 0o777 == 0o600
            assert large.stdout == b"x" * limits.OUTPUT_RESULT_BYTES_MAX
        else:
            assert (large.stdout_file, large.stdout) == (None, b"x" * edge)
        small = await world.run("w", 3, "5")
        assert (small.stdout, small.stdout_bytes) == (b"xxxxx", 5)
        assert sorted(path.name for path in spool.iterdir()) == (["2.1.out"] if with_spool else [])


async def test_much_output_never_blocks_a_command(tmp_path: Path) -> None:
    async with one_agent(
        tmp_path, command=shell("head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2")
    ) as world:
        result = await world.run("w", 1)
        assert (result.outcome, result.stdout_bytes, result.stderr_bytes) == ("done", 30_000_000, 30_000_000)


async def test_processes_of_one_task_do_not_write_over_each_other(tmp_path: Path) -> None:
    script = 'for i in 1 2 3 4; do (for j in 1 2 3 4 5 6 7 8 9; do echo "line $i$j"; done) & done; wait'
    async with one_agent(tmp_path, command=shell(script)) as world:
        lines = (await world.run("w", 1)).stdout.decode().splitlines()
        assert sorted(lines) == sorted(f"line {i}{j}" for i in range(1, 5) for j in range(1, 10))


# --------------------------------------------------------------------------- trees


async def test_what_a_command_leaves_behind_is_gone_before_its_result(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    async with one_agent(tmp_path, command=(sys.executable, "-c", ESCAPE, "{}")) as world:
        result = await world.run("w", 1, str(mark))
        assert (result.outcome, result.exit_status) == ("done", 0), result.stderr
        pid = int(mark.read_text())
        assert not Path(f"/proc/{pid}").exists(), (
            "it cleared its environment and left its session, and is gone all the same"
        )
        assert world.below() == []


async def test_with_several_slots_only_the_ended_attempts_processes_are_killed(tmp_path: Path) -> None:
    marks = [tmp_path / "a", tmp_path / "b"]
    wait = f'test "$1" = "{marks[0]}" || while :; do sleep 0.05; done'
    script = 'sleep 600 & echo $! > "$1.tmp"; mv "$1.tmp" "$1"; ' + wait
    async with one_agent(tmp_path, command=shell(script), slots=2) as world:
        world.assign("w", 2, str(marks[1]))
        eventually(marks[1].exists, 20)
        result = await world.run("w", 1, str(marks[0]))
        assert result.outcome == "done"
        assert not Path(f"/proc/{marks[0].read_text().strip()}").exists()
        assert Path(f"/proc/{marks[1].read_text().strip()}").exists(), "the other attempt's child was left alone"
        world.post("w", Cancel(number=2, attempt=1))
        assert (await world.expect(Result)).outcome == "cancelled"
        assert world.below() == []


async def test_a_time_limit_ends_the_whole_tree(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"exec {sys.executable} -c 'import signal, time; signal.signal(15, 1); time.sleep(600)' & echo $! > {mark}; wait; wait"
    async with one_agent(tmp_path, command=shell(script), kill_grace_s=0.2) as world:
        started = time.monotonic()
        result = await world.run("w", 1, timeout_s=0.3)
        assert result.outcome == "timeout"
        assert time.monotonic() - started < 10
        assert not Path(f"/proc/{mark.read_text().strip()}").exists()
        assert (await world.run("w", 2, timeout_s=0.3)).outcome == "timeout"


async def test_a_command_may_end_well_within_its_grace(tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 0' INT; while :; do sleep 0.02; done"
    async with one_agent(tmp_path, command=shell(script), timeout_s=0.3, stop_signal="INT", kill_grace_s=15.0) as world:
        result = await world.run("w", 1)
        assert (result.outcome, result.exit_status, result.signal, result.stdout) == ("timeout", 0, None, b"bye\n")


async def test_an_attempt_is_cancelled_while_it_runs_and_while_it_waits(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=shell("sleep 600"), kill_grace_s=5.0) as world:
        world.assign("w", 1)
        world.assign("w", 2)
        eventually(lambda: world.below(), 20)
        world.post("w", Cancel(number=2, attempt=1))
        waiting = await world.expect(Result)
        assert (waiting.number, waiting.outcome) == (2, "cancelled")
        world.post("w", Cancel(number=1, attempt=1))
        running = await world.expect(Result)
        assert (running.number, running.outcome, running.signal) == (1, "cancelled", signal.SIGTERM)
        assert world.below() == []


async def test_a_long_task_leaves_no_heap_of_zombies(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 &) ; done; sleep 600"
    async with one_agent(tmp_path, command=shell(script), kill_grace_s=1.0) as world:
        world.assign("w", 1)
        pid = world.pids["w"]

        def zombies() -> int:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
            return states.count("Z")

        eventually(lambda: zombies() > 0 or len(world.below()) == 2, 20)
        eventually(lambda: zombies() == 0 and len(world.below()) == 2, 20, "orphans of a running task are reaped")
        world.post("w", Cancel(number=1, attempt=1))
        await world.expect(Result)


async def test_agents_of_one_worker_do_not_disturb_each_other(tmp_path: Path) -> None:
    from muster.core.protocol import Ready
    from muster.core.spec import AgentSpec

    kind = AgentSpec(
        name="w", count=6, command=shell('test "$1" = slow && sleep 600; (setsid sleep 300 &) ; echo "$1"')
    )
    async with World(tmp_path / "world", kind, agents_per_worker=6) as world:
        world.start()
        for _ in range(6):
            await world.expect(Ready)
        world.assign("w-1", 1, "slow")
        for number in range(2, 26):
            world.assign(f"w-{number % 5 + 2}", number, str(number))
        for _ in range(24):
            sender, result = await world.expect_from(Result)
            assert (result.outcome, result.stdout) == ("done", f"{result.number}\n".encode()), sender
        world.post("w-1", Cancel(number=1, attempt=1))
        assert (await world.expect(Result)).outcome == "cancelled"
        assert world.below() == []
