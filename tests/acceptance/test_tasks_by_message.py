"""Work for a standing fleet comes as messages; whoever asks gets the end as the reply, also when processes die meanwhile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(120)

FLEET = """
[fleet]
name = "harbour"

[agents.pilot]
count = 2
command = ["sh", "-c", "echo pilot {input} | tee -a seen"]

[agents.slow]
command = ["sh", "-c", "echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done; echo slow {input}"]
"""


@pytest.fixture
def harbour(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as world:
        (world.work / "fleet.toml").write_text(FLEET)
        up = world.muster("up", "-d")
        assert up.returncode == 0, up.stderr
        yield world
        (world.work / "go").touch()
        assert world.muster("down").returncode == 0
        eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def test_an_ask_of_type_task_is_answered_with_what_a_results_file_would_hold(harbour: World) -> None:
    asked = harbour.muster("ask", "coordinator", "ship-1", "--type", "task@pilot", "--json")
    assert asked.returncode == 0, asked.stderr
    reply = json.loads(asked.stdout)
    assert (reply["sender"], reply["type"]) == ("coordinator", "task.ended")
    body = reply["body"]
    assert (body["input"], body["outcome"], body["exit_status"], body["stdout"]) == (
        "ship-1",
        "done",
        0,
        "pilot ship-1\n",
    )
    assert body["agent"].startswith("pilot-")


def test_a_sent_task_is_done_without_an_answer_and_tasks_get_numbers_of_their_own(harbour: World) -> None:
    for ship in ("a", "b", "c"):
        assert harbour.muster("send", "coordinator", ship, "--type", "task@pilot").returncode == 0
    seen = harbour.work / "seen"
    eventually(lambda: seen.exists() and len(seen.read_text().split("\n")) == 4, PATIENCE_S, "three tasks done")
    assert sorted(seen.read_text().split("\n")) == ["", "pilot a", "pilot b", "pilot c"]
    status = json.loads(harbour.muster("status", "--json").stdout)
    assert status["tasks"]["submitted"] == 3
    assert harbour.muster("recv", "--wait", "0s").stdout == "", (
        "a standing fleet's outputs are no messages to the operator"
    )


def test_a_task_for_a_kind_that_does_not_exist_is_answered_as_dead_with_the_reason(harbour: World) -> None:
    asked = harbour.muster("ask", "coordinator", "x", "--type", "task@nobody", "--json")
    body = json.loads(asked.stdout)["body"]
    assert body["outcome"] == "dead"
    assert "nobody" in body["error"]["message"]


def test_the_answer_comes_although_the_coordinator_and_the_worker_are_killed_meanwhile(harbour: World) -> None:
    asking = harbour.start("ask", "coordinator", "ship-2", "--type", "task@slow", "--json", "--timeout", "60s")
    begun = harbour.work / "begun"
    eventually(begun.exists, PATIENCE_S, "the task runs")
    os.kill(harbour.pid_of("coordinator"), signal.SIGKILL)
    os.kill(harbour.pid_of("worker", "slow"), signal.SIGKILL)
    eventually(
        lambda: begun.read_text() == "begun\nbegun\n", PATIENCE_S, "the task runs again, on the worker's successor"
    )
    (harbour.work / "go").touch()
    done = harbour.finish(asking)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)["body"]
    assert (body["outcome"], body["attempt"], body["stdout"]) == ("done", 2, "slow ship-2\n")
