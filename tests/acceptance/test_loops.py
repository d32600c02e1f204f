"""Agents that answer each other without end are stopped after the declared number of hops, and nothing else suffers."""

from __future__ import annotations

import json
import subprocess
import sys

from muster.core import limits
from muster.testing import eventually

from .place import PATIENCE_S, Place

#: An agent that answers whatever it hears, and notes that it did.
ANSWERER = """
import sys, muster
me, other, notes = sys.argv[1:4]
agent = muster.Agent(me)

@agent.on("chat")
async def answer(text):
    with open(notes, "a") as file:
        file.write(".")
    await agent.bus.send(other, "and what do you think?", type="chat")

@agent.on("work")
async def work(text):
    return "done"

agent.run()
"""


def test_two_handlers_that_answer_each_other_stop_after_the_declared_hops_and_go_on_working(place: Place) -> None:
    """Neither of them says `cause=`: what a handler sends is because of what it works on."""
    place.script("fleet.toml", '[fleet]\nname = "talk"\n[agents.left]\n[agents.right]\n')
    assert place.carry_out("up", "-d").process.returncode == 0
    script, notes = place.script("answerer.py", ANSWERER), place.work / "notes"
    env = place.env | {"MUSTER_STORE": str(place.root / "talk")}
    pair = [
        subprocess.Popen([sys.executable, script, me, other, str(notes)], cwd=place.work, env=env)
        for me, other in (("left", "right"), ("right", "left"))
    ]
    try:
        eventually(lambda: place.carry_out("ask", "left", "x", "--type", "work").process.returncode == 0, PATIENCE_S)
        assert place.carry_out("send", "left", "hello", "--type", "chat").process.returncode == 0
        eventually(lambda: notes.exists() and notes.stat().st_size > limits.HOPS_MAX, PATIENCE_S, "the storm ends")
        for who in ("left", "right"):  # they are well, and hear others
            assert "done" in place.carry_out("ask", who, "x", "--type", "work").output.decode()
        assert notes.stat().st_size == limits.HOPS_MAX + 1, "the first message has no hop"
    finally:
        for one in pair:
            one.terminate()
            one.wait(10)
        place.carry_out("down", "--now")


def test_two_commands_that_give_each_other_tasks_stop_after_the_declared_hops_and_it_is_told(place: Place) -> None:
    kinds = "".join(
        f'[agents.{me}]\nshell = true\ncommand = "echo {{}} >> {place.work}/tasks; muster send coordinator again --type task@{other}"\n'
        for me, other in (("left", "right"), ("right", "left"))
    )
    place.script("fleet.toml", f'[fleet]\nname = "spend"\nmetrics_interval = "1s"\n{kinds}')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        assert place.carry_out("send", "coordinator", "begin", "--type", "task@left").process.returncode == 0
        told = eventually(lambda: stopped(place), 2 * PATIENCE_S, "the loop is told") or {}
        assert told["messages"] == 1
        tasks = (place.work / "tasks").read_text().split()
        assert len(tasks) == limits.HOPS_MAX + 1
    finally:
        place.carry_out("down", "--now")


def stopped(place: Place) -> dict[str, int] | None:
    lines = place.carry_out("logs", "--json").output.splitlines()
    return next((entry for entry in map(json.loads, lines) if entry.get("event") == "loop.stopped"), None)
