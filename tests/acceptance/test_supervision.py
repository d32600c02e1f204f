"""Workers that crash, get old or are not ready: real processes, seen through the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        yield one


def up(world: World, fleet: str) -> None:
    (world.work / "fleet.toml").write_text(fleet)
    started = world.muster("up", "-d")
    assert started.returncode == 0, started.stderr


def down(world: World) -> None:
    ended = world.muster("down")
    assert ended.returncode == 0, ended.stderr
    eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def status(world: World) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(world.muster("status", "--json").stdout)
    return told


def agent(world: World, name: str) -> dict[str, Any]:
    return next(row for row in status(world)["agents"] if row["agent"] == name)


def events(world: World, name: str) -> list[dict[str, Any]]:
    """The notes of that name, oldest first."""
    (store,) = [path for path in world.root.iterdir() if not path.name.startswith(".")]
    notes = [json.loads(line) for line in (store / "events.jsonl").read_text().splitlines()]
    return [note for note in notes if note["event"] == name]


CRASHING = """
[fleet]
name = "harbour"
profile = "development"

[agents.mole]
handler = "moles:work"
restarts = "3/1m"
restart_delay = "50ms"

[agents.pilot]
command = ["sh", "-c", "echo pilot {input}"]
"""

#: Does its work until a file says that it is to crash, as soon as it starts.
MOLES = """
import os, pathlib, signal
with open("starts", "a") as log:
    log.write("start\\n")
if pathlib.Path("crash").exists():
    os.kill(os.getpid(), signal.SIGKILL)
def work(text):
    return text
"""


def test_a_crash_loop_is_quarantined_after_exactly_its_restarts_and_the_rest_works_on(world: World) -> None:
    (world.work / "moles.py").write_text(MOLES)
    up(world, CRASHING)
    try:
        (world.work / "starts").unlink()  # of the check before the fleet began, and of the first worker
        (world.work / "crash").touch()
        os.kill(world.pid_of("worker", "mole"), signal.SIGKILL)
        eventually(lambda: agent(world, "mole")["state"] == "quarantined", PATIENCE_S, "the mole is set aside")
        assert (world.work / "starts").read_text().count("start") == 3, "three restarts and not one more"
        mole = agent(world, "mole")
        assert (mole["restarts"], mole["pid"], mole["verdict"]) == (3, None, "unhealthy")
        assert any("died 4 times within 60 s, last it died by signal 9" in text for text in mole["evidence"])
        (note,) = events(world, "worker.quarantined")
        assert note["worker"] == "mole"
        reply = world.muster("ask", "coordinator", "ship", "--type", "task@pilot", "--json")
        assert json.loads(reply.stdout)["body"]["stdout"] == "pilot ship\n", "the other kind works on"
    finally:
        down(world)


SLEEPY = """
[fleet]
name = "harbour"
profile = "development"

[agents.sleeper]
handler = "sleepers:work"
ready_timeout = "1s"
"""

#: The first worker hangs before it is ready, later ones do not.
SLEEPERS = """
import os, pathlib, time
def first():
    try:
        pathlib.Path("started").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
if "MUSTER_AGENT" in os.environ and first():
    time.sleep(3600)
def work(text):
    return text
"""


def test_a_worker_that_hangs_before_it_is_ready_is_killed_and_started_again(world: World) -> None:
    (world.work / "sleepers.py").write_text(SLEEPERS)
    up(world, SLEEPY)
    try:
        eventually(lambda: agent(world, "sleeper")["state"] == "ready", PATIENCE_S, "the second start got ready")
        (note,) = events(world, "worker.not_ready")
        assert (note["worker"], note["timeout_s"]) == ("sleeper", 1.0)
        assert agent(world, "sleeper")["incarnation"] == 2
    finally:
        down(world)
