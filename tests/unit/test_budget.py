"""The budget breaker: what was spent is added up, at the bound nothing new begins, and what runs goes on."""

from __future__ import annotations

import pytest

from muster.coordinator import budget
from muster.coordinator import events as ev
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.protocol import Assign, TaskInput
from muster.errors import ConfigError
from muster.fleet.limiting import budget_of

AT = 1000.0


def fleet(budgets: dict[str, ev.Budget], *, run: bool = True, workers: int = 2) -> Machine:
    machine = Machine()
    entries = [ev.WorkerPlan(f"w-{n}", [(f"w-{n}", "coder")]) for n in range(1, workers + 1)]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, budgets=budgets, run=run, prefetch=0)))
    for n in range(1, workers + 1):
        machine.apply(ev.WorkerStarted(AT, f"w-{n}", 1, 100 + n, 1))
        machine.apply(ev.AgentReady(AT, f"w-{n}", 1, 1))
    machine.apply(ev.TasksSubmitted(AT, [TaskInput(n, "x") for n in range(1, 11)]))
    return machine


def end(machine: Machine, number: int, *, usd: float = 0.0, tokens: int = 0, outcome="done") -> list[ev.Effect]:
    task = machine.state.tasks[number]
    return machine.apply(
        ev.TaskEnded(AT, task.agent, number, task.attempt, 1, outcome, 0, tokens=tokens, cost_usd=usd or None)
    )


def assigned(effects) -> list[int]:
    return [e.body.number for e in effects if isinstance(e, ev.Post) and isinstance(e.body, Assign)]


def test_at_the_bound_nothing_new_is_assigned_and_a_run_ends_with_status_3_when_the_rest_has_ended():
    machine = fleet({budget.FLEET: ev.Budget(micro_usd=1_000_000)})
    assert assigned(end(machine, 1, usd=0.5)) == [3]
    assert assigned(end(machine, 2, usd=0.5)) == []
    assert machine.state.phase == "draining"
    out = end(machine, 3, usd=0.5)
    assert [e.outcome for e in out if isinstance(e, ev.Record)] == ["done"], "what ran was worth its money"
    for name in ("w-1", "w-2"):
        machine.apply(ev.AgentDrained(AT, name, 1))
    ends = [machine.apply(ev.WorkerExited(AT, name, 1, 0, None)) for name in ("w-1", "w-2")]
    (finish,) = [effect for out in ends for effect in out if isinstance(effect, ev.Finish)]
    assert (finish.exit_status, finish.reason) == (3, "halted")
    assert finish.error == "the budget of 1.00 USD is used up: 1.50 USD are spent"


def test_failures_and_limits_cost_their_money_too():
    machine = fleet({budget.FLEET: ev.Budget(tokens=100)})
    end(machine, 1, tokens=60, outcome="limited")
    assert assigned(end(machine, 2, tokens=40, outcome="failed")) == []
    assert budget.sentence(machine.state, budget.FLEET) == "the budget of 100 tokens is used up: 100 are spent"


def test_a_standing_fleet_waits_for_a_higher_budget_and_goes_on():
    machine = fleet({budget.FLEET: ev.Budget(micro_usd=500_000)}, run=False)
    assert assigned(end(machine, 1, usd=0.5)) == []
    assert machine.state.phase == "running"
    assert assigned(machine.apply(ev.BudgetRaised(AT, budget.FLEET, 2_000_000, 0))) == [3]


def test_a_kinds_and_an_agents_budget_stop_only_them():
    machine = fleet({budget.EACH + "coder": ev.Budget(tokens=10)}, run=False)
    first, second = machine.state.tasks[1].agent, machine.state.tasks[2].agent
    assert assigned(end(machine, 1, tokens=10)) == []
    (third,) = assigned(end(machine, 2, tokens=1))
    assert machine.state.tasks[third].agent == second != first
    kinds = fleet({"coder": ev.Budget(tokens=10)}, run=False)
    assert assigned(end(kinds, 1, tokens=10)) == []
    assert assigned(end(kinds, 2, tokens=1)) == []
    assert not budget.is_over(kinds.state)


def test_accounts_outlive_the_coordinator():
    machine = fleet({budget.FLEET: ev.Budget(micro_usd=500_000)}, run=False)
    end(machine, 1, usd=0.5)
    machine.apply(ev.BudgetRaised(AT, budget.FLEET, 600_000, 0))
    twin = Machine(load(snapshot(machine.state)))
    assert budget.rows(twin.state) == budget.rows(machine.state)
    assert twin.state.budgets == machine.state.budgets
    assert not budget.is_over(twin.state)


def test_money_that_was_spent_elsewhere_counts():
    machine = fleet({budget.FLEET: ev.Budget(micro_usd=500_000)}, run=False)
    machine.apply(ev.Spent(AT, "w-1", 500_000, 10))
    assert assigned(end(machine, 1)) == []
    assert {row["account"]: row["usd"] for row in budget.rows(machine.state)} == {"fleet": 0.5, "coder": 0.5}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("20USD", (20_000_000, 0)),
        ("$0.50", (500_000, 0)),
        ("20 usd", (20_000_000, 0)),
        ("2M tokens", (0, 2_000_000)),
        ("500k tok", (0, 500_000)),
        (None, (0, 0)),
    ],
)
def test_budgets_are_read_as_people_write_them(text, bound):
    found = budget_of(text, "--budget")
    assert (found.micro_usd, found.tokens) == bound


@pytest.mark.parametrize("text", ["", "20", "20EUR", "-1USD", "0USD", "0 tokens", "many tokens", "1e99USD", 20])
def test_a_bad_budget_is_one_sentence(text):
    with pytest.raises(ConfigError, match="--budget"):
        budget_of(text, "--budget")
