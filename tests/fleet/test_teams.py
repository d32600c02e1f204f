"""Hybrid fleets: whoever of the coordinators is killed, work goes on; a team that cannot be kept alive works on in other teams."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime

import pytest
from tests.acceptance.place import Muster, Place, assert_recorded_once, lines_of, wait_for_lines

from muster.bus.store import read_spec
from muster.core.spec import teams

from . import figures
from .form import COORDINATOR_PAUSE_S, FORM
from .kills import Kills
from .witness import Witness

AGENTS, TEAMS = FORM.teams
#: How long one task takes, about.
TASK_S = 1.5
PATIENCE = 4 * COORDINATOR_PAUSE_S * FORM.coordinator_kills + 120
#: What the agents of a team that is given up may take until all of them work for others.
MOVED_S = 10.0

pytestmark = [pytest.mark.timeout(int(3 * PATIENCE)), pytest.mark.slow]


class Run:
    """A run in teams whose tasks are witnessed, long enough for so many seconds of kills."""

    def __init__(self, place: Place, seconds: float) -> None:
        self.place = place
        self.witness = Witness(place)
        self.count = int(AGENTS / TASK_S * seconds)
        self.inputs = [str(number) for number in range(1, self.count + 1)]
        self.results, self.report = place.work / "results.jsonl", place.work / "report.json"
        self.run: Muster = place.start(
            "run", "-j", str(AGENTS), "--teams", str(TEAMS), "--agents-per-worker", "1", "--results", str(self.results),
            "--report", str(self.report), "-a", place.inputs(self.inputs), *self.witness.command(int(TASK_S)),
        )  # fmt: skip
        self.store = self.run.store()
        wait_for_lines(self.results, 1)

    def team_pid(self, team: str) -> int | None:
        """The process that coordinates a team now."""
        return self.run.teams().get(team)

    def assert_nothing_lost(self, *, interrupted: bool) -> dict[str, object]:
        """To the end: everything is recorded once, and nothing ran beside itself. The report."""
        assert self.run.process.poll() is None, "the last kill came too late to mean anything"
        assert self.run.end(PATIENCE) == 0, self.run.errors
        assert_recorded_once(self.results, self.inputs)
        told: dict[str, object] = json.loads(self.report.read_bytes())
        assert (told["tasks"], told["done"], told["failed"], told["duplicates"]) == (self.count, self.count, 0, 0)
        self.witness.assert_none_ran_beside_another(self.inputs, interrupted=interrupted)
        self.place.assert_nothing_is_left()
        return told


def test_the_root_and_its_teams_killed_in_turn_neither_lose_nor_double_anything(place: Place) -> None:
    run = Run(place, COORDINATOR_PAUSE_S * (FORM.coordinator_kills + 0.5))
    root = Kills(run.store / "coordinator", run.run.coordinator)
    below: dict[str, Kills] = {}
    for number in range(FORM.coordinator_kills):
        began = time.monotonic()
        root.strike()
        # A team each time, one after the other: the restart budget of a team is not what is tested.
        team = f"team-{number % TEAMS + 1}"
        if team not in below:
            below[team] = Kills(run.store / f"coordinator-{team}", lambda team=team: run.team_pid(team))  # type: ignore[misc]
        below[team].strike()
        time.sleep(max(0.0, began + COORDINATOR_PAUSE_S - time.monotonic()))
    told = run.assert_nothing_lost(interrupted=False)
    assert told["coordinator_restarts"] == FORM.coordinator_kills
    root.note(f"{FORM.coordinator_kills} kills of the root, and as many of teams, of {AGENTS} agents in {TEAMS}: root")
    for team, kills in sorted(below.items()):
        kills.note(f"  {team}")


def test_the_agents_of_a_team_that_is_gone_for_good_soon_work_for_others(place: Place) -> None:
    run = Run(place, 30.0)
    victim = "team-2"
    agents = teams(read_spec(run.store))[victim].agents()
    others = {name: pid for name, pid in run.run.teams().items() if name != victim}
    killed_s = kill_for_good(run, victim)
    given_up = [note for note in notes(run) if note["event"] == "team.given_up"]
    assert [note["team"] for note in given_up] == [victim]
    time.sleep(MOVED_S)
    assert run.run.teams() == others
    told = run.assert_nothing_lost(interrupted=False)
    assert told["coordinator_restarts"] == 0

    began: dict[str, float] = {}
    for line in lines_of(run.results):
        started_s = datetime.fromisoformat(line["started"]).timestamp()
        if started_s > killed_s:
            began[line["agent"]] = min(started_s, began.get(line["agent"], started_s))
    assert set(agents) <= set(began), f"never worked again: {set(agents) - set(began)}"
    moved_s = max(began[agent] for agent in agents) - killed_s
    figures.note(
        f"a team of {len(agents)} gone for good: all its agents at work for others", moved_s, "s", goal=MOVED_S
    )


def notes(run: Run) -> list[dict[str, object]]:
    """What the fleet has noted so far."""
    return [json.loads(line) for line in (run.store / "events.jsonl").read_text().splitlines()]


def kill_for_good(run: Run, team: str) -> float:
    """Kill a team's coordinator whenever it is there, until the root gives the team up; when it died last."""
    killed_s, last = 0.0, 0
    ends = time.monotonic() + PATIENCE
    while not any(note["event"] == "team.given_up" for note in notes(run)):
        assert run.run.process.poll() is None, run.run.errors
        assert time.monotonic() < ends, f"{team} is started again and again"
        pid = run.team_pid(team)
        if pid is not None and pid != last:
            last, killed_s = pid, time.time()
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return killed_s
