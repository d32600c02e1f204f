"""A task's life, from the table of transitions down to single decisions."""

from __future__ import annotations

import pytest

from muster.coordinator import events as ev
from muster.coordinator.machine import Machine
from muster.coordinator.tasks import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    DEAD,
    DELAYED,
    DONE,
    FAILED,
    OPEN,
    QUEUED,
    TRANSITIONS,
    Outcomes,
    Task,
)
from muster.core.protocol import Assign, Drain, TaskInput

AT = 1000.0


def fleet(workers: int = 2, *, slots: int = 1, **plan) -> Machine:
    """A running fleet of one-agent workers w-1 … that are all ready."""
    machine = Machine()
    entries = [ev.WorkerPlan(f"w-{n}", [(f"w-{n}", "worker")]) for n in range(1, workers + 1)]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, **plan)))
    for n in range(1, workers + 1):
        machine.apply(ev.WorkerStarted(AT, f"w-{n}", 1, 100 + n, 1))
        machine.apply(ev.AgentReady(AT, f"w-{n}", 1, slots))
    return machine


def due_s(machine: Machine) -> float:
    """When the machine wants to be woken; it does want to."""
    due = machine.due_s()
    assert due is not None, "nothing waits for time"
    return due


def submit(machine: Machine, *numbers: int, kind: str = "") -> list[ev.Effect]:
    return machine.apply(ev.TasksSubmitted(machine.state.now_s, [TaskInput(n, f"in {n}", kind) for n in numbers]))


def assigned(effects) -> list[tuple[int, int, str]]:
    return [
        (e.body.number, e.body.attempt, e.to) for e in effects if isinstance(e, ev.Post) and isinstance(e.body, Assign)
    ]


def recorded(effects) -> list[tuple[int, str]]:
    return [(e.number, e.outcome) for e in effects if isinstance(e, ev.Record)]


def ended(machine, agent, number, attempt=1, outcome="done", incarnation=1, after_s=0.01):
    return machine.apply(ev.TaskEnded(machine.state.now_s + after_s, agent, number, attempt, incarnation, outcome, 0))


@pytest.mark.parametrize(
    ("state", "cause", "after"),
    [
        (QUEUED, "assigned", ASSIGNED), (ASSIGNED, "done", DONE), (ASSIGNED, "failed_again", DELAYED),
        (ASSIGNED, "failed_finally", FAILED), (ASSIGNED, "died", QUEUED), (ASSIGNED, "died_finally", DEAD),
        (ASSIGNED, "handed_back", QUEUED), (DELAYED, "due", QUEUED), (QUEUED, "impossible", DEAD), (ASSIGNED, "impossible", DEAD),
        (QUEUED, "must_wait", BLOCKED), (QUEUED, "not_yet_due", DELAYED), (QUEUED, "cancelled", CANCELLED),
        (BLOCKED, "fulfilled", QUEUED), (BLOCKED, "impossible", DEAD), (BLOCKED, "cancelled", CANCELLED),
        (DELAYED, "impossible", DEAD), (DELAYED, "cancelled", CANCELLED), (ASSIGNED, "cancelled", CANCELLED),
        (FAILED, "retried", QUEUED), (DEAD, "retried", QUEUED), (CANCELLED, "retried", QUEUED), (ASSIGNED, "limited", DELAYED),
    ],
)  # fmt: skip
def test_the_table_holds_exactly_these_moves(state, cause, after):
    task = Task(1, None, "", None, state)
    task.move(cause)
    assert task.state == after
    assert len(TRANSITIONS) == 23


@pytest.mark.parametrize(
    ("state", "cause"), [(QUEUED, "done"), (DELAYED, "assigned"), (QUEUED, "died"), (DONE, "assigned")]
)
def test_a_move_that_is_not_in_the_table_is_refused(state, cause):
    task = Task(1, None, "", None, state)
    with pytest.raises(KeyError):
        task.move(cause)
    assert task.state == state


def test_tasks_are_assigned_by_number_to_whoever_has_been_idle_longest():
    machine = fleet(3)
    assert assigned(submit(machine, 1, 2)) == [(1, 1, "w-1"), (2, 1, "w-2")]
    ended(machine, "w-1", 1)
    assert assigned(submit(machine, 3, 4)) == [(3, 1, "w-3"), (4, 1, "w-1")]


def test_a_number_submitted_again_changes_nothing():
    machine = fleet(1)
    submit(machine, 1, 2)
    before = machine.state.counters.submitted
    assert assigned(submit(machine, 1, 2)) == []
    ended(machine, "w-1", 1)
    submit(machine, 1)
    assert machine.state.counters.submitted == before == 2


def test_slots_are_filled_and_nothing_is_prefetched_while_attempts_are_of_unknown_length():
    machine = fleet(1, slots=2)
    assert len(assigned(submit(machine, *range(1, 9)))) == 2


def test_short_tasks_are_prefetched_until_fewer_wait_than_there_are_agents():
    machine = fleet(2)
    submit(machine, *range(1, 10))
    assert assigned(ended(machine, "w-1", 1)) == [(3, 1, "w-1"), (4, 1, "w-1"), (5, 1, "w-2")]
    assert [list(agent.held) for agent in machine.state.agents.values()] == [[3, 4], [2, 5]]
    for number, agent in ((3, "w-1"), (2, "w-2")):
        assert len(assigned(ended(machine, agent, number))) == 1
    assert assigned(ended(machine, "w-1", 4)) == [], (
        "two tasks wait for two agents: they are left to whoever is idle first"
    )
    assert machine.state.queued == 2


def test_long_tasks_are_never_prefetched():
    machine = fleet(2)
    submit(machine, *range(1, 20))
    assert assigned(ended(machine, "w-1", 1, after_s=30)) == [(3, 1, "w-1")]


def test_nothing_is_prefetched_behind_a_task_that_has_turned_out_to_be_long():
    machine = fleet(2)
    submit(machine, *range(1, 60))
    first = [number for number, _, agent in assigned(ended(machine, "w-1", 1)) if agent == "w-2"]
    assert first, "nobody knows yet that the task of w-2 is long"
    machine = fleet(2)
    submit(machine, 1)
    machine.apply(ev.AgentReady(AT, "w-2", 1, 1))
    machine.state.now_s += 0.6
    submit(machine, *range(2, 60))
    for _ in range(8):
        number, attempt = next(iter(machine.state.agents["w-2"].held.items()))
        ended(machine, "w-2", number, attempt)
    mean_s = machine.state.attempt_mean_s
    assert mean_s is not None
    assert mean_s < 0.5
    assert list(machine.state.agents["w-1"].held) == [1]
    assert len(machine.state.agents["w-2"].held) == 2


def test_a_result_of_an_old_attempt_is_refused_and_counted():
    machine = fleet(2, attempts_max=3, backoff_s=0.1)
    submit(machine, 1)
    ended(machine, "w-1", 1, outcome="failed")
    machine.apply(ev.TimePassed(due_s(machine)))
    assert machine.state.tasks[1].attempt == 2
    assert recorded(ended(machine, "w-1", 1, attempt=1)) == []
    assert machine.state.counters.stale_refused == 1
    agent = machine.state.tasks[1].agent
    assert recorded(ended(machine, agent, 1, attempt=2)) == [(1, "done")]
    assert recorded(ended(machine, agent, 1, attempt=2)) == [], "a task is recorded once"


@pytest.mark.parametrize(
    ("agent", "attempt", "incarnation", "code"),
    [
        ("w-1", 1, 2, "task.stale_attempt"),
        ("w-2", 1, 1, "task.forged_result"),
        ("w-1", 2, 1, "task.forged_result"),
        ("w-1", 0, 1, "task.forged_result"),
        ("nobody", 1, 1, "task.forged_result"),
    ],
)
def test_only_the_holder_may_end_a_task(agent, attempt, incarnation, code):
    machine = fleet(2)
    submit(machine, 1)
    effects = ended(machine, agent, 1, attempt=attempt, incarnation=incarnation)
    assert recorded(effects) == []
    assert machine.state.tasks[1].state == ASSIGNED
    assert [(e.agent, e.attempt, e.code) for e in effects if isinstance(e, ev.Rejected)] == [(agent, attempt, code)]
    counters = machine.state.counters
    assert (counters.stale_refused, counters.forged_refused) == ((1, 0) if "stale" in code else (0, 1))


def test_a_failure_is_tried_again_after_a_wait_and_recorded_when_attempts_are_spent():
    machine = fleet(1, attempts_max=2, backoff_s=1.0)
    submit(machine, 1)
    assert recorded(ended(machine, "w-1", 1, outcome="timeout")) == []
    due = due_s(machine)
    assert 0.5 <= due - machine.state.now_s <= 1.0
    assert assigned(machine.apply(ev.TimePassed(due - 0.01))) == []
    assert assigned(machine.apply(ev.TimePassed(due))) == [(1, 2, "w-1")]
    assert recorded(ended(machine, "w-1", 1, attempt=2, outcome="killed")) == [(1, "failed")]
    assert machine.state.counters.failed == 1


def test_a_refusal_counts_no_attempt_and_no_failure():
    machine = fleet(2, attempts_max=1)
    submit(machine, 1)
    out = machine.apply(ev.TaskRefused(AT, "w-1", 1, 1, 1, "drain"))
    assert assigned(out) == [(1, 2, "w-2")], "and the draining agent gets nothing more"
    assert machine.state.tasks[1].failures == 0
    assert machine.state.agents["w-1"].state == "draining"


def test_a_task_for_a_kind_nobody_is_of_is_recorded_dead_with_the_reason():
    machine = Machine()
    entries = [ev.WorkerPlan("a", [("a", "reader")]), ev.WorkerPlan("b", [("b", "writer")])]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries)))
    (record,) = [e for e in submit(machine, 1, kind="painter") if isinstance(e, ev.Record)]
    assert record.outcome == "dead"
    assert "painter" in record.evidence[0]


def test_a_task_of_a_kind_waits_for_its_kind_and_the_others_pass_it():
    machine = Machine()
    entries = [ev.WorkerPlan("a", [("a", "reader")]), ev.WorkerPlan("b", [("b", "writer")])]
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries)))
    machine.apply(ev.AgentReady(AT, "a", 1, 1))
    submit(machine, 1, kind="writer")
    assert assigned(submit(machine, 2)) == [(2, 1, "a")]
    assert assigned(machine.apply(ev.AgentReady(AT, "b", 1, 1))) == [(1, 1, "b")]


def test_the_run_ends_when_input_has_ended_and_every_task_has():
    machine = fleet(1)
    submit(machine, 1)
    machine.apply(ev.InputEnded(AT, 1))
    out = ended(machine, "w-1", 1)
    assert [e.body for e in out if isinstance(e, ev.Post) and isinstance(e.body, Drain)]
    (finish,) = [
        e for e in machine.apply(ev.WorkerExited(machine.state.now_s, "w-1", 1, 0, None)) if isinstance(e, ev.Finish)
    ]
    assert (finish.exit_status, finish.reason) == (0, "complete")


def test_a_standing_fleet_does_not_end_by_itself():
    machine = fleet(1, run=False)
    submit(machine, 1)
    machine.apply(ev.InputEnded(AT, 1))
    ended(machine, "w-1", 1)
    assert machine.state.phase == "running"


@pytest.mark.parametrize(("when", "now"), [("soon", False), ("now", True)])
def test_a_halt_assigns_nothing_more_and_only_now_kills(when, now):
    machine = fleet(2, halt=when, halt_after=1)
    submit(machine, *range(1, 10))
    out = ended(machine, "w-1", 1, outcome="failed", after_s=5)
    assert assigned(out) == []
    drains = [e.body for e in out if isinstance(e, ev.Post) and isinstance(e.body, Drain)]
    assert [drain.now for drain in drains] == [now, now]
    if not now:
        assert all(drain.deadline_s > 86_400 for drain in drains), "running tasks may take as long as they take"
    machine.apply(ev.WorkerExited(AT + 9, "w-1", 1, 0, None))
    (finish,) = [e for e in machine.apply(ev.WorkerExited(AT + 9, "w-2", 1, 0, None)) if isinstance(e, ev.Finish)]
    assert (finish.exit_status, finish.reason) == (3, "halted")
    assert len(machine.state.tasks) == 8, "what did not run stays resumable"


def test_nothing_is_assigned_while_the_operator_does_not_read():
    machine = fleet(1)
    machine.apply(ev.AdmissionChanged(AT, False))
    assert assigned(submit(machine, 1)) == []
    assert assigned(machine.apply(ev.AdmissionChanged(AT, True))) == [(1, 1, "w-1")]


def test_a_results_file_that_fails_ends_the_run_with_its_sentence():
    machine = fleet(1)
    submit(machine, 1, 2)
    out = machine.apply(ev.RecordingFailed(AT, "no room"))
    assert any(isinstance(e, ev.Post) and isinstance(e.body, Drain) and e.body.now for e in out)
    (finish,) = [e for e in machine.apply(ev.WorkerExited(AT, "w-1", 1, 0, None)) if isinstance(e, ev.Finish)]
    assert (finish.exit_status, finish.reason, finish.error) == (1, "error", "no room")


def test_outcomes_grow_and_remember_a_byte_for_each_number():
    outcomes = Outcomes()
    outcomes.set(100_000, OPEN)
    assert outcomes.get(100_000) == OPEN
    assert outcomes.get(99_999) == outcomes.get(10**9) == outcomes.get(-1) == 0


def test_a_hundred_thousand_tasks_are_decided_in_a_few_seconds_however_many_agents_there_are():
    # Not a timing: counts how often agents are looked at. With a scan per task it would be 750 times as many.
    machine = fleet(300)
    submit(machine, *range(1, 3001))
    looks = 0
    agents = machine.state.agents

    class Counting(dict):
        def __getitem__(self, key):
            nonlocal looks
            looks += 1
            return dict.__getitem__(self, key)

    machine.state.agents = Counting(agents)
    done = 0
    while machine.state.held:
        for agent in list(agents.values()):
            for number, attempt in list(agent.held.items()):
                ended(machine, agent.name, number, attempt, after_s=0.0)
                done += 1
    assert done == 3000
    assert looks < 8 * done


def test_a_vendors_limit_is_nobodys_failure_and_the_session_goes_on():
    machine = fleet(workers=1, attempts_max=1)
    submit(machine, 1)
    out = machine.apply(
        ev.TaskEnded(
            machine.state.now_s, "w-1", 1, 1, 1, "limited", 1, retry_in_s=60.0, session="s-1", detail="resets at noon"
        )
    )
    task = machine.state.tasks[1]
    assert (task.state, task.failures, machine.state.counters.limited, machine.state.counters.attempts_failed) == (
        "delayed",
        0,
        1,
        0,
    )
    assert not [effect for effect in out if isinstance(effect, (ev.Record, ev.Post))]
    assert "limited for 60 s. resets at noon" in task.evidence[0]
    due = machine.due_s()
    assert due == machine.state.now_s + 60.0
    (post,) = [effect for effect in machine.apply(ev.TimePassed(due)) if isinstance(effect, ev.Post)]
    assert isinstance(post.body, Assign)
    assert (post.body.attempt, post.body.session) == (2, "s-1")
