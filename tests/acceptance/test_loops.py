"""Agents that answer each other without end are stopped after the declared number of hops, and nothing else suffers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

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
        assert eventually(lambda: stopped(place), PATIENCE_S, "the loop is told")
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


#: `chat.sh NOTES ME OTHER WORD`: "begin" says something to OTHER, then thanks for all that comes; a refusal is noted, and ends it.
CHAT = """
notes=$1 me=$2 other=$3
case $4 in
work) echo $me >> $notes/worked; exit 0 ;;
begin) muster send $other 'thank you' ;;
esac
while said=$(muster recv --wait 60s); do
    case $said in *enough) exit 0 ;; esac
    if ! muster reply $other 'thank you too' 2>> $notes/refusals; then
        muster send $other enough
        exit 0
    fi
    echo $me >> $notes/replies
done
exit 1
"""
HOPS = 6


def test_two_commands_that_thank_each_other_stop_after_the_declared_hops_and_go_on_working(place: Place) -> None:
    """As coding agents would: each reads its inbox with `muster recv` and answers with `muster reply`."""
    script = place.script("chat.sh", CHAT)
    kinds = "".join(
        f'[agents.{me}]\ncommand = ["sh", "{script}", "{place.work}", "{me}", "{other}", "{{}}"]\n'
        for me, other in (("left", "right"), ("right", "left"))
    )
    place.script("fleet.toml", f'[fleet]\nname = "thanks"\nhops = {HOPS}\nmetrics_interval = "1s"\n{kinds}')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        give(place, "right", "listen")
        give(place, "left", "begin")
        told = eventually(lambda: stopped(place), 2 * PATIENCE_S, "the loop is told") or {}
        # The first thanks are because of the task that was given by message: that is one of the hops.
        eventually(lambda: len(replies(place)) >= HOPS - 1, PATIENCE_S, "the replies are noted")
        assert sorted(replies(place)) == ["left"] * 2 + ["right"] * 3
        assert (told["agent"], told["messages"]) == ("left", 1)
        assert (place.work / "refusals").read_text() == (
            f"muster: this would be answer {HOPS + 1} of one chain of messages, and the fleet allows {HOPS}: it looks like an echo "
            "storm, so nothing was sent\n"
        )
        for who in ("left", "right"):  # the talk is over, and they do other work
            give(place, who, "work")
        worked = place.work / "worked"
        eventually(
            lambda: worked.exists() and sorted(worked.read_text().split()) == ["left", "right"],
            2 * PATIENCE_S,
            "both go on",
        )
        assert len(replies(place)) == HOPS - 1, "it cost something more"
    finally:
        place.carry_out("down", "--now")


def test_at_the_command_line_too_a_chain_of_replies_ends_and_is_told(place: Place) -> None:
    """Agents that nobody hosts: a coding agent in a terminal of its own, with --as."""
    place.script("fleet.toml", '[fleet]\nname = "terms"\nhops = 3\n[agents.anna]\n[agents.otto]\n')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        assert place.carry_out("reply", "otto", "to what?", "--as", "anna").process.returncode == 2
        assert place.carry_out("send", "otto", "0", "--as", "anna").process.returncode == 0
        me, other = "otto", "anna"
        for number in range(1, 4):
            heard = json.loads(place.carry_out("recv", "--as", me, "--wait", "20s", "--json").output)
            assert (heard["body"], heard["hops"], heard["asks"]) == (str(number - 1), number - 1, False)
            assert place.carry_out("reply", other, str(number), "--as", me).process.returncode == 0
            me, other = other, me
        assert place.carry_out("recv", "--as", me, "--wait", "20s").process.returncode == 0
        refused = place.carry_out("reply", other, "4", "--as", me, "--json")
        assert refused.process.returncode == 1
        assert json.loads(refused.output)["error"]["code"] == "bus.echo_storm"
        assert place.carry_out("recv", "--as", other).process.returncode == 1, "it was sent all the same"
        told = eventually(lambda: stopped(place), PATIENCE_S, "the loop is told") or {}
        assert told["agent"] == me
        assert place.carry_out("send", other, "something new", "--as", me).process.returncode == 0
        assert place.carry_out("recv", "--as", other).output == f"{me}: something new\n".encode()
    finally:
        place.carry_out("down", "--now")


def test_whoever_asked_gets_the_reply_of_a_command_line(place: Place) -> None:
    place.script("fleet.toml", '[fleet]\nname = "terms"\n[agents.anna]\n[agents.otto]\n')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        asking = place.start("ask", "anna", "how many?", "--as", "otto", "--timeout", "60s")
        heard = place.carry_out("recv", "--as", "anna", "--wait", "30s").output
        assert heard == b"otto asks: how many?\n"
        assert place.carry_out("reply", "otto", "seven", "--as", "anna").process.returncode == 0
        assert asking.end() == 0
        assert asking.output == b"seven\n"
        checked = place.carry_out("fsck")
        assert checked.process.returncode == 0, checked.output
    finally:
        place.carry_out("down", "--now")


#: `talk.py ME OTHER ROUNDS`: a long talk with a purpose. left asks, and sends questions; right replies, and sends answers.
TALK = """
import sys
from muster.agent.client import OwnerClient

me, other, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with OwnerClient() as bus:
    if me == "left":
        for number in range(rounds):
            assert bus.ask(other, number, timeout_s=60)["body"] == number + 1
        for number in range(rounds):
            bus.send(other, number)
            message, = bus.receive(wait_s=60)
            assert message["body"] == number + 1
            bus.ack(message)
    else:
        for number in range(2 * rounds):
            message, = bus.receive(wait_s=60)
            answer = bus.reply if message["asks"] else bus.send
            answer(message["sender"], message["body"] + 1)
            bus.ack(message)
"""


def test_a_long_talk_of_questions_and_answers_is_no_loop(place: Place) -> None:
    script = place.script("talk.py", TALK)
    rounds = 10 * limits.HOPS_MAX
    kinds = "".join(
        f'[agents.{me}]\ncommand = ["{sys.executable}", "{script}", "{me}", "{other}", "{{}}"]\n'
        for me, other in (("left", "right"), ("right", "left"))
    )
    place.script("fleet.toml", f'[fleet]\nname = "talk"\nmetrics_interval = "1s"\n{kinds}')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        for who in ("left", "right"):
            give(place, who, str(rounds))

        def done() -> bool:
            tasks = json.loads(place.carry_out("status", "--json").output)["tasks"]
            assert tasks["failed"] == 0
            return bool(tasks["done"] == 2)

        eventually(done, 2 * PATIENCE_S, "both have said all")
        assert stopped(place) is None
    finally:
        place.carry_out("down", "--now")


def replies(place: Place) -> list[str]:
    """Who has replied, once for each time."""
    return (place.work / "replies").read_text().split()


def give(place: Place, who: str, word: str) -> None:
    assert place.carry_out("send", "coordinator", word, "--type", f"task@{who}").process.returncode == 0


def stopped(place: Place) -> dict[str, Any] | None:
    lines = place.carry_out("logs", "--json").output.splitlines()
    return next((entry for entry in map(json.loads, lines) if entry.get("event") == "loop.stopped"), None)
