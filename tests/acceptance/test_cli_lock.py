"""Locks from the command line, in a real fleet, with real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.testing import eventually

from .cli_world import MUSTER, PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(120)

FLEET = """
[fleet]
name = "harbour"
grace = "3s"

[agents.pilot]
count = 2
command = ["sh", "-c", "{}"]
"""
#: How soon a dead holder's lock is free.
FREED_S = 1.0


@pytest.fixture
def harbour(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A fleet that is up; its parameter, if it has one, is added to its file."""
    with a_world(tmp_path) as world:
        (world.work / "fleet.toml").write_text(FLEET + getattr(request, "param", ""))
        up = world.muster("up", "-d")
        assert up.returncode == 0, up.stderr
        yield world
        world.muster("down", "--now")


def locks(world: World) -> list[dict[str, Any]]:
    listed = world.muster("lock", "--list", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)["locks"]
    return found


def start_holder(world: World, *words: str, script: str = "sleep 600") -> tuple[subprocess.Popen[bytes], int]:
    """A `muster lock` that holds what it wants, and the pid of its command, which runs."""
    process = world.start("lock", *words, "--", "sh", "-c", f"echo $$; {script}")
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def wait_for_line(world: World, length: int) -> None:
    """Until so many locks are held and waited for."""
    eventually(lambda: len(locks(world)) == length, PATIENCE_S, f"{length} stand in line")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def work_on(world: World, number: int, script: str) -> None:
    """Give the fleet a task: a line of shell."""
    body = json.dumps({"tasks": [[number, script, "pilot", None]]})
    sent = world.muster("send", "coordinator", "--type", "task.submit", "--json-body", body)
    assert sent.returncode == 0, sent.stderr


MUSTER_WORDS = " ".join(MUSTER)


def test_a_command_runs_under_its_lock_with_its_token_and_its_exit_status_is_ours(harbour: World) -> None:
    done = harbour.muster("lock", "a", "src/", "--", "sh", "-c", "echo $MUSTER_LOCK_TOKEN; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "1\n", "")
    killed = harbour.muster("lock", "a", "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 128 + 9
    assert locks(harbour) == []


def test_whoever_meets_a_held_lock_is_told_by_whom_and_runs_nothing(harbour: World) -> None:
    holder, _ = start_holder(harbour, "src/**")
    refused = harbour.muster("lock", "src/a", "--wait", "0", "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (75, "")
    assert f"'src/a' is held by process {holder.pid} as 'src/**'" in refused.stderr
    late = harbour.muster("lock", "src/a", "--wait", "200ms", "--json", "--", "echo", "ran")
    assert late.returncode == 75
    assert json.loads(late.stdout)["error"]["code"] == "lock.timeout"
    assert json.loads(late.stderr.splitlines()[0])["event"] == "lock.waiting"
    free = harbour.muster("lock", "docs/**", "--wait", "0", "--", "echo", "ran")
    assert (free.returncode, free.stdout) == (0, "ran\n")
    (row,) = locks(harbour)
    assert (row["names"], row["state"], row["pid"]) == (["src/**"], "held", holder.pid)
    holder.terminate()
    assert harbour.finish(holder).returncode == 128 + 15, "SIGTERM is passed on"


def test_those_who_wait_have_it_in_the_order_in_which_they_came(harbour: World) -> None:
    holder, _ = start_holder(harbour, "n")
    waiting = []
    for at in range(3):
        waiting.append(harbour.start("lock", "n", "--", "sh", "-c", f"echo {at} >> order"))
        wait_for_line(harbour, at + 2)
    holder.terminate()
    for process in waiting:
        assert harbour.finish(process).returncode == 0
    assert (harbour.work / "order").read_text().split() == ["0", "1", "2"]


def test_sigkill_of_a_holder_ends_its_command_and_frees_the_lock_within_a_second(harbour: World) -> None:
    holder, command = start_holder(harbour, "n", "--ttl", "1h")
    waiting = harbour.start("lock", "n", "--", "echo", "mine")
    wait_for_line(harbour, 2)
    holder.kill()
    killed_s = time.monotonic()
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"mine\n"
    assert time.monotonic() - killed_s <= FREED_S
    eventually(lambda: not is_alive(command), PATIENCE_S, "its command is gone")


def test_a_lock_outlives_the_coordinator_and_its_holder_notices_nothing(harbour: World) -> None:
    holder, _ = start_holder(harbour, "n", "--ttl", "2s")
    for _ in range(3):
        os.kill(harbour.pid_of("coordinator"), signal.SIGKILL)
        refused = harbour.muster("lock", "n", "--wait", "0", "--", "true")
        assert refused.returncode == 75, refused.stderr
        assert "held by process" in refused.stderr
    assert holder.poll() is None
    assert locks(harbour)[0]["token"] == 1


def test_a_holder_that_stands_still_for_longer_than_its_lease_loses_it_and_its_command_is_killed(
    harbour: World,
) -> None:
    holder, command = start_holder(harbour, "n", "--ttl", "1s", script="sleep 600 & wait")
    os.kill(holder.pid, signal.SIGSTOP)
    next_one = harbour.muster("lock", "n", "--", "sh", "-c", "echo $MUSTER_LOCK_TOKEN")
    assert (next_one.returncode, next_one.stdout) == (0, "2\n")
    assert is_alive(command), "the subject is what happens when it goes on"
    os.kill(holder.pid, signal.SIGCONT)
    done = harbour.finish(holder)
    assert done.returncode == 75
    assert "lease" in done.stderr or "renewed" in done.stderr
    assert not is_alive(command)


def test_what_a_command_leaves_behind_ends_with_its_lock(harbour: World) -> None:
    done = harbour.muster("lock", "n", "--", "sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    assert not is_alive(int(done.stdout))


@pytest.mark.parametrize("harbour", ["", "[teams]\ncount = 2\n"], ids=["flat", "teams"], indirect=True)
def test_commands_of_agents_lock_as_their_agents_and_share_no_lock(harbour: World) -> None:
    script = f"{MUSTER_WORDS} lock n --wait {{}} -- sh -c 'echo $MUSTER_LOCK_TOKEN > had.{{}}; exec sleep 600'"
    work_on(harbour, 1, script.format("1h", 1))
    eventually((harbour.work / "had.1").exists, PATIENCE_S, "the first has it")
    work_on(harbour, 2, script.format("1h", 2))
    rows = eventually(lambda: (found := locks(harbour)) and len(found) == 2 and found, PATIENCE_S, "the second waits")
    assert rows
    assert sorted(row["agent"] for row in rows) == ["pilot-1", "pilot-2"]
    holder = rows[0]["agent"]
    status = json.loads(harbour.muster("status", "--json").stdout)
    (pid,) = {agent["pid"] for agent in status["agents"] if agent["agent"] == holder}
    os.kill(pid, signal.SIGKILL)
    eventually((harbour.work / "had.2").exists, PATIENCE_S, "with the first's worker its lock is gone")
    assert int((harbour.work / "had.2").read_text()) == 2


SCRIPT = """
import os, signal, time
from muster.agent.client import OwnerClient
from muster.errors import MusterError
with OwnerClient() as one, OwnerClient() as other:
    with one.lock("a", "b") as held:
        held.check()
        try:
            other.lock("b", timeout_s=0)
        except MusterError as error:
            print(error.code)
        print(held.token)
    with other.lock("b", timeout_s=0) as again:
        print(again.token > held.token)
    left = other.lock("b")
    other.close()
    print(one.lock("b", timeout_s=20).token > left.token)
    with one.lock("c"):
        def line(length):
            while len(one.ask("coordinator", {}, type="lock.list")["body"]["facts"]["locks"]) != length:
                time.sleep(0.01)
        waits = os.fork()
        if not waits:
            OwnerClient().lock("c")
        line(3)
        os.kill(waits, signal.SIGKILL)
        os.waitpid(waits, 0)
        line(2)
        print("who waited and died stands in line no more")
    try:
        one.lock("x/../y")
    except MusterError as error:
        print(error.code)
"""


def test_a_script_of_an_agent_locks_by_connection(harbour: World) -> None:
    (harbour.work / "script.py").write_text(SCRIPT)
    work_on(harbour, 1, f"{sys.executable} script.py > said 2>&1; mv said done")
    eventually((harbour.work / "done").exists, PATIENCE_S, "the script has ended")
    said = (harbour.work / "done").read_text().splitlines()
    assert said == ["lock.held", "1", "True", "True", "who waited and died stands in line no more", "usage"]
    eventually(lambda: locks(harbour) == [], PATIENCE_S, "what it held has gone with it")


MISTAKES = {
    ("n",): "needs names, and behind `--` a command",
    ("--", "true"): "needs names",
    ("--list", "n"): "--list shows all locks",
    ("[", "--", "true"): "is not closed",
    ("a/../b", "--", "true"): "cannot go up",
    ("n", "--wait", "soon", "--", "true"): "is not a duration",
    ("n", "--ttl", "1ms", "--", "true"): "a lease holds for 1 to 86400 s",
    ("n", "--", "no-such-command"): "was not found; nothing was locked",
}


def test_a_mistake_gets_one_sentence_and_locks_nothing(harbour: World) -> None:
    for words, said in MISTAKES.items():
        done = harbour.muster("lock", *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert locks(harbour) == []


def test_without_a_fleet_it_says_so(tmp_path: Path) -> None:
    with a_world(tmp_path) as world:
        (world.work / "fleet.toml").write_text(FLEET)
        done = world.muster("lock", "n", "--", "true")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("seed", [1])
def test_fifty_processes_that_are_killed_while_they_count_lose_no_count(harbour: World, seed: int) -> None:
    file = harbour.work / "counter"
    script = Path(__file__).with_name("lock_counters.py")
    words = [sys.executable, str(script), str(harbour.root / "harbour"), str(file), "50", "25", str(seed)]
    done = subprocess.run(words, env=harbour.env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    written, acked = told["written"], told["acked"]
    assert told["kills"] >= 25
    assert written == sorted(set(written)), f"seed {seed}: a stale holder wrote after a later one"
    assert set(acked) <= set(written), f"seed {seed}: {sorted(set(acked) - set(written))} were written and are lost"
    assert len(written) - len(acked) <= told["kills"], f"seed {seed}: who was not killed was told"
