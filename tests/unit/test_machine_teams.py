"""Teams as the machine decides about them: what a team passes up, what the root makes of it, and who inherits whom."""

from __future__ import annotations

import pytest
from tests.unit.test_machine_tasks import AT, assigned, submit

from muster.coordinator import effects as fx
from muster.coordinator import events as ev
from muster.coordinator.entrusted import capacity, holding
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.protocol import Cancel, Drain, TaskInput


def team(agents: int = 2, **plan) -> Machine:
    """The coordinator of a team whose agents a-1 … are all ready."""
    machine = Machine()
    entries = [ev.WorkerPlan(f"a-{n}", [(f"a-{n}", "a")]) for n in range(1, agents + 1)]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, run=False, upstream="coordinator", **plan)))
    for n in range(1, agents + 1):
        machine.apply(ev.WorkerStarted(AT, f"a-{n}", 1, 100 + n, 1))
        machine.apply(ev.AgentReady(AT, f"a-{n}", 1, 1))
    return machine


def root(teams: int = 3, size: int = 2, **plan) -> Machine:
    """A root over teams that are complete."""
    machine = Machine()
    names = [f"team-{n}" for n in range(1, teams + 1)]
    entries = [ev.WorkerPlan(name, [(name, "a")], is_team=True, slots=size, size=size) for name in names]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, prefetch=0, **plan)))
    for name in names:
        machine.apply(ev.WorkerStarted(AT, name, 1, 7, 1))
        machine.apply(ev.AgentReady(AT, name, 1, size))
    return machine


def entrust(machine: Machine, *tokens: tuple[int, int]) -> list[fx.Effect]:
    tasks = [TaskInput(number, f"in {number}", attempt=attempt) for number, attempt in tokens]
    return machine.apply(ev.TasksEntrusted(machine.state.now_s, tasks))


def ended(machine: Machine, agent: str, number: int, attempt: int, outcome="done", incarnation: int = 1):
    return machine.apply(ev.TaskEnded(machine.state.now_s + 0.01, agent, number, attempt, incarnation, outcome, 0))


def died(machine: Machine, worker: str, incarnation: int = 1, **how):
    return machine.apply(ev.WorkerExited(machine.state.now_s, worker, incarnation, None, 9, **how))


def up(effects) -> list[tuple[int, int, str, str]]:
    """What goes up: number, attempt, how, and whose it was."""
    return [(e.number, e.attempt, e.outcome, e.agent) for e in effects if isinstance(e, fx.Record)]


def spawned(effects) -> list[tuple[str, int]]:
    return [(e.worker, e.incarnation) for e in effects if isinstance(e, fx.SpawnWorker)]


# ------------------------------------------------------------------ a team


def test_a_team_gives_an_attempt_to_an_agent_under_the_roots_own_number():
    machine = team()
    assert assigned(entrust(machine, (7, 3), (9, 1))) == [(7, 3, "a-1"), (9, 1, "a-2")]
    assert holding(machine.state) == [(7, 3), (9, 1)]


@pytest.mark.parametrize("outcome", ["done", "failed", "timeout", "killed", "cancelled"])
def test_every_end_of_an_attempt_goes_up_once_and_its_token_is_never_taken_again(outcome):
    machine = team()
    entrust(machine, (7, 3))
    assert up(ended(machine, "a-1", 7, 3, outcome)) == [(7, 3, outcome, "a-1")]
    assert up(ended(machine, "a-1", 7, 3, outcome)) == []
    assert (entrust(machine, (7, 3)), entrust(machine, (7, 2))) == ([], [])
    assert assigned(entrust(machine, (7, 4))) == [(7, 4, "a-2")], "the root's next attempt is another one"


def test_what_began_on_a_dead_worker_goes_up_as_died_and_what_had_not_begun_stays_in_the_team_under_its_token():
    machine = team(1)
    entrust(machine, (1, 1))
    ended(machine, "a-1", 1, 1)  # short: something may be kept at hand
    entrust(machine, (2, 1), (3, 5), (4, 1))
    assert list(machine.state.agents["a-1"].held) == [2, 3]
    out = died(machine, "a-1")
    assert up(out) == [(2, 1, "died", "a-1")]
    assert spawned(out) == [("a-1", 2)]
    assert holding(machine.state) == [(3, 5), (4, 1)]
    out = machine.apply(ev.AgentReady(machine.state.now_s, "a-1", 2, 1))
    assert assigned(out) == [(3, 5, "a-1")]


def test_an_attempt_that_an_agent_hands_back_unstarted_goes_to_another_agent_under_the_same_token():
    machine = team()
    entrust(machine, (7, 3))
    out = machine.apply(ev.TaskRefused(machine.state.now_s, "a-1", 7, 3, 1, "drain"))
    assert (up(out), assigned(out)) == ([], [(7, 3, "a-2")])


def test_a_recall_ends_what_runs_gives_back_what_waits_and_is_remembered_if_it_came_first():
    machine = team(1)
    entrust(machine, (1, 1), (2, 1))
    recalled = lambda number, attempt: machine.apply(ev.TaskRecalled(machine.state.now_s, number, attempt))
    (post,) = [e for e in recalled(1, 1) if isinstance(e, fx.Post)]
    assert (post.to, post.body) == ("a-1", Cancel(number=1, attempt=1))
    assert up(recalled(2, 1)) == [(2, 1, "cancelled", "")]
    assert up(recalled(3, 4)) == [(3, 4, "cancelled", "")], "it has overtaken its assignment"
    assert entrust(machine, (3, 4)) == []
    assert up(recalled(1, 9)) == [], "no such attempt"
    assert up(ended(machine, "a-1", 1, 1, "cancelled")) == [(1, 1, "cancelled", "a-1")]


def test_a_team_that_is_drained_hands_back_what_waits_and_refuses_what_comes():
    machine = team(1)
    entrust(machine, (1, 1), (2, 1))
    out = machine.apply(ev.DrainOrdered(machine.state.now_s, now=False, deadline_s=5.0))
    assert up(out) == [(2, 1, "refused", "")]
    assert [e.to for e in out if isinstance(e, fx.Post) and isinstance(e.body, Drain)] == ["a-1"]
    assert capacity(machine.state) == 0
    assert up(entrust(machine, (3, 1))) == [(3, 1, "refused", "")]
    assert up(ended(machine, "a-1", 1, 1)) == [(1, 1, "done", "a-1")]
    machine.apply(ev.AgentDrained(machine.state.now_s, "a-1", 1))
    (finish,) = [e for e in died(machine, "a-1") if isinstance(e, fx.Finish)]
    assert finish.reason == "stopped"


def test_a_team_all_of_whose_workers_are_set_aside_keeps_nothing():
    machine = team(1, restarts_max=0)
    entrust(machine, (1, 1), (2, 1))
    assert up(died(machine, "a-1")) == [(1, 1, "died", "a-1"), (2, 1, "refused", "")]
    assert up(entrust(machine, (3, 1))) == [(3, 1, "refused", "")]


def test_a_new_life_of_a_team_goes_on_with_what_never_began_and_hands_back_what_may_have():
    machine = team(1)
    entrust(machine, (1, 1), (2, 1))
    out = machine.apply(ev.FleetStarted(AT + 9, machine.state.plan))
    assert up(out) == [(1, 1, "refused", "a-1")]
    assert holding(machine.state) == [(2, 1)]


def test_a_teams_state_decides_alike_after_a_snapshot():
    machine = team()
    entrust(machine, (7, 3), (8, 1), (9, 2))
    ended(machine, "a-1", 7, 3)
    other = Machine(load(snapshot(machine.state)))
    assert snapshot(other.state) == snapshot(machine.state)
    for fact in (
        ev.TasksEntrusted(AT + 1, [TaskInput(7, "again", attempt=3), TaskInput(7, "more", attempt=4)]),
        ev.TaskRecalled(AT + 1, 9, 2),
        ev.WorkerExited(AT + 2, "a-2", 1, None, 9),
    ):
        assert machine.apply(fact) == other.apply(fact)


# ------------------------------------------------------------------ the root


def test_the_death_of_a_team_frees_nothing_and_it_is_started_again():
    machine = root()
    submit(machine, *range(1, 7))
    out = died(machine, "team-1")
    assert (assigned(out), spawned(out)) == ([], [("team-1", 2)])
    assert len(machine.state.agents["team-1"].held) == 2
    out = machine.apply(ev.WorkerStarted(machine.state.now_s, "team-1", 2, 8, 1))
    held = list(machine.state.agents["team-1"].held.items())
    out = machine.apply(ev.AgentReady(machine.state.now_s, "team-1", 2, 2, held[1:]))
    assert assigned(out) == [(*held[0], "team-1")], "what it does not hold never came to it: the same token again"


def test_an_attempt_that_died_in_a_team_counts_as_a_death_and_goes_on_with_a_new_number():
    machine = root(2, 1, deaths_max=2)
    submit(machine, 1)
    fact = ev.TaskEnded(AT, "team-1", 1, 1, 0, "died", detail="attempt 1 on a-1: its worker died by signal 9")
    assert [token[:2] for token in assigned(machine.apply(fact))] == [(1, 2)]
    assert machine.state.tasks[1].evidence == ["attempt 1 on a-1: its worker died by signal 9"]
    holder = machine.state.tasks[1].agent
    out = machine.apply(ev.TaskEnded(AT, holder, 1, 2, 0, "died", detail="again"))
    assert up(out) == [(1, 2, "dead", holder)]


def test_a_teams_room_is_what_it_said_last():
    machine = root(1, 4)
    machine.apply(ev.AgentReady(AT, "team-1", 1, 0))
    assert assigned(submit(machine, 1, 2, 3)) == []
    out = machine.apply(ev.AgentReady(AT, "team-1", 1, 2))
    assert [token[0] for token in assigned(out)] == [1, 2]


def test_the_fleet_is_ready_when_every_team_has_all_of_its_agents():
    machine = root(1, 2)
    assert machine.state.ready_s is not None
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("team-1", [("team-1", "a")], is_team=True, slots=2, size=2)])
    machine.apply(ev.FleetStarted(AT, plan))
    machine.apply(ev.AgentReady(AT + 1, "team-1", 1, 1))
    assert machine.state.ready_s is None
    machine.apply(ev.AgentReady(AT + 2, "team-1", 1, 2))
    assert machine.state.ready_s == 2.0


def give_up(machine: Machine, name: str) -> list[fx.Effect]:
    """Let a team die until it is started no more; the effects of the last death."""
    out: list[fx.Effect] = []
    worker = machine.state.workers[name]
    while worker.state != "quarantined":
        if worker.state == "waiting":
            machine.apply(ev.TimePassed(worker.restart_at_s))
        out = died(machine, name, worker.incarnation)
    return out


def test_a_team_that_dies_too_often_is_given_up_for_its_heirs_and_still_nothing_is_free():
    machine = root()
    submit(machine, *range(1, 7))
    out = give_up(machine, "team-2")
    (dissolve,) = [e for e in out if isinstance(e, fx.Dissolve)]
    assert (dissolve.team, dissolve.heirs) == ("team-2", ["team-1", "team-3"])
    assert assigned(out) == []
    assert {name: worker.size for name, worker in machine.state.workers.items()} == {
        "team-1": 3,
        "team-2": 0,
        "team-3": 3,
    }
    refused = machine.apply(ev.TaskRefused(machine.state.now_s, "team-2", 2, 1, 0, "drain"))
    assert assigned(refused) == [], "the others are full"
    assert 2 not in machine.state.agents["team-2"].held
    out = machine.apply(ev.TeamDissolved(machine.state.now_s, "team-2"))
    assert machine.state.agents["team-2"].held == {}
    assert machine.state.tasks[5].deaths == 0, "it never came to the team"


def test_with_its_log_lost_a_given_up_teams_attempts_have_died():
    machine = root(2, 1)
    submit(machine, 1, 2)
    give_up(machine, "team-2")
    machine.apply(ev.TeamDissolved(machine.state.now_s, "team-2", "its log could not be read"))
    assert machine.state.tasks[2].deaths == 1
    assert "its log could not be read" in machine.state.tasks[2].evidence[0]


def test_a_root_that_comes_back_goes_on_with_the_same_heirs():
    machine = root()
    give_up(machine, "team-2")
    other = Machine(load(snapshot(machine.state)))
    alive = [(name, 1, 7, 1) for name in ("team-1", "team-3")]
    out = other.apply(ev.Recovered(machine.state.now_s, alive, [], 1))
    assert [(e.team, e.heirs) for e in out if isinstance(e, fx.Dissolve)] == [("team-2", ["team-1", "team-3"])]


def test_the_last_team_of_a_kind_has_no_heir_and_the_run_ends_with_an_error():
    machine = root(1)
    submit(machine, 1)
    out = give_up(machine, "team-1")
    assert [e.heirs for e in out if isinstance(e, fx.Dissolve)] == [[]]
    assert machine.state.phase == "draining"
    (finish,) = [e for e in machine.apply(ev.TeamDissolved(machine.state.now_s, "team-1")) if isinstance(e, fx.Finish)]
    assert finish.reason == "error"


def test_an_heir_starts_what_it_adopts_above_its_last_incarnation_and_once():
    machine = team()
    plan = ev.WorkerPlan("b-1", [("b-1", "a")])
    assert spawned(machine.apply(ev.WorkersAdopted(machine.state.now_s, [(plan, 4)]))) == [("b-1", 5)]
    assert machine.apply(ev.WorkersAdopted(machine.state.now_s, [(plan, 4)])) == []
    entrust(machine, (1, 1), (2, 1), (3, 1))
    machine.apply(ev.WorkerStarted(machine.state.now_s, "b-1", 5, 9, 1))
    assert assigned(machine.apply(ev.AgentReady(machine.state.now_s, "b-1", 5, 1))) == [(3, 1, "b-1")]
    assert capacity(machine.state) == 3


def test_a_team_that_dies_while_the_fleet_ends_comes_back_to_be_heard_but_not_for_ever():
    machine = root(1, restarts_max=2)
    submit(machine, 1)
    machine.apply(ev.StopRequested(machine.state.now_s, "drain"))
    for incarnation in (1, 2):
        assert spawned(died(machine, "team-1", incarnation)) == [("team-1", incarnation + 1)]
        out = machine.apply(ev.AgentReady(machine.state.now_s, "team-1", incarnation + 1, 0, [(1, 1)]))
        assert [e.body for e in out if isinstance(e, fx.Post) and isinstance(e.body, Drain)]
    out = died(machine, "team-1", 3)
    assert spawned(out) == []
    assert [e for e in out if isinstance(e, fx.Finish)]
    assert 1 in machine.state.tasks, "kept for the next start"


def test_teams_keep_what_they_hold_over_a_new_life_of_the_store():
    machine = root(2, 1)
    submit(machine, 1, 2)
    machine.apply(ev.FleetStarted(AT + 9, machine.state.plan))
    assert [list(machine.state.agents[name].held) for name in ("team-1", "team-2")] == [[1], [2]]
    one_less = ev.Plan(workers=machine.state.plan.workers[:1])
    machine.apply(ev.FleetStarted(AT + 20, one_less))
    assert machine.state.tasks[2].state == "queued", "nobody else can say what became of it"
    assert list(machine.state.agents["team-1"].held) == [1]


def test_a_run_ends_with_an_error_when_every_team_has_nobody_left_and_not_before():
    machine = root(2, 1)
    submit(machine, 1)
    machine.apply(ev.AgentReady(AT, "team-1", 1, 0, is_out=True))
    assert machine.state.phase == "running"
    machine.apply(ev.AgentReady(AT, "team-1", 1, 1))
    machine.apply(ev.AgentReady(AT, "team-2", 1, 0, is_out=True))
    assert machine.state.phase == "running", "the operator took the first one back"
    machine.apply(ev.AgentReady(AT, "team-1", 1, 0, is_out=True))
    assert (machine.state.phase, machine.state.ending.reason) == ("draining", "error")
