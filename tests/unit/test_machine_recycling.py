"""Replacing workers that live: who goes when, how many at a time, and that no task notices."""

from __future__ import annotations

import pytest
from tests.unit.test_machine_tasks import AT, assigned, due_s, ended, submit
from tests.unit.test_machine_workers import exited, killed, posts, ready, recover, spawned, supervised

from muster.coordinator import events as ev
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.protocol import Drain
from muster.core.spec import ChildSpec


def restart(machine, *workers, grace_s=None):
    names = list(workers) or list(machine.state.workers)
    return machine.apply(ev.RestartRequested(machine.state.now_s, names, grace_s))


def drained(effects):
    return [to for to, _ in posts(effects, Drain)]


def leave(machine, worker, incarnation=1):
    """The worker's agent says its last word and its process ends."""
    machine.apply(ev.AgentDrained(machine.state.now_s, worker, incarnation))
    return exited(machine, worker, incarnation, status=0, signal=None)


def test_a_rolling_restart_takes_one_after_the_other_and_the_next_only_when_the_last_is_ready():
    machine = supervised(3)
    assert drained(restart(machine)) == ["w-1"]
    out = leave(machine, "w-1")
    assert (spawned(out), drained(out)) == ([("w-1", 2)], [])
    assert drained(ready(machine, "w-1", 2)) == ["w-2"]
    leave(machine, "w-2")
    assert drained(ready(machine, "w-2", 2)) == ["w-3"]
    leave(machine, "w-3")
    ready(machine, "w-3", 2)
    state = machine.state
    assert [worker.incarnation for worker in state.workers.values()] == [2, 2, 2]
    assert (state.supervision.waiting, state.supervision.away, state.supervision.recycled) == ({}, [], 3)
    assert (state.counters.restarts, state.counters.worker_deaths) == (0, 0), "no restart was used up, nobody died"


def test_a_tenth_of_a_large_kind_may_be_away_at_a_time():
    machine = supervised(25)
    assert drained(restart(machine)) == ["w-1", "w-2"]
    assert machine.state.ready == 23


def test_what_a_leaving_worker_does_is_finished_and_what_waits_there_goes_to_others():
    machine = supervised(2)
    submit(machine, 1)
    out = restart(machine, "w-1")
    assert drained(out) == ["w-1"]
    assert assigned(submit(machine, 2, 3)) == [(2, 1, "w-2")], "nothing new for the one that leaves"
    ended(machine, "w-1", 1)
    out = leave(machine, "w-1")
    assert machine.state.counters.done == 1
    assert assigned(out) == []
    assert assigned(ready(machine, "w-1", 2)) == [(3, 1, "w-1")]
    assert machine.state.counters.reassigned == 0


@pytest.mark.parametrize(("grace_s", "told_s"), [(None, 365 * 86_400.0), (5.0, 5.0)])
def test_agents_may_work_on_as_long_as_the_operator_allows(grace_s, told_s):
    machine = supervised(2)
    ((_, body),) = posts(restart(machine, "w-1", grace_s=grace_s), Drain)
    assert (body.now, body.deadline_s) == (False, told_s)


def test_a_worker_that_dies_while_it_is_drained_has_died_like_any_other():
    machine = supervised(2)
    submit(machine, 1)
    restart(machine, "w-1")
    out = exited(machine, "w-1")
    assert spawned(out) == [("w-1", 2)]
    assert assigned(out) == [(1, 2, "w-2")]
    assert (machine.state.counters.restarts, machine.state.supervision.recycled) == (1, 0)


def test_a_worker_is_replaced_after_its_attempts_whether_they_failed_or_not():
    machine = supervised(2, max_tasks=2)
    submit(machine, 1, 2, 3)
    assert drained(ended(machine, "w-1", 1)) == []
    assert drained(ended(machine, "w-1", 3, outcome="failed")) == ["w-1"]
    leave(machine, "w-1")
    ready(machine, "w-1", 2)
    assert machine.state.workers["w-1"].attempts == 0


def test_a_worker_is_replaced_at_its_age_and_its_successor_gets_as_old():
    machine = supervised(1, max_age_s=100)
    assert due_s(machine) == AT + 100
    assert drained(machine.apply(ev.TimePassed(AT + 100))) == ["w-1"]
    leave(machine, "w-1")
    ready(machine, "w-1", 2)
    assert due_s(machine) == AT + 200


def test_an_age_reached_by_an_earlier_incarnation_is_forgotten():
    machine = supervised(1, max_age_s=100)
    machine.state.now_s = AT + 60
    exited(machine, "w-1")
    ready(machine, "w-1", 2)
    assert drained(machine.apply(ev.TimePassed(AT + 100))) == []
    assert due_s(machine) == AT + 160


def test_a_worker_that_has_outgrown_its_bound_is_replaced_once_and_only_this_incarnation():
    machine = supervised(2, max_rss_bytes=1000)
    assert drained(machine.apply(ev.WorkerOutgrown(AT, "w-1", 7, 2000))) == [], "another incarnation's word"
    assert drained(machine.apply(ev.WorkerOutgrown(AT, "w-1", 1, 2000))) == ["w-1"]
    assert drained(machine.apply(ev.WorkerOutgrown(AT, "w-1", 1, 2000))) == []
    leave(machine, "w-1")
    assert machine.state.supervision.waiting == {}


def test_replacement_needs_no_restart_policy():
    machine = supervised(2, restart="never")
    restart(machine, "w-1")
    assert spawned(leave(machine, "w-1")) == [("w-1", 2)]


def test_a_restart_lifts_quarantine_and_forgives_the_crashes():
    machine = supervised(2, restarts_max=1)
    exited(machine, "w-1", 1)
    exited(machine, "w-1", 2)
    assert machine.state.workers["w-1"].state == "quarantined"
    assert spawned(restart(machine, "w-1")) == [("w-1", 3)]
    ready(machine, "w-1", 3)
    assert spawned(exited(machine, "w-1", 3)) == [("w-1", 4)], "it has its restarts again"


def test_a_restart_ends_the_wait_of_a_worker_that_backs_off():
    machine = supervised(2, delay_s=60.0, delay_max_s=60.0, period_s=1000.0)
    exited(machine, "w-1", 1)
    exited(machine, "w-1", 2)
    assert machine.state.workers["w-1"].state == "waiting"
    assert spawned(restart(machine, "w-1")) == [("w-1", 3)]
    assert spawned(machine.apply(ev.TimePassed(AT + 60))) == [], "the old wait starts nothing"


def test_a_rolling_restart_stops_where_a_successor_does_not_live():
    machine = supervised(4, restarts_max=0)
    restart(machine)
    leave(machine, "w-1")
    out = exited(machine, "w-1", 2, status=1, signal=None)
    assert machine.state.workers["w-1"].state == "quarantined"
    (note,) = [e for e in out if isinstance(e, ev.Noted) and e.event == "restart.halted"]
    assert (note.facts["kind"], note.facts["spared"]) == ("k", 3)
    assert drained(out) == []
    assert machine.state.ready == 3


def test_a_worker_that_has_not_joined_yet_is_ended_without_a_drain():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")], "always", ChildSpec())], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    out = restart(machine)
    assert (killed(out), drained(out)) == ([("w", 1, 15)], [])
    assert spawned(exited(machine, "w", 1, signal=15)) == [("w", 2)]
    assert machine.state.counters.worker_deaths == 0


def test_an_agent_that_joins_while_its_worker_leaves_is_told_to_drain():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("a", "k"), ("b", "k")])], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    machine.apply(ev.AgentReady(AT, "a", 1, 1))
    assert drained(restart(machine)) == ["a"]
    assert drained(machine.apply(ev.AgentReady(AT, "b", 1, 1))) == ["b"]


def test_a_drain_that_a_dead_coordinator_did_not_send_is_sent_at_the_roll_call():
    machine = supervised(1)
    restart(machine)
    recover(machine, [("w-1", 1)])
    out = machine.apply(ev.AgentReady(AT, "w-1", 1, 1, [], machine.state.roll))
    assert drained(out) == ["w-1"]
    assert spawned(leave(machine, "w-1")) == [("w-1", 2)]


def test_the_end_of_the_fleet_ends_a_rolling_restart():
    machine = supervised(3)
    restart(machine)
    machine.apply(ev.StopRequested(AT, "drain", "SIGTERM"))
    assert machine.state.supervision.waiting == {}
    for name in ("w-1", "w-2"):
        assert spawned(exited(machine, name, status=0, signal=None)) == []
    assert [e for e in exited(machine, "w-3", status=0, signal=None) if isinstance(e, ev.Finish)]


def test_a_rolling_restart_survives_a_snapshot():
    machine = supervised(3)
    restart(machine)
    copy = Machine(load(snapshot(machine.state)))
    for each in (machine, copy):
        leave(each, "w-1")
    assert drained(ready(copy, "w-1", 2)) == drained(ready(machine, "w-1", 2)) == ["w-2"]
    assert snapshot(copy.state) == snapshot(machine.state)
