"""Whatever numbers agents tell: the coordinator lives, tasks end, and no limit of the fleet gives way."""

from __future__ import annotations

import math

import pytest
from tests.unit.coordinator_world import CoordinatorWorld

from muster.core.names import COORDINATOR
from muster.core.protocol import Done, LimitAsk, LimitSettle
from muster.core.spec import BudgetSpec, LimitSpec, MeterSpec
from muster.errors import UsageError
from muster.limit.limiter import DEBT_NS_MAX, Ask, Limiter, Meter
from muster.limit.rates import Rate

ABSURD = [math.inf, -math.inf, math.nan, -1.0, 1e300]
LIMITS = (LimitSpec(name="api", meters=(MeterSpec(name="requests", amount=1, period_ns=10**9, burst=5),)),)


@pytest.fixture
async def make(tmp_path):
    worlds = []

    def build(**options):
        worlds.append(CoordinatorWorld(tmp_path, **options))
        return worlds[-1]

    yield build
    for world in worlds:
        await world.close()


@pytest.mark.parametrize("number", ABSURD)
async def test_a_result_with_absurd_numbers_is_recorded_like_any_other(make, number):
    world = make(budget=BudgetSpec(micro_usd=10**15))
    world.work = lambda _assign: {
        "cost_usd": number, "resets_in_s": number, "started_unix_s": number, "duration_s": number,
        "tokens": -(2**63), "session": "s" * 100_000,
    }  # fmt: skip
    coordinator = world.start()
    await world.operate()
    world.submit(3)
    assert await coordinator == 0
    assert sorted(world.recorded()) == [1, 2, 3]


@pytest.mark.parametrize("number", ABSURD)
async def test_a_settlement_with_absurd_numbers_ends_no_coordinator(make, number):
    world = make(agents=1, limits=LIMITS)
    world.work = lambda _assign: None
    coordinator = world.start()
    await world.operate()
    world.submit(1)
    await world.until(lambda: world.agents and world.agents["w"][0].holding)
    agent = world.agents["w"][0]
    said = LimitSettle(name="api", ask_id="a", outcome="refused", resets_in_s=number, cost_usd=number, tokens=-5)
    agent.bus.post_struct(COORDINATOR, said, priority="control")
    agent.end(agent.holding[0])
    assert await coordinator == 0


async def test_an_ask_for_less_than_nothing_is_refused_with_a_typed_error(make):
    world = make(agents=1, limits=LIMITS)
    world.work = lambda _assign: None
    coordinator = world.start()
    await world.operate()
    world.submit(1)
    await world.until(lambda: world.agents and world.agents["w"][0].holding)
    agent = world.agents["w"][0]
    ask = LimitAsk(name="api", ask_id="a", amounts={"requests": -5})
    done = (await agent.bus.ask(COORDINATOR, ask, type="limit.ask", timeout_s=10)).decode(Done)
    assert (done.ok, done.code) == (False, UsageError.code)
    with pytest.raises(UsageError, match="whole numbers of at least 0"):
        agent.bus.limit("api", requests=-1)
    agent.end(agent.holding[0])
    assert await coordinator == 0


def test_a_grant_that_is_said_to_have_taken_less_than_nothing_gives_back_what_it_took_and_no_more():
    limiter = Limiter([Meter("requests", Rate(1, 10**9), 5)], 0)
    for number in range(2):
        limiter.ask(Ask(f"ask-{number}", "w", {"requests": 2}))
    assert len(limiter.grants(0)) == 2
    limiter.settle("ask-0", {"requests": -(10**9)}, 0)
    assert limiter.available(0) == {"requests": 3}


def test_a_grant_that_is_said_to_have_taken_everything_stops_nobody_for_good():
    limiter = Limiter([Meter("requests", Rate(1, 10**9), 5)], 0)
    limiter.ask(Ask("ask-0", "w", {"requests": 1}))
    assert len(limiter.grants(0)) == 1
    limiter.settle("ask-0", {"requests": 2**62}, 0)
    limiter.ask(Ask("ask-1", "w", {"requests": 1}))
    assert limiter.grants(10**9) == []
    assert len(limiter.grants(DEBT_NS_MAX + 2 * 10**9)) == 1
