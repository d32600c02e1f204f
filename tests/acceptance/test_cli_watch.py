"""`muster watch` on a real fleet: what happens is printed as it happens, and once; it ends with the fleet."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.bus.store import create_store
from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(120)

FLEET = """
[fleet]
name = "tower"
grace = "3s"

[agents.pilot]
command = ["sh", "-c", "exit {input}"]
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        (one.work / "fleet.toml").write_text(FLEET)
        yield one


def submit(world: World, number: int, text: str) -> None:
    body = json.dumps({"tasks": [[number, text]]})
    assert world.muster("send", "coordinator", "-t", "task.submit", "--json-body", body).returncode == 0


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def once(world: World, *words: str) -> list[dict[str, Any]]:
    done = world.muster("watch", "--once", "--json", *words)
    assert done.returncode == 0, done.stderr
    return events(done.stdout)


def test_a_fleet_is_watched_through_kills_to_its_end_and_nothing_is_seen_twice(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    watching = world.start("watch", "--json")
    submit(world, 1, "0")
    submit(world, 2, "7")
    eventually(lambda: sum(e["event"] == "task.ended" for e in once(world)) == 2, PATIENCE_S, "both tasks ended")
    os.kill(world.pid_of("coordinator"), signal.SIGKILL)
    eventually(lambda: any(e["event"] == "coordinator.recovered" for e in once(world)), PATIENCE_S, "it came back")
    assert world.muster("down").returncode == 0
    done = world.finish(watching)
    assert done.returncode == 0, done.stderr
    seen = events(done.stdout)
    assert [e["outcome"] for e in seen if e["event"] == "task.ended"] == ["done", "failed"]
    assert seen[0]["event"] == "fleet.started"
    assert seen == once(world), "what was followed live and what stands there afterwards differ"
    assert once(world, "--after", seen[4]["seq"]) == seen[5:]
    human = world.muster("watch").stdout.splitlines()
    assert len(human) == sum(e["event"] != "time.passed" for e in seen)
    assert "task.ended" in "\n".join(human)


def test_new_shows_only_what_happens_from_now_on(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    assert once(world, "--new") == []
    assert world.muster("down").returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--after", "soon"), 2, "--after"),
        (("--after", "99999"), 2, "records so far"),
        (("--after", "1", "--new"), 2, "not both"),
        (("--fleet", "nobody"), 1, "nobody"),
    ],
)
def test_a_mistake_is_one_sentence(world: World, words: tuple[str, ...], status: int, said: str) -> None:
    assert world.muster("up", "-d").returncode == 0
    done = world.muster("watch", *words)
    assert world.muster("down").returncode == 0
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
    assert said in done.stderr


def test_a_fleet_that_never_had_a_coordinator_says_so(world: World) -> None:
    create_store(world.root / "joined")
    done = world.muster("watch", "--fleet", "joined")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "nothing to watch" in done.stderr
