"""What a user is promised of tasks with wishes, and of cancel, retry, pause and resume, through the command line and over kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(180)

#: `slow` tasks leave a daemon in a session of its own, which ignores SIGTERM; `picky` ones succeed once there is a file.
FLEET = """
[fleet]
name = "yard"

[agents.slow]
tags = ["crane"]
command = ["sh", "-c", "(trap '' TERM; setsid sh -c 'trap \\"\\" TERM; sleep 300') & echo begun >> begun-{input}; sleep 300"]
kill_grace = "200ms"

[agents.picky]
command = ["sh", "-c", "echo {input} >> tried; test -e good || { echo not yet >&2; exit 3; }; echo {input} >> seen"]
"""


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as world:
        (world.work / "fleet.toml").write_text(FLEET)
        up(world)
        yield world
        assert world.muster("down", "--now").returncode == 0
        eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def up(world: World) -> None:
    started = world.muster("up", "-d")
    assert started.returncode == 0, started.stderr


def told(world: World, *words: str, status: int = 0) -> Any:
    done = world.muster(*words, "--json")
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


def give(world: World, text: str, kind: str, *wishes: str) -> None:
    sent = world.muster("send", "coordinator", text, "--type", f"task@{kind}", *wishes)
    assert sent.returncode == 0, sent.stderr


def tasks(world: World) -> dict[str, int]:
    counts: dict[str, int] = told(world, "status")["tasks"]
    return counts


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_cancelling_a_running_task_leaves_none_of_its_processes_and_it_can_be_retried(yard: World) -> None:
    give(yard, "one", "slow")
    give(yard, "two", "slow")
    eventually((yard.work / "begun-one").exists, PATIENCE_S, "the first task runs")
    assert told(yard, "cancel", "1", "2", "--reason", "wrong ship") == {"cancelled": 2, "over": 0, "running": []}
    eventually(lambda: "sleep" not in commands(yard), PATIENCE_S, "nothing of the task is left")
    assert (tasks(yard)["cancelled"], tasks(yard)["running"]) == (2, 0)
    assert told(yard, "retry", "1")["retried"] == 1
    eventually(lambda: lines(yard.work / "begun-one") == ["begun"] * 2, PATIENCE_S, "the task runs again")
    assert tasks(yard)["cancelled"] == 1


def commands(world: World) -> str:
    """The command lines of everything below the fleet."""
    found = []
    for pid in world.marked():
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_a_cancelled_task_stays_cancelled_when_coordinator_and_worker_are_killed_meanwhile(yard: World) -> None:
    give(yard, "one", "slow")
    eventually((yard.work / "begun-one").exists, PATIENCE_S, "the task runs")
    os.kill(yard.pid_of("worker", "slow"), signal.SIGSTOP)  # the order reaches nobody
    assert told(yard, "cancel", "1", "--wait", "0s", status=1)["running"] == [1]
    os.kill(yard.pid_of("coordinator"), signal.SIGKILL)
    os.kill(yard.pid_of("worker", "slow"), signal.SIGKILL)
    eventually(lambda: tasks(yard).get("cancelled") == 1, PATIENCE_S, "it is cancelled by the proof of death")
    assert lines(yard.work / "begun-one") == ["begun"], "it did not run again"


def test_failed_tasks_are_kept_with_evidence_over_a_restart_and_run_again_when_retried(yard: World) -> None:
    for text in ("a", "b"):
        give(yard, text, "picky", "--retries", "1")
    give(yard, "c", "picky", "--after", "2")
    eventually(lambda: tasks(yard).get("dead") == 1, PATIENCE_S, "two have failed, the third is dead with the second")
    assert lines(yard.work / "tried").count("b") == 2
    os.kill(yard.pid_of("coordinator"), signal.SIGKILL)
    listed = told(yard, "dead", "list")
    assert [(one["task"], one["state"], one["type"]) for one in listed] == [
        (1, "failed", "task@picky"), (2, "failed", "task@picky"), (3, "dead", "task@picky"),
    ]  # fmt: skip
    assert listed[0]["reason"] == "attempt 2 on picky: failed, status 3. not yet"
    assert listed[2]["reason"] == "it comes after task 2, which failed"
    assert yard.muster("down").returncode == 0
    assert [one["task"] for one in told(yard, "dead", "list")] == [1, 2, 3], "also while the fleet is down"
    up(yard)
    refused = told(yard, "retry", "3", status=2)["error"]
    assert (refused["code"], refused["message"]) == (
        "task.state",
        "task 3 cannot be retried: it comes after task 2, which failed; retry that one, too",
    )
    (yard.work / "good").touch()
    assert told(yard, "retry", "--all")["numbers"] == [1, 2, 3]
    eventually(lambda: sorted(lines(yard.work / "seen")) == ["a", "b", "c"], PATIENCE_S, "all of them are done")
    assert told(yard, "dead", "list") == []
    assert told(yard, "status")["counters"]["retried"] == 3


def test_a_pause_holds_over_kills_and_restarts_until_it_is_lifted(yard: World) -> None:
    (yard.work / "good").touch()
    assert told(yard, "pause", "picky")["paused"] == ["picky"]
    give(yard, "a", "picky")
    give(yard, "b", "picky", "--priority", "7")
    os.kill(yard.pid_of("coordinator"), signal.SIGKILL)
    eventually(lambda: tasks(yard).get("queued") == 2, PATIENCE_S, "the coordinator is back")
    assert yard.muster("down").returncode == 0
    up(yard)
    status = told(yard, "status")
    assert (status["paused"], status["tasks"]["queued"]) == (["picky"], 2)
    assert "nothing new is assigned to picky" in yard.muster("status").stdout
    assert lines(yard.work / "seen") == []
    assert told(yard, "resume")["paused"] == []
    eventually(lambda: lines(yard.work / "seen") == ["b", "a"], PATIENCE_S, "both are done, the higher priority first")


def test_tags_choose_the_agent_and_a_task_that_nobody_can_do_says_why(yard: World) -> None:
    sent = yard.muster("send", "coordinator", "one", "--type", "task", "--tag", "crane")
    assert sent.returncode == 0, sent.stderr
    eventually((yard.work / "begun-one").exists, PATIENCE_S, "the crane has it")
    yard.muster("send", "coordinator", "two", "--type", "task", "--tag", "crane", "--tag", "tug")
    eventually(lambda: tasks(yard).get("dead") == 1, PATIENCE_S, "nobody can do it")
    assert told(yard, "dead", "list")[0]["reason"] == "no agent has the tags crane,tug"


NONSENSE = [
    (("send", "coordinator", "x", "--priority", "5"), "--priority is for tasks"),
    (("send", "coordinator", "x", "-t", "task", "--priority", "500"), "priority 500 is not between -100 and 100"),
    (("send", "coordinator", "x", "-t", "task", "--tag", "a,b"), "tag 'a,b' is not 1 to 64"),
    (("send", "coordinator", "x", "-t", "task", "--delay", "soon"), "'soon' is not a duration"),
    (("send", "coordinator", "x", "-t", "task", "--retries", "-1"), "retries must be between 0 and"),
    (("cancel",), "name tasks by number, or say --waiting, --running or --all"),
    (("cancel", "7"), "there is no task 7 in this fleet; nothing was changed"),
    (("cancel", "x"), "'x' is not the number of a task"),
    (("retry", "1", "--all"), "name tasks by number, or say"),
    (("retry", "9-7"), "'9-7' is not a range"),
    (("pause", "nobody"), "there is no kind 'nobody' in this fleet; kinds are picky, slow"),
    (("dead", "show", "7"), "there is no task 7 in this fleet"),
]


def test_what_makes_no_sense_is_refused_in_one_sentence(yard: World) -> None:
    for words, says in NONSENSE:
        done = yard.muster(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), (words, done.stderr)
        assert says in done.stderr, words


AGENT = """
import asyncio, json, sys
import muster
from muster.errors import DependencyError

async def main():
    async with muster.join("clerk") as clerk:
        first = await clerk.submit("x", kind="picky", delay_s=0.1)
        numbers = [first, await clerk.submit("y", after=[first], kind="picky", priority=3)]
        try:
            await clerk.submit("z", after=[99])
        except DependencyError as error:
            numbers.append(error.message)
        reply = await clerk.ask("coordinator", {}, type="fleet.pause", timeout_s=10)
        print(json.dumps([*numbers, reply.body["code"]]))

asyncio.run(main())
"""


def test_a_program_submits_tasks_and_is_told_their_numbers_but_may_not_give_the_operators_orders(yard: World) -> None:
    (yard.work / "good").touch()
    (yard.work / "fleet.toml").write_text(FLEET + "[agents.clerk]\n")
    assert yard.muster("down").returncode == 0
    up(yard)
    (yard.work / "agent.py").write_text(AGENT)
    store = told(yard, "status")["store"]
    ran = subprocess.run(
        [sys.executable, "agent.py"],
        cwd=yard.work, env={**yard.env, "MUSTER_STORE": store}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(ran.stdout) == [1, 2, "task 3 comes after task 99, which does not exist", "security.forbidden"]
    eventually(lambda: lines(yard.work / "seen") == ["x", "y"], PATIENCE_S, "both are done, in order")
    assert told(yard, "status")["paused"] == []


def test_a_run_takes_tasks_with_wishes_and_names_the_line_that_it_does_not_understand(tmp_path: Path) -> None:
    with a_world(tmp_path) as world:
        file = world.work / "tasks.jsonl"
        given = [
            {"input": "late", "after": [], "priority": -1}, {"input": "a"}, {"input": "b", "after": [2], "priority": 50},
            {"input": "bad", "retries": 2, "backoff": 0}, {"input": "c", "after": [4]},
        ]  # fmt: skip
        file.write_text("\n".join(json.dumps(task) for task in given))
        words = ("run", "-j", "1", "--tasks", str(file), "--results", "out.jsonl", "--shell")
        done = world.muster(*words, "echo {} >> order; test {} != bad || test -e good")
        assert done.returncode == 1, done.stderr
        assert lines(world.work / "order") == ["a", "b", "bad", "bad", "bad", "late"]
        results = {line["task"]: line for line in map(json.loads, (world.work / "out.jsonl").read_text().splitlines())}
        assert {number: line["outcome"] for number, line in results.items()} == {
            1: "done", 2: "done", 3: "done", 4: "failed", 5: "dead",
        }  # fmt: skip
        (world.work / "good").touch()
        done = world.muster(*words, "--resume", "echo {} >> order; test {} != bad || test -e good")
        assert done.returncode == 0, done.stderr
        assert lines(world.work / "order")[6:] == ["bad", "c"]
        file.write_text('{"input": 1}\n{"input": 2, "prio": 1}\n')
        done = world.muster("run", "--tasks", str(file), "echo")
        assert done.returncode == 2
        assert "tasks.jsonl: line 2: not a task: it has the unknown field `prio`" in done.stderr
