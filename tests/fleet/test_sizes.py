"""Fleets of every size, one process for each agent: all become ready, each one answers, all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.place import Place

from muster.core import limits
from muster.core.names import COORDINATOR

from . import figures
from .form import FORM
from .standing import Standing

ROUNDS = 10
#: Goals for an idle machine, in seconds, by the number of agents.
READY_S = {50: 1.0, 350: 3.0, 358: 3.0, 750: 7.0}
PSS_MB = 4.0

pytestmark = pytest.mark.slow

FLEET = """
[fleet]
name = "harbour"

[bus]
agents_max = {identities}

[agents.w]
count = {agents}
handler = "hand:work"
"""
TEAMS = """
[teams]
count = {teams}
"""
#: The barrier keeps an agent busy until all others have the round's task as well: so every agent gets one.
HANDLER = """
import asyncio
import muster

async def work(task: muster.Task):
    await asyncio.sleep(task.input)
    return task.agent
"""


async def a_round(standing: Standing, agents: int, hold_s: float) -> tuple[float, list[str]]:
    """Ask for as many tasks as there are agents, all at once; seconds until the last answer, and who answered."""
    async with await standing.operator() as bus:
        began = time.monotonic()
        asks = (bus.ask(COORDINATOR, hold_s, type="task", timeout_s=120.0) for _ in range(agents))
        replies = await asyncio.gather(*asks)
        took_s = time.monotonic() - began
    bodies: list[dict[str, Any]] = [reply.body for reply in replies]
    assert [body["outcome"] for body in bodies] == ["done"] * agents
    return took_s, [body["value"] for body in bodies]


async def rounds(standing: Standing, agents: int) -> list[float]:
    """The seconds of each round of tasks that take no time, sorted."""
    return sorted([(await a_round(standing, agents, 0.0))[0] for _ in range(ROUNDS)])


def pss_mb(pids: list[int]) -> float | None:
    """Mean proportional memory of processes, as the kernel tells it; None where it does not."""
    total_kb = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total_kb += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            continue
        return None
    return total_kb * 1024 / len(pids) / 1e6


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("agents", "teams"), FORM.sizes, ids=lambda number: str(number))
def test_every_agent_becomes_ready_answers_and_ends(place: Place, agents: int, teams: int) -> None:
    (place.work / "hand.py").write_text(HANDLER)
    tables = FLEET.format(agents=agents, identities=agents + teams + 64) + (TEAMS.format(teams=teams) if teams else "")
    patience_s = 30.0 + agents / 2
    standing = Standing(place, tables, patience_s=patience_s)
    pids = [worker["pid"] for worker in standing.ping()["workers"] if not worker["worker"].startswith("team-")]
    assert len(set(pids)) == agents
    weight_mb = pss_mb(pids)

    _, answered = standing.speak(a_round(standing, agents, 2.0 + agents / 100))
    assert len(set(answered)) == agents, "somebody got two tasks while somebody else had none"
    taken = standing.speak(rounds(standing, agents))

    title = f"{agents} agents" + (f" in {teams} teams, {1 + teams + agents} processes" if teams else "")
    figures.note(f"{title}: exec to ready", standing.ready_s, "s", goal=READY_S.get(agents))
    figures.note("  a task for each of them, all answered: median", taken[len(taken) // 2], "s")
    figures.note("  worst of ten", taken[-1], "s")
    if weight_mb is not None:
        figures.note("  PSS of a worker that is ready", weight_mb, "MB", goal=PSS_MB)
    figures.note("  down, until nothing is left", standing.down(), "s", goal=limits.GRACE_S + 1)
    figures.note("  answers", (ROUNDS + 1) * agents, "", goal=(ROUNDS + 1) * agents, at_least=True)
