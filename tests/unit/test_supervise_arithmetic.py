"""Restart budget, stop plan and ending: decisions over time, without waiting for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muster.supervise.restart import DELAY_MAX_S, RestartBudget
from muster.supervise.shutdown import Ending, StopPlan


def test_delays_double_and_then_the_budget_is_spent() -> None:
    budget = RestartBudget(restarts_max=9, period_s=60.0)
    delays = [budget.next_delay_s(now=1.0) for _ in range(10)]
    assert delays == [0.01, 0.02, 0.04, 0.08, 0.16, 0.3, 0.3, 0.3, 0.3, None]


def test_old_restarts_are_forgotten() -> None:
    budget = RestartBudget(restarts_max=2, period_s=10.0)
    assert budget.next_delay_s(0.0) == 0.01
    assert budget.next_delay_s(5.0) == 0.02
    assert budget.next_delay_s(9.9) is None
    assert budget.next_delay_s(10.0) == 0.02  # the first one left the period
    assert budget.next_delay_s(14.9) is None


def test_the_default_budget_can_be_spent() -> None:
    """A limit whose delays fill the period would never trip, and the fleet would restart for ever."""
    budget = RestartBudget()
    assert budget.restarts_max * DELAY_MAX_S < budget.period_s


@given(st.lists(st.floats(0, 500), max_size=80))
def test_no_period_sees_more_restarts_than_allowed(times: list[float]) -> None:
    budget = RestartBudget(restarts_max=3, period_s=20.0)
    granted = [now for now in sorted(times) if budget.next_delay_s(now) is not None]
    for first in granted:
        assert sum(first <= now < first + 20.0 for now in granted) <= 3


def test_a_drain_ends_after_grace_and_a_second() -> None:
    plan = StopPlan(grace_s=10.0)
    assert not plan.is_overdue(1e9)
    assert plan.request("drain", "x", now=100.0)
    assert (plan.mode, plan.reason, plan.deadline) == ("drain", "x", 111.0)
    assert not plan.is_overdue(110.9)
    assert plan.is_overdue(111.0)


def test_now_shortens_and_nothing_lengthens() -> None:
    plan = StopPlan(grace_s=10.0)
    plan.request("drain", "", now=100.0)
    assert not plan.request("drain", "again", now=105.0)
    assert plan.deadline == 111.0
    assert plan.request("now", "", now=105.0)
    assert plan.deadline == 110.0
    assert not plan.request("now", "", now=106.0)
    assert not plan.request("drain", "", now=106.0)
    assert (plan.mode, plan.deadline) == ("now", 110.0)


def test_now_shortly_before_the_deadline_does_not_move_it_away() -> None:
    plan = StopPlan(grace_s=10.0)
    plan.request("drain", "", now=100.0)
    plan.request("now", "", now=110.5)
    assert plan.deadline == 111.0


def test_an_ending_orders_each_thing_once() -> None:
    ending = Ending(exit_status=0, kill_at=11.0, terminate=True)
    assert list(ending.due(10.0)) == ["terminate"]
    assert list(ending.due(10.5)) == []
    assert ending.next_deadline() == 11.0
    assert list(ending.due(11.0)) == ["kill"]
    assert list(ending.due(12.0)) == []
    assert ending.next_deadline() == ending.give_up_at == 16.0


def test_an_ending_without_grace_kills_at_once() -> None:
    assert list(Ending(exit_status=1, kill_at=10.0, terminate=False).due(10.0)) == ["kill"]


def test_hurry_brings_the_kill_forward_only() -> None:
    ending = Ending(exit_status=1, kill_at=20.0, terminate=False)
    ending.hurry(12.0)
    assert list(ending.due(12.0)) == ["kill"]
    ending.hurry(13.0)
    assert ending.kill_at == 12.0
