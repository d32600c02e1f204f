"""One rate for a whole large fleet: never more in any window, and nearly all of it, whoever is killed meanwhile."""

from __future__ import annotations

import os
import random
import signal

import pytest
from tests.acceptance.place import PATIENCE_S, Muster, Place
from tests.acceptance.test_limits import excess

from muster.limit.limiter import SPEND_BY_NS
from muster.testing import eventually

from . import figures
from .form import FORM

BURST = 10
#: Starts per second, and starts: twenty seconds' worth in the long form.
RATE, COUNT = (20, 100) if FORM.name == "brief" else (100, 2_000)
KILLS = 4 if FORM.name == "brief" else 20
#: From the admission in a worker to the command's own first look at the clock, on a busy machine.
START_NS = 1_000_000_000
#: Says when it began, and costs the machine little.
STAMP = ("sh", "-c", "date +%s%N; #")

pytestmark = [pytest.mark.timeout(900), *([pytest.mark.slow] if FORM.name != "brief" else [])]


def stamping(place: Place, *options: str) -> Muster:
    inputs = place.inputs(map(str, range(COUNT)))
    return place.start("run", *options, "--rate", f"{RATE}/s", "--burst", str(BURST), "-a", inputs, *STAMP)


def stamps_of(run: Muster) -> list[int]:
    return sorted(int(line) for line in run.output.split())


def check(run: Muster) -> list[int]:
    assert run.end(60 + 10 * COUNT / RATE) == 0, run.errors
    stamps = stamps_of(run)
    assert len(stamps) >= COUNT
    assert excess(stamps, RATE, BURST, SPEND_BY_NS + START_NS) <= 0
    return stamps


@pytest.mark.parametrize("teams", [0, FORM.teams[1]], ids=["flat", "in teams"])
def test_no_window_holds_more_than_the_rate_and_the_rate_is_used(place: Place, teams: int) -> None:
    stamps = check(stamping(place, "-j", str(FORM.agents), *(("--teams", str(teams)) if teams else ())))
    steady = stamps[len(stamps) // 4 :]  # at first most of the agents are still being born
    used = (len(steady) - 1) / (RATE * (steady[-1] - steady[0]) / 1e9)
    how = f"{FORM.agents} agents{f' in {teams} teams' if teams else ''} behind {RATE}/s"
    figures.note(f"{how}: share of the rate that is used", used, "", goal=0.97, at_least=True)
    figures.note(f"{how}: most starts beyond rate·T + burst", excess(stamps, RATE, BURST, 0), "starts")


def test_kills_mint_nothing(place: Place) -> None:
    run = stamping(place, "-j", str(FORM.agents))
    rng = random.Random(20)
    eventually(lambda: len(run.output) > 0, 3 * PATIENCE_S, "the first task starts")
    for number in range(KILLS):
        workers = list(run.workers().values())
        victim = run.coordinator() if number % 2 else rng.choice(workers or [0])
        if not victim or run.process.poll() is not None:
            break
        os.kill(victim, signal.SIGKILL)
        goes_on(run, len(run.output))
    check(run)


def goes_on(run: Muster, seen: int) -> None:
    eventually(
        lambda: len(run.output) > seen or run.process.poll() is not None, PATIENCE_S, "a task starts after a kill"
    )
