"""A standing fleet from the command line: up, looked at, spoken to, down."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(120)

FLEET = """
[fleet]
name = "harbour"
grace = "3s"

[agents.pilot]
count = 2
command = ["sh", "-c", "echo {input}"]

[agents.desk]
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        (one.work / "fleet.toml").write_text(FLEET)
        yield one


@pytest.fixture
def harbour(world: World) -> Iterator[World]:
    up = world.muster("up", "-d")
    assert up.returncode == 0, up.stderr
    assert "harbour is up: 2 of 2 agents ready" in up.stdout
    yield world
    down = world.muster("down")
    assert down.returncode == 0, down.stderr
    eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def test_a_fleet_is_listed_and_tells_how_it_is(harbour: World) -> None:
    rows = harbour.ps()
    assert {row["role"] for row in rows} == {"spawner", "coordinator", "worker"}
    assert all(row["fleet"] == "harbour" for row in rows)
    status = harbour.muster("status", "--json")
    assert status.returncode == 0, status.stderr
    told = json.loads(status.stdout)
    assert told["problems"] == []
    assert {agent["agent"]: agent["state"] for agent in told["agents"] if agent["agent"] != "desk"} == {
        "pilot-1": "ready",
        "pilot-2": "ready",
    }
    assert told["coordinator_pid"] == harbour.pid_of("coordinator")
    human = harbour.muster("status").stdout
    assert "harbour is running" in human
    assert "pilot-1" in human


def test_tasks_are_taken_from_anybody_and_counted(harbour: World) -> None:
    harbour.muster("send", "coordinator", "-t", "task.submit", "--json-body", '{"tasks": [[1, "a"], [2, "b"]]}')

    def done() -> bool:
        return bool(json.loads(harbour.muster("status", "--json").stdout)["tasks"]["done"] == 2)

    eventually(done, PATIENCE_S, "two tasks are done")


def test_messages_wait_for_their_recipient_and_are_acked_once_printed(harbour: World) -> None:
    receipt = harbour.muster("send", "desk", "hello there", "--json")
    assert receipt.returncode == 0, receipt.stderr
    assert json.loads(receipt.stdout)["seq"] == 1
    assert harbour.muster("send", "desk", stdin=b"from a pipe").returncode == 0
    assert {row["agent"]: row["inbox_depth"] for row in json.loads(harbour.muster("ls", "--json").stdout)}["desk"] == 2
    first = harbour.muster("recv", "--as", "desk")
    assert (first.returncode, first.stdout) == (0, "operator: hello there\n")
    second = harbour.muster("recv", "--as", "desk", "--json", "-n", "5")
    message = json.loads(second.stdout)
    assert (message["sender"], message["body"], message["attempt"]) == ("operator", "from a pipe", 1)
    none = harbour.muster("recv", "--as", "desk", "--wait", "100ms")
    assert (none.returncode, none.stdout, none.stderr) == (1, "", "")


def test_a_question_is_answered_by_its_recipient_or_times_out(harbour: World) -> None:
    answer = harbour.muster("ask", "coordinator", "{}", "--json-body", "-t", "fleet.status")
    assert json.loads(answer.stdout)["fleet"] == "harbour", answer.stderr
    silence = harbour.muster("ask", "desk", "anybody?", "--timeout", "300ms")
    assert silence.returncode == 1
    assert "did not reply" in silence.stderr


def test_recv_waits_and_is_woken(harbour: World) -> None:
    waiting = harbour.start("recv", "--as", "desk", "--wait", "30s")
    # The inbox's lock is the proof that it listens; what is sent from then on has to wake it.
    eventually(lambda: _state(harbour, "desk") == "joined", PATIENCE_S, "recv holds the inbox")
    assert harbour.muster("send", "desk", "wake up").returncode == 0
    done = harbour.finish(waiting)
    assert (done.returncode, done.stdout) == (0, "operator: wake up\n")


def _state(world: World, agent: str) -> str:
    rows = {row["agent"]: row["state"] for row in json.loads(world.muster("ls", "--json").stdout)}
    return str(rows.get(agent))


def test_unread_messages_survive_down_and_up(harbour: World) -> None:
    harbour.muster("send", "desk", "keep me")
    assert harbour.muster("down").returncode == 0
    assert harbour.muster("up", "-d").returncode == 0
    assert harbour.muster("recv", "--as", "desk").stdout == "operator: keep me\n"


def test_a_second_up_is_refused(harbour: World) -> None:
    again = harbour.muster("up", "-d")
    assert again.returncode == 1
    assert "already up" in again.stderr


def test_a_killed_worker_is_started_again_and_status_tells(harbour: World) -> None:
    pid = harbour.pid_of("worker", "pilot-1")
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        told = json.loads(harbour.muster("status", "--json").stdout)
        agent = next(agent for agent in told["agents"] if agent["agent"] == "pilot-1")
        return agent["state"] == "ready" and agent["pid"] not in (None, pid) and agent["restarts"] == 1

    eventually(is_back, PATIENCE_S, "pilot-1 is back")
    log = harbour.muster("logs").stdout
    assert "worker.exited" in log


def test_status_says_so_when_the_coordinator_is_silent(harbour: World) -> None:
    pid = harbour.pid_of("coordinator")
    os.kill(pid, signal.SIGSTOP)
    try:
        status = harbour.muster("status", "--json", "--timeout", "500ms")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert status.returncode == 1
    told = json.loads(status.stdout)
    assert told["state"] == "unreachable"
    assert "cannot be reached" in told["problems"][0]
    assert {agent["agent"] for agent in told["agents"]} >= {"pilot-1", "pilot-2"}


def test_in_front_events_are_printed_and_sigterm_brings_it_down(world: World) -> None:
    front = world.start("up", "--json")
    assert front.stdout is not None
    first = json.loads(front.stdout.readline())
    assert (first["event"], first["agents"], first["not_ready"]) == ("fleet.up", 2, [])
    front.send_signal(signal.SIGTERM)
    done = world.finish(front)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "fleet.ended" in [event.get("event") for event in events]
    assert done.returncode in (0, 143)
    eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def test_in_front_only_the_events_of_this_life_are_shown(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    assert world.muster("down").returncode == 0
    front = world.start("up", "--json")
    assert front.stdout is not None
    front.stdout.readline()
    front.send_signal(signal.SIGINT)
    done = world.finish(front)
    events = [json.loads(line).get("event") for line in done.stdout.splitlines()]
    assert events.count("fleet.ended") == 1, (done.stdout, done.stderr)


def test_a_fleet_whose_front_is_killed_goes_down(world: World) -> None:
    front = world.start("up")
    assert front.stdout is not None
    front.stdout.readline()
    front.kill()
    world.finish(front)
    eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def test_down_of_a_fleet_that_is_not_up_is_refused(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    assert world.muster("down", "--now").returncode == 0
    again = world.muster("down")
    assert again.returncode == 1
    assert again.stderr == "muster: the fleet 'harbour' is not up\n"


def test_doctor_finds_a_crashed_fleet_and_reclaims_it(world: World) -> None:
    process = world.start("run", "--name", "wreck", "--results", "r.jsonl", "sleep", ":::", "0", "300")
    eventually(
        lambda: (world.work / "r.jsonl").exists() and (world.work / "r.jsonl").read_bytes(), PATIENCE_S, "a result"
    )
    for pid in [process.pid, *world.marked()]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    world.finish(process)
    found = world.muster("doctor")
    assert "crashed run 'wreck'" in found.stdout
    fixed = world.muster("doctor", "--fix", "--json")
    assert "removed" in next(f["text"] for f in json.loads(fixed.stdout) if f["subject"] == "leftovers")
    world.assert_nothing_left()


def test_a_command_of_an_agent_speaks_as_that_agent(harbour: World) -> None:
    muster = f"{sys.executable} -m muster.cli.entry"
    script = f'{muster} send desk "from $MUSTER_AGENT" && {muster} send $MUSTER_AGENT note && {muster} recv --wait 10s'
    results = harbour.work / "said.jsonl"
    done = harbour.muster(
        "run",
        "-j",
        "1",
        "--name",
        "crew",
        "--results",
        str(results),
        "--shell",
        f": {{}}; {script.replace('desk', 'operator')}",
        ":::",
        "x",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "w-1: note\n"
    assert "w-1: from w-1" in done.stderr  # the operator of a run is its command line, which shows what it is told


def test_an_agents_command_cannot_speak_as_somebody_else(world: World) -> None:
    muster = f"{sys.executable} -m muster.cli.entry"
    done = world.muster("run", "-j", "1", "--shell", f": {{}}; {muster} send --as operator w-1 lie", ":::", "x")
    assert done.returncode == 1
    assert "cannot speak as 'operator'" in done.stderr


def test_what_could_not_be_printed_is_not_acked(harbour: World) -> None:
    assert harbour.muster("send", "desk", "precious").returncode == 0
    read_end, write_end = os.pipe()
    os.close(read_end)
    lost = harbour.start("recv", "--as", "desk", stdout=write_end)
    os.close(write_end)
    assert harbour.finish(lost).returncode == 128 + signal.SIGPIPE
    assert harbour.muster("recv", "--as", "desk").stdout == "operator: precious\n"


def test_a_process_that_is_no_descendant_cannot_use_an_agents_socket(world: World) -> None:
    process = world.start(
        "run", "-j", "1", "--shell", "echo $MUSTER_SOCKET > address.new; mv address.new address; sleep {}", ":::", "60"
    )
    address = world.work / "address"
    eventually(address.exists, PATIENCE_S, "the address of the agent's socket")
    stranger = {"MUSTER_SOCKET": address.read_text().strip(), "MUSTER_AGENT": "w-1"}
    refused = world.muster("send", "operator", "lie", env=stranger)
    assert refused.returncode == 1
    assert refused.stderr.startswith("muster: ")
    assert "Traceback" not in refused.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert "lie" not in world.finish(process).stderr
    world.assert_nothing_left()


@pytest.mark.parametrize("way", ["read", "discarded"])
def test_a_run_with_unread_messages_stays_until_they_are_read_or_discarded(world: World, way: str) -> None:
    muster = f"{sys.executable} -m muster.cli.entry"
    done = world.muster("run", "-j", "2", "--name", "mail", "--shell", f": {{}}; {muster} send w-2 keep", ":::", "x")
    assert done.returncode == 0, done.stderr
    assert "messages in mail are unread" in done.stderr
    assert world.stores() == ["mail"]
    assert "1 messages in it that nobody has read" in world.muster("doctor").stdout
    assert "kept because" in world.muster("doctor", "--fix").stdout
    assert json.loads(world.muster("ls", "--fleets", "--json").stdout)[0]["state"] == "ended"
    if way == "read":
        assert world.muster("recv", "--fleet", "mail", "--as", "w-2").stdout in ("w-1: keep\n", "w-2: keep\n")
        world.muster("doctor", "--fix")
    else:
        world.muster("doctor", "--fix", "--discard")
    world.assert_nothing_left()
