"""Death, restart, drain, recovery: what the machine does about workers."""

from __future__ import annotations

import pytest
from tests.unit.test_machine_tasks import AT, assigned, due_s, ended, fleet, recorded, submit

from muster.coordinator import events as ev
from muster.coordinator.dispatch import set_agent_state
from muster.coordinator.lifecycle import evidence_of
from muster.coordinator.machine import Machine
from muster.core.protocol import Assign, Cancel, Drain, RollCall
from muster.core.spec import ChildSpec


def exited(machine, worker, incarnation=1, *, status=None, signal=9, survivors=0, after_s=0.0):
    return machine.apply(ev.WorkerExited(machine.state.now_s + after_s, worker, incarnation, status, signal, survivors))


def spawned(effects):
    return [(e.worker, e.incarnation) for e in effects if isinstance(e, ev.SpawnWorker)]


def posts(effects, kind):
    return [(e.to, e.body) for e in effects if isinstance(e, ev.Post) and isinstance(e.body, kind)]


def test_a_dead_workers_task_goes_to_somebody_else_at_once_with_a_new_attempt():
    machine = fleet(2)
    submit(machine, 1)
    out = exited(machine, "w-1")
    assert assigned(out) == [(1, 2, "w-2")]
    assert spawned(out) == [("w-1", 2)]
    assert machine.state.counters.reassigned == 1


def test_survivors_of_a_dead_worker_keep_its_task_until_they_are_gone():
    machine = fleet(2)
    submit(machine, 1)
    out = exited(machine, "w-1", survivors=1)
    assert assigned(out) == []
    assert spawned(out) == []
    assert assigned(machine.apply(ev.TimePassed(AT + 3600))) == [], "time proves nothing"
    assert assigned(exited(machine, "w-1")) == [(1, 2, "w-2")]


def test_an_exit_told_twice_counts_once():
    machine = fleet(2)
    submit(machine, 1)
    exited(machine, "w-1")
    before = machine.state.counters.restarts
    assert exited(machine, "w-1") == []
    assert machine.state.counters.restarts == before == 1


def test_deaths_are_counted_apart_from_failures_and_end_in_a_dead_letter_with_evidence():
    machine = fleet(1, deaths_max=3, attempts_max=1)
    submit(machine, 1)
    out = []
    for incarnation in (1, 2, 3):
        out = exited(machine, "w-1", incarnation)
        due = machine.due_s()
        if due is not None:
            machine.apply(ev.TimePassed(due))
        machine.apply(ev.AgentReady(machine.state.now_s, "w-1", incarnation + 1, 1))
    (record,) = [e for e in out if isinstance(e, ev.Record)]
    assert (record.outcome, len(record.evidence)) == ("dead", 3)
    assert "signal 9" in record.evidence[0]
    assert machine.state.counters.attempts_failed == 0


def test_a_task_that_only_waited_at_a_dead_worker_is_not_blamed():
    machine = fleet(1, deaths_max=1)
    submit(machine, *range(1, 6))
    ended(machine, "w-1", 1)  # short: now one is prefetched
    assert list(machine.state.agents["w-1"].held) == [2, 3]
    out = exited(machine, "w-1")
    assert recorded(out) == [(2, "dead")]
    assert machine.state.tasks[3].deaths == 0


def test_restarts_wait_longer_each_time_and_end_in_quarantine():
    machine = fleet(2, restarts_max=3, restart_period_s=30)
    delays = []
    for incarnation in (1, 2, 3):
        out = exited(machine, "w-1", incarnation)
        worker = machine.state.workers["w-1"]
        due = worker.restart_at_s if worker.state == "waiting" else machine.state.now_s
        delays.append(due - machine.state.now_s)
        if worker.state == "waiting":
            out = machine.apply(ev.TimePassed(due))
        assert spawned(out) == [("w-1", incarnation + 1)]
    assert delays == pytest.approx([0.0, 0.1, 0.2])
    assert spawned(exited(machine, "w-1", 4)) == []
    assert machine.state.workers["w-1"].state == "quarantined"
    assert machine.state.phase == "running", "another worker is left"


def test_deaths_that_are_far_apart_never_quarantine():
    machine = fleet(1, restarts_max=2, restart_period_s=30)
    for incarnation in range(1, 10):
        assert spawned(exited(machine, "w-1", incarnation, after_s=31)) == [("w-1", incarnation + 1)]


def test_with_every_worker_quarantined_the_run_ends_with_an_error_and_keeps_its_tasks():
    machine = fleet(1, restarts_max=0)
    submit(machine, 1, 2)
    (finish,) = [e for e in exited(machine, "w-1", status=7, signal=None) if isinstance(e, ev.Finish)]
    assert (finish.exit_status, finish.reason) == (1, "error")
    assert finish.error is not None
    assert "status 7" in finish.error
    assert sorted(machine.state.tasks) == [1, 2]


@pytest.mark.parametrize(
    ("restart", "status", "again"),
    [
        ("always", 0, True),
        ("on_failure", 0, False),
        ("on_failure", 1, True),
        ("on_failure", None, True),
        ("never", 1, False),
    ],
)
def test_the_restart_policy_decides(restart, status, again):
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")], restart), ev.WorkerPlan("x", [("x", "k")])], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    out = exited(machine, "w", status=status, signal=9 if status is None else None)
    assert (spawned(out) == [("w", 2)]) is again


def test_when_the_last_worker_of_a_kind_is_given_up_its_tasks_end_the_run():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("r", [("r", "reader")], "never"), ev.WorkerPlan("s", [("s", "writer")])])
    machine.apply(ev.FleetStarted(AT, plan))
    machine.apply(ev.AgentReady(AT, "s", 1, 1))
    submit(machine, 1, kind="reader")
    submit(machine, 2, kind="writer")
    exited(machine, "r")
    assert machine.state.phase == "running", "the other kind still has work"
    ended(machine, "s", 2)
    assert machine.state.phase == "draining"
    assert machine.state.ending.reason == "error"


def test_a_worker_nobody_asked_for_is_killed():
    machine = fleet(1)
    out = machine.apply(ev.WorkerStarted(AT, "w-1", 7, 1, 1))
    assert [(e.worker, e.incarnation, e.tree) for e in out if isinstance(e, ev.KillWorker)] == [("w-1", 7, True)]


# --------------------------------------------------------------------------- recovery


def recover(machine, alive, exits=(), restarts=1):
    return machine.apply(ev.Recovered(machine.state.now_s, [(w, i, 1, 1) for w, i in alive], list(exits), restarts))


def test_the_living_are_called_and_get_nothing_new_before_they_answer():
    machine = fleet(2)
    submit(machine, 1)
    out = recover(machine, [("w-1", 1), ("w-2", 1)])
    assert [to for to, _ in posts(out, RollCall)] == ["w-1", "w-2"]
    assert assigned(submit(machine, 2)) == []
    nonce = machine.state.roll
    assert assigned(machine.apply(ev.AgentReady(AT, "w-2", 1, 1, [], nonce))) == [(2, 1, "w-2")]


def test_an_assignment_that_never_arrived_is_sent_again_as_the_same_attempt():
    machine = fleet(1)
    first = submit(machine, 1)
    recover(machine, [("w-1", 1)])
    again = machine.apply(ev.AgentReady(AT, "w-1", 1, 1, [], machine.state.roll))
    assert assigned(again) == assigned(first) == [(1, 1, "w-1")]
    ids = [e.message_id for e in (*first, *again) if isinstance(e, ev.Post) and isinstance(e.body, Assign)]
    assert ids[0] == ids[1], "the same id: the bus adds no second copy"


def test_an_assignment_that_arrived_is_left_alone_and_a_foreign_one_is_cancelled():
    machine = fleet(1)
    submit(machine, 1)
    recover(machine, [("w-1", 1)])
    out = machine.apply(ev.AgentReady(AT, "w-1", 1, 1, [(1, 1), (9, 4)], machine.state.roll))
    assert assigned(out) == []
    assert [(body.number, body.attempt) for _, body in posts(out, Cancel)] == [(9, 4)]


def test_an_answer_to_an_older_roll_call_changes_nothing():
    machine = fleet(1)
    submit(machine, 1)
    recover(machine, [("w-1", 1)])
    recover(machine, [("w-1", 1)], restarts=2)
    assert machine.apply(ev.AgentReady(AT, "w-1", 1, 1, [], machine.state.roll - 1)) == []
    assert not machine.state.agents["w-1"].confirmed


def test_a_worker_the_spawner_does_not_know_is_reclaimed_without_blame():
    machine = fleet(2, deaths_max=1)
    submit(machine, 1)
    out = recover(machine, [("w-2", 1)])
    assert spawned(out) == [("w-1", 2)]
    assert recorded(out) == []
    assert assigned(machine.apply(ev.AgentReady(AT, "w-2", 1, 1, [], machine.state.roll))) == [(1, 2, "w-2")]


def test_a_worker_whose_exit_waits_to_be_told_is_not_reclaimed_before():
    machine = fleet(2)
    submit(machine, 1)
    out = recover(machine, [("w-2", 1)], exits=[("w-1", 1)])
    assert spawned(out) == []
    assert machine.state.agents["w-1"].held == {1: 1}
    exited(machine, "w-1", survivors=2)
    assert machine.state.agents["w-1"].held == {1: 1}


def test_a_new_life_of_the_store_reclaims_everything_and_starts_every_worker_anew():
    machine = fleet(2, run=False)
    submit(machine, 1, 2, 3)
    machine.apply(ev.StopRequested(AT, "now", "SIGTERM"))
    out = machine.apply(ev.FleetStarted(AT + 100, machine.state.plan))
    assert spawned(out) == [("w-1", 2), ("w-2", 2)]
    assert machine.state.phase == "running"
    assert [task.state for task in machine.state.tasks.values()] == ["queued"] * 3
    assert assigned(machine.apply(ev.AgentReady(AT + 101, "w-1", 2, 1))) == [(1, 2, "w-1")]


# --------------------------------------------------------------------------- the end


def test_a_drain_tells_everybody_and_takes_what_comes_back():
    machine = fleet(2)
    submit(machine, 1, 2, 3)
    out = machine.apply(ev.StopRequested(AT, "drain", "SIGTERM"))
    assert [to for to, _ in posts(out, Drain)] == ["w-1", "w-2"]
    assert assigned(machine.apply(ev.TaskRefused(AT, "w-1", 1, 1, 1, "drain"))) == []
    assert recorded(ended(machine, "w-2", 2)) == [(2, "done")]
    exited(machine, "w-1", status=0, signal=None)
    (finish,) = [e for e in exited(machine, "w-2", status=0, signal=None) if isinstance(e, ev.Finish)]
    assert (finish.exit_status, finish.reason) == (143, "stopped")
    assert sorted(machine.state.tasks) == [1, 3]


def test_a_second_stop_makes_it_now_and_another_drain_does_not_soften_it():
    machine = fleet(1, grace_s=60)
    submit(machine, 1)
    machine.apply(ev.StopRequested(AT, "drain", "SIGINT"))
    out = machine.apply(ev.StopRequested(AT, "now", "SIGINT"))
    assert [body.now for _, body in posts(out, Drain)] == [True]
    assert machine.apply(ev.StopRequested(AT, "drain", "SIGINT")) == []


def test_what_outlives_the_grace_is_killed_and_the_end_comes_within_a_second_of_it():
    machine = fleet(1, grace_s=10)
    submit(machine, 1)
    machine.apply(ev.StopRequested(AT, "drain", "SIGTERM"))
    assert machine.due_s() == pytest.approx(AT + 10)
    out = machine.apply(ev.TimePassed(AT + 10))
    assert [(e.worker, e.signal, e.tree) for e in out if isinstance(e, ev.KillWorker)] == [("w-1", 9, True)]
    out = machine.apply(ev.TimePassed(due_s(machine)))
    assert [e for e in out if isinstance(e, ev.Finish)]
    assert machine.state.now_s - AT <= 11


def test_a_worker_that_is_not_ready_is_not_waited_for():
    machine = Machine()
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")])])))
    out = machine.apply(ev.InputEnded(AT, 0))
    assert [(e.worker, e.signal) for e in out if isinstance(e, ev.KillWorker)] == [("w", 15)]


def test_an_agent_that_joins_while_the_fleet_drains_is_told_to_drain():
    machine = Machine()
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")])], run=False)))
    machine.apply(ev.StopRequested(AT, "drain", ""))
    assert posts(machine.apply(ev.AgentReady(AT, "w", 1, 1)), Drain)


def test_the_end_is_told_again_to_a_coordinator_that_died_before_it_could_pass_it_on():
    machine = fleet(1)
    machine.apply(ev.InputEnded(AT, 0))
    exited(machine, "w-1", status=0, signal=None)
    assert machine.state.phase == "ended"
    assert [e for e in recover(machine, []) if isinstance(e, ev.Finish)]


# --------------------------------------------------------------------------- child specs


def supervised(workers=2, *, restart="always", **child):
    """A running, ready standing fleet whose workers w-1 … are supervised as `child` says."""
    machine = Machine()
    entries = [ev.WorkerPlan(f"w-{n}", [(f"w-{n}", "k")], restart, ChildSpec(**child)) for n in range(1, workers + 1)]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, run=False)))
    for n in range(1, workers + 1):
        ready(machine, f"w-{n}", 1)
    return machine


def ready(machine, worker, incarnation):
    machine.apply(ev.WorkerStarted(machine.state.now_s, worker, incarnation, 100, 1))
    return machine.apply(ev.AgentReady(machine.state.now_s, worker, incarnation, 1))


def killed(effects):
    return [(e.worker, e.incarnation, e.signal) for e in effects if isinstance(e, ev.KillWorker)]


def test_each_worker_lives_by_its_own_intensity_and_waits():
    machine = Machine()
    entries = [
        ev.WorkerPlan("a", [("a", "k")], "always", ChildSpec(restarts_max=1)),
        ev.WorkerPlan("b", [("b", "k")], "always", ChildSpec(restarts_max=3, delay_s=2.0, delay_max_s=3.0)),
    ]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, run=False)))
    for name in ("a", "b"):
        exited(machine, name)
        exited(machine, name, 2)
    a, b = machine.state.workers["a"], machine.state.workers["b"]
    assert (a.state, b.state, b.restart_at_s) == ("quarantined", "waiting", AT + 2.0)
    machine.apply(ev.TimePassed(AT + 2.0))
    exited(machine, "b", 3)
    assert (b.state, b.restart_at_s) == ("waiting", AT + 2.0 + 3.0), "doubled, and no longer than the longest"


def test_quarantine_tells_how_often_it_died_how_and_what_lifts_it():
    machine = supervised(2, restarts_max=1, period_s=7)
    exited(machine, "w-1", 1)
    out = exited(machine, "w-1", 2, status=3, signal=None)
    (note,) = [e for e in out if isinstance(e, ev.Noted) and e.event == "worker.quarantined"]
    expected = "died 2 times within 7 s, last it exited with status 3; `muster restart w-1` starts it again"
    assert note.facts["how"] == expected
    assert evidence_of(machine.state.workers["w-1"], machine.state.now_s) == [expected]


def test_a_worker_that_is_not_ready_in_time_is_killed_and_that_is_a_death():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")], "always", ChildSpec(ready_timeout_s=10))], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    machine.apply(ev.WorkerStarted(AT, "w", 1, 100, 1))
    assert due_s(machine) == AT + 10
    assert killed(machine.apply(ev.TimePassed(AT + 10))) == [], "perhaps its word waits to be read"
    assert killed(machine.apply(ev.TimePassed(due_s(machine)))) == [("w", 1, 9)]
    assert spawned(exited(machine, "w")) == [("w", 2)]
    assert machine.state.workers["w"].last_exit == "was not ready within 10 s and was killed"
    assert machine.state.counters.worker_deaths == 1


def test_a_worker_whose_word_was_only_read_late_is_not_killed():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")], "always", ChildSpec(ready_timeout_s=10))], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    machine.apply(ev.TimePassed(AT + 500))  # the coordinator stood still
    ready(machine, "w", 1)
    assert machine.due_s() is None, "nobody is woken for a worker that is ready"
    assert killed(machine.apply(ev.TimePassed(AT + 600))) == []


def test_after_a_restart_of_the_coordinator_a_worker_has_its_time_to_get_ready_anew():
    machine = Machine()
    plan = ev.Plan(workers=[ev.WorkerPlan("w", [("w", "k")], "always", ChildSpec(ready_timeout_s=10))], run=False)
    machine.apply(ev.FleetStarted(AT, plan))
    machine.state.now_s = AT + 100
    recover(machine, [("w", 1)])
    assert due_s(machine) == AT + 110


@pytest.mark.parametrize(
    ("restarts", "delay_s", "delay_max_s", "period_s", "can_trip"),
    [
        (5, 0.1, 5.0, 30.0, True),  # 0 + 0.1 + 0.2 + 0.4 + 0.8
        (5, 2.0, 60.0, 30.0, False),  # 0 + 2 + 4 + 8 + 16
        (5, 2.0, 60.0, 30.1, True),
        (3, 15.0, 15.0, 30.0, False),  # 0 + 15 + 15
        (0, 99.0, 99.0, 1.0, True),
        (1, 99.0, 99.0, 1.0, True),
    ],
)
def test_a_limit_can_trip_only_if_the_waits_of_its_restarts_fit_into_the_period(
    restarts, delay_s, delay_max_s, period_s, can_trip
):
    child = ChildSpec(restarts_max=restarts, period_s=period_s, delay_s=delay_s, delay_max_s=delay_max_s)
    assert child.can_trip() is can_trip
    machine = supervised(
        2, **{name: getattr(child, name) for name in ("restarts_max", "period_s", "delay_s", "delay_max_s")}
    )
    worker = machine.state.workers["w-1"]
    for _ in range(restarts + 5):  # a crash loop that takes no time at all
        exited(machine, "w-1", worker.incarnation)
        if worker.state == "waiting":
            machine.apply(ev.TimePassed(worker.restart_at_s))
    assert (worker.state == "quarantined") is can_trip


@pytest.mark.parametrize(("state", "cause"), [("gone", "seen"), ("quarantined", "proven_dead"), ("waiting", "seen")])
def test_a_move_of_a_worker_that_is_not_in_the_table_is_refused(state, cause):
    worker = supervised(1).state.workers["w-1"]
    worker.state = state
    with pytest.raises(KeyError):
        worker.move(cause)


def test_an_agent_makes_only_the_moves_of_its_table():
    machine = supervised(1)
    agent = machine.state.agents["w-1"]
    with pytest.raises(ValueError, match="cannot go from ready to busy"):
        set_agent_state(machine.state, agent, "busy")
    assert agent.state == "ready"
