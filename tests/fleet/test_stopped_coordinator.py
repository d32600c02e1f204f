"""The coordinator is stopped, not dead: agents go on talking to each other, and nobody takes its silence, or theirs, for a death."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import pytest
from tests.acceptance.place import PATIENCE_S, Muster, Place, lines_of

from muster.testing import eventually

from . import figures
from .form import FORM

AGENTS = 50
#: How long the agents talk: before, during and after the stop, with room for a slow start.
TALK_S = FORM.stopped_s + 5.0
PATIENCE = 4 * TALK_S + 120

pytestmark = [pytest.mark.timeout(int(2 * PATIENCE)), pytest.mark.slow]

#: `talk.py GO SECONDS`: once GO exists, asks its neighbour in the ring, and answers the other one, through the socket of its agent. Prints
#: how many answers it got in each second of the wall clock, and the longest wait for one.
TALK = """
import json, os, sys, time
from muster.agent.client import OwnerClient

go, seconds = sys.argv[1], float(sys.argv[2])
open(f"{go}.{os.environ['MUSTER_AGENT']}", "w").close()
while not os.path.exists(go):
    time.sleep(0.02)
with OwnerClient() as me:
    name = me.whoami()["agent"]
    number, count = int(name.rpartition("-")[2]), int(sys.argv[3])
    neighbour = f"w-{number % count + 1}"
    answers, longest, sent, ends = {}, 0.0, 0, time.time() + seconds
    open_since = None
    while time.time() < ends or (open_since is not None and time.time() < ends + 5):
        if open_since is None and time.time() < ends:
            sent += 1
            me.send(neighbour, ["question", sent])
            open_since = time.time()
        for message in me.receive(10, wait_s=0.5):
            word, n = message["body"]
            if word == "question":
                me.send(message["sender"], ["answer", n])
            elif n == sent and open_since is not None:
                longest = max(longest, time.time() - open_since)
                second = int(time.time())
                answers[second] = answers.get(second, 0) + 1
                open_since = None
            me.ack(message)
        if open_since is None:
            time.sleep(0.1)
    # Questions of slower neighbours are still answered.
    ends = time.time() + 2
    while time.time() < ends:
        for message in me.receive(10, wait_s=0.5):
            if message["body"][0] == "question":
                me.send(message["sender"], ["answer", message["body"][1]])
            me.ack(message)
print(json.dumps({"sent": sent, "answers": answers, "longest_s": longest, "lost": open_since is not None}))
"""


def stop_for(run: Muster, seconds: float) -> tuple[float, float]:
    """SIGSTOP the coordinator for so long; the wall times of both signals."""
    pid = run.coordinator()
    assert pid is not None
    stopped_s = time.time()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    assert run.coordinator() == pid, "a stopped coordinator is not replaced"
    os.kill(pid, signal.SIGCONT)
    return stopped_s, time.time()


def health_events(place: Place) -> list[dict[str, Any]]:
    """What the coordinator noted against any agent."""
    (store,) = place.stores()
    notes = [json.loads(line) for line in (store / "events.jsonl").read_text().splitlines()]
    return [note for note in notes if note["event"] in ("worker.exited", "worker.survivors", "agent.dead")]


def test_agents_talk_on_while_the_coordinator_is_stopped_and_nobody_is_declared_dead(place: Place) -> None:
    go = place.work / "go"
    results, report = place.work / "results.jsonl", place.work / "report.json"
    run = place.start(
        "run", "-j", str(AGENTS), "--agents-per-worker", "1", "--results", str(results), "--report", str(report),
        "-a", place.inputs(map(str, range(AGENTS))),
        sys.executable, place.script("talk.py", TALK), str(go), f"{TALK_S:g}", str(AGENTS), "{#}",
    )  # fmt: skip
    eventually(lambda: len(list(place.work.glob("go.w-*"))) == AGENTS, 4 * PATIENCE_S, "every agent runs its talk")
    go.touch()
    time.sleep(1.0)
    stopped_s, continued_s = stop_for(run, FORM.stopped_s)
    assert not health_events(place)
    assert run.end(PATIENCE) == 0, run.errors

    told = [json.loads(line["stdout"]) for line in lines_of(results)]
    assert len(told) == AGENTS
    assert not any(one["lost"] for one in told), "an answer never came"
    per_second: Counter[int] = Counter()
    for one in told:
        per_second.update({int(second): count for second, count in one["answers"].items()})
    during = [per_second[second] for second in range(int(stopped_s) + 1, int(continued_s))]
    assert during, "the stop was too short to tell"
    assert min(during) > 0, f"a second without any answer while the coordinator was stopped: {during}"
    reported = json.loads(report.read_bytes())
    assert (reported["done"], reported["worker_deaths"], reported["restarts"], reported["reassigned"]) == (
        AGENTS,
        0,
        0,
        0,
    )
    assert reported["coordinator_restarts"] == 0
    place.assert_nothing_is_left()

    figures.note(
        f"coordinator stopped for {FORM.stopped_s:g} s: answers between {AGENTS} agents, per second",
        sum(during) / len(during),
        "/s",
    )
    figures.note("  fewest in one second", min(during), "/s")
    figures.note("  longest wait for an answer", max(one["longest_s"] for one in told), "s")
