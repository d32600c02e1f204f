"""`muster top`: once for pipes and programs, live in a real terminal; and limits of fleet.toml seen from the command line."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.testing import eventually

from .cli_world import MUSTER, PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(120)

FLEET = """
[fleet]
name = "harbour"
grace = "1s"

[agents.pilot]
count = 3
command = ["sh", "-c", "sleep $0", "{input}"]

[agents.glutton]
command = ["PYTHON", "-c", "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(60)", "{input}"]

[agents.glutton.limits]
rss = "80MB"
wall = "20s"
""".replace("PYTHON", sys.executable)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "fleet.toml").write_text(FLEET)
    with a_world(tmp_path) as world:
        yield world


def test_once_it_is_a_table_for_people_and_json_for_programs(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    world.muster("send", "coordinator", "60", "--type", "task@pilot")
    world.muster("send", "pilot-2", "hello")

    def busy() -> bool:
        told = json.loads(world.muster("top", "--json").stdout)
        return bool(told["tasks"]["running"] == 1 and told["totals"]["states"].get("busy") == 1)

    eventually(busy, PATIENCE_S, "one agent is busy")
    told = json.loads(world.muster("top", "--json", "--sort", "inbox").stdout)
    assert (told["fleet"], told["state"], told["totals"]["agents"]) == ("harbour", "running", 4)
    assert told["agents"][0]["agent"] == "pilot-2"
    assert told["agents"][0]["inbox_depth"] == 1
    once = world.muster("top", "--once", "--filter", "busy")
    assert once.returncode == 0
    assert once.stdout.startswith("harbour is running")
    assert len([line for line in once.stdout.splitlines() if line.startswith("pilot-")]) == 1
    piped = world.muster("top")
    assert [line.split()[0] for line in piped.stdout.splitlines()[3:]] == [
        "AGENT",
        "glutton",
        "pilot-1",
        "pilot-2",
        "pilot-3",
    ]
    assert world.muster("down", "--now").returncode == 0
    down = world.muster("top", "--json")
    assert json.loads(down.stdout)["state"] == "down"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sort", "beauty"), "there is no column 'beauty'; there are agent, team"),
        (("--interval", "10ms"), "--interval: 10ms is shorter than 0.2s"),
        (("--interval", "soon"), "is not a duration"),
        (("nowhere",), "there is no fleet 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(world: World, words: tuple[str, ...], said: str) -> None:
    assert world.muster("up", "-d").returncode == 0
    done = world.muster("top", *words)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode in (1, 2)
    world.muster("down", "--now")


def test_in_a_terminal_it_is_live_and_gives_the_terminal_back(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    screen, line = pty.openpty()
    termios.tcsetwinsize(line, (24, 80))
    before = termios.tcgetattr(line)
    top = subprocess.Popen(
        [*MUSTER, "top", "--interval", "0.2s"], stdin=line, stdout=line, stderr=line, cwd=world.work, start_new_session=True,
        env={**world.env, "TERM": "xterm-256color", "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    seen = bytearray()
    try:

        def shows(words: bytes) -> bool:
            while select.select([screen], [], [], 0)[0]:
                seen.extend(os.read(screen, 1 << 16))
            return words in seen

        eventually(lambda: shows(b"pilot-3"), PATIENCE_S, "the table is drawn")
        coordinator = world.pid_of("coordinator")
        os.kill(coordinator, signal.SIGKILL)
        seen.clear()
        eventually(lambda: shows(b"restarted"), PATIENCE_S, "what changes is shown")
        os.write(screen, b"q")
        ends = time.monotonic() + PATIENCE_S
        while top.poll() is None and time.monotonic() < ends:
            shows(b"")
            time.sleep(0.02)
        assert top.poll() == 0
        assert termios.tcgetattr(line)[3] == before[3], "echo and line mode are back"
    finally:
        top.kill()
        top.wait()
        os.close(screen)
        os.close(line)
        world.muster("down", "--now")


def test_a_task_over_its_limit_fails_with_the_figures_and_the_fleet_goes_on(world: World) -> None:
    assert world.muster("up", "-d").returncode == 0
    done = world.muster("ask", "coordinator", "200000000", "--type", "task@glutton", "--timeout", "50s")
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["limit_bytes"]) == ("limit.rss", 80_000_000)
    assert error["rss_bytes"] > 80_000_000
    quick = world.muster("ask", "coordinator", "0", "--type", "task@pilot", "--timeout", "50s")
    assert json.loads(quick.stdout)["outcome"] == "done"
    world.muster("down", "--now")


def test_limits_that_cannot_hold_start_nothing(world: World) -> None:
    (world.work / "fleet.toml").write_text('[agents.a]\ncommand = ["true"]\n[agents.a.limits]\nrss = "little"\n')
    done = world.muster("up", "-d")
    assert done.returncode == 2
    assert "[agents.a] limits.rss: 'little' is not an amount of memory" in done.stderr
    assert world.stores() == []
