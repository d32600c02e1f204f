"""64 identities claim results for one task while it is given from one to the next: one is recorded, every other claim is refused by name.

Whether a claim is stale or forged does not depend on how the lanes interleave: what a holder says again after its attempt's end is stale
whenever it comes, and what was never given to its sender is forged whenever it comes. So the counts are exact, though nobody waits.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.unit import coordinator_world
from tests.unit.coordinator_world import Agent, CoordinatorWorld

from muster.core.protocol import FleetStatus, InputEnd, Result, ResultRefused, StatusAsk, Submit, TaskInput
from muster.fleet import letters

AGENTS, HOLDERS, SEED = 64, 40, 20261125


class Claimant(Agent):
    """Says what the test tells it to, and counts what it is told about that."""

    def __init__(self, world, name, incarnation):
        super().__init__(world, name, incarnation)
        self.told: Counter[str] = Counter()

    def take(self, delivery):
        if delivery.type == "task.result.refused":
            self.told[delivery.decode(ResultRefused).code] += 1
        super().take(delivery)

    def claim(self, number, attempt, outcome="done"):
        self.bus.post_struct(
            "coordinator", Result(number=number, attempt=attempt, incarnation=self.incarnation, outcome=outcome)
        )


async def test_of_64_agents_that_claim_results_one_is_recorded_and_the_rest_are_refused_typed_and_counted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(coordinator_world, "Agent", Claimant)
    world = CoordinatorWorld(tmp_path, agents=AGENTS)
    rng = random.Random(SEED)
    world.work = lambda _assign: None  # held until the test says how it ends
    coordinator = world.start()
    await world.operate()
    try:
        await world.until(
            lambda: len(world.agents) == AGENTS and all(hasattr(a, "bus") for a, _ in world.agents.values())
        )
        operator = world.operator
        assert operator is not None
        operator.post_struct(
            "coordinator", Submit(tasks=[TaskInput(1, "the one", attempts_max=HOLDERS, backoff_s=0.0)])
        )
        operator.post_struct("coordinator", InputEnd(total=1))
        claimants: list[Any] = [agent for agent, _ in world.agents.values()]
        stale: Counter[str] = Counter()
        forged: Counter[str] = Counter()
        past: list[tuple[Claimant, int]] = []
        for attempt in range(1, HOLDERS + 1):
            holder = await holder_of(claimants, attempt, world)
            for other in rng.sample(claimants, 12):
                if other is not holder:
                    other.claim(1, attempt)  # somebody else's attempt, while it runs
                    forged[other.name] += 1
                other.claim(1, attempt + 1000)  # one that nobody has yet
                forged[other.name] += 1
            for earlier, old in rng.sample(past, min(len(past), 6)):
                earlier.claim(1, old)
                stale[earlier.name] += 1
            operator.post_struct("coordinator", Result(number=1, attempt=attempt, incarnation=1, outcome="done"))
            forged["operator"] += 1
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            if attempt == HOLDERS:
                await all_are_told(world, claimants, stale, forged)
            holder.end((1, attempt), outcome="failed" if attempt < HOLDERS else "done")
            holder.claim(1, attempt)  # and once more, with a better ending
            stale[holder.name] += 1
            past.append((holder, attempt))
        await coordinator
        assert world.ended is not None
        report, dead = world.ended.report, letters.find(world.store)
        assert (report["stale_refused"], report["forged_refused"]) == (stale.total(), forged.total()), f"seed {SEED}"
        assert [(line["task"], line["attempt"], line["outcome"]) for line in world.lines()] == [(1, HOLDERS, "done")]
        assert (report["done"], report["duplicates"], report["attempts_failed"]) == (1, 0, HOLDERS - 1)
        assert Counter(one.facts["from"] for one in dead) == forged, (
            "each forged claim is kept, under its sender's name"
        )
        assert {one.facts["reason"].partition(":")[0] for one in dead} == {"task.forged_result"}
    finally:
        await world.close()


async def holder_of(claimants, attempt, world) -> Claimant:
    found: list[Claimant] = []

    def is_given() -> bool:
        found[:] = [agent for agent in claimants if (1, attempt) in agent.holding]
        return bool(found)

    await world.until(is_given, f"attempt {attempt} was given to nobody (seed {SEED})")
    assert len(found) == 1, f"attempt {attempt} is held by {len(found)} agents"
    return found[0]


async def all_are_told(world, claimants, stale, forged) -> None:
    """Status shows both counts, and whoever sent a stale result has heard so as often as it did."""
    expected = (stale.total(), forged.total())
    seen: tuple[float, float] = (-1, -1)
    deadline = asyncio.get_running_loop().time() + 20.0
    while seen != expected:
        assert asyncio.get_running_loop().time() < deadline, f"refused {seen}, not {expected} (seed {SEED})"
        reply = await world.operator.ask("coordinator", StatusAsk(agents=False), type="fleet.status", timeout_s=5.0)
        counters = reply.decode(FleetStatus).counters
        seen = (counters["stale_refused"], counters["forged_refused"])
    await world.until(
        lambda: all(agent.told["task.stale_attempt"] == stale[agent.name] for agent in claimants),
        f"somebody was not told that its result is stale (seed {SEED})",
    )
