"""What tasks may wish for (priority, delay, others first, tags, a policy of their own), and the operator's will about them."""

from __future__ import annotations

import pytest

from muster.coordinator import events as ev
from muster.coordinator.asks import Answer, Ask
from muster.coordinator.dependencies import in_order
from muster.coordinator.machine import Machine
from muster.coordinator.ordering import RULES
from muster.coordinator.state import load, snapshot
from muster.core import limits
from muster.core.protocol import Assign, Cancel, TaskInput
from muster.core.requests import Done, RetryTasks
from muster.errors import DependencyError, FleetNotRunningError

AT = 1000.0


def fleet(kinds=("a", "b"), *, agents=1, run=False, **plan) -> Machine:
    """A running fleet with `agents` ready agents of each kind, named a-1 … and so on."""
    names = [(f"{kind}-{n}", kind) for kind in kinds for n in range(1, agents + 1)]
    machine = Machine()
    start = ev.Plan(workers=[ev.WorkerPlan(name, [(name, kind)]) for name, kind in names], run=run, **plan)
    machine.apply(ev.FleetStarted(AT, start))
    for name, _ in names:
        machine.apply(ev.WorkerStarted(AT, name, 1, 100, 1))
        machine.apply(ev.AgentReady(AT, name, 1, 1))
    return machine


def submit(machine, *tasks: TaskInput) -> list[ev.Effect]:
    effects: list[ev.Effect] = machine.apply(ev.TasksSubmitted(machine.state.now_s, list(tasks)))
    return effects


def task(number: int, **wishes) -> TaskInput:
    return TaskInput(number, f"in {number}", **wishes)


def assigned(effects) -> list[tuple[int, int, str]]:
    return [
        (e.body.number, e.body.attempt, e.to) for e in effects if isinstance(e, ev.Post) and isinstance(e.body, Assign)
    ]


def recorded(effects) -> list[tuple[int, str]]:
    return [(e.number, e.outcome) for e in effects if isinstance(e, ev.Record)]


def ended(machine, number, outcome="done", after_s=1.0) -> list[ev.Effect]:
    """The holder of a task says how its attempt ended; slow enough for nothing to be prefetched."""
    held = machine.state.tasks[number]
    fact = ev.TaskEnded(
        machine.state.now_s + after_s, held.agent, number, held.attempt, held.incarnation, outcome, 7, None, "ouch"
    )
    effects: list[ev.Effect] = machine.apply(fact)
    return effects


def evidence(machine, number) -> list[str]:
    kept = machine.state.kept.get(number)
    assert kept is not None, f"task {number} is not kept"
    found: list[str] = kept.evidence
    return found


def states(machine) -> dict[int, str]:
    state = machine.state
    return {t.number: t.state for t in (*state.tasks.values(), *state.kept)}


# --------------------------------------------------------------------------- priorities, delays, policy


def test_higher_priorities_go_first_and_equal_ones_by_number():
    machine = fleet(("a",))
    wishes = {2: 0, 3: -100, 4: 5, 5: 100, 6: 5, 7: 0}
    submit(machine, task(1))
    submit(machine, *(task(number, priority=priority) for number, priority in wishes.items()))
    order = [1]
    while got := assigned(ended(machine, order[-1])):
        order.append(got[0][0])
    assert order == [1, 5, 4, 6, 2, 7, 3]


def test_a_delayed_task_begins_when_it_is_due_and_not_before():
    machine = fleet(("a",))
    assert assigned(submit(machine, task(1, delay_s=60.0))) == []
    assert machine.due_s() == AT + 60
    assert assigned(machine.apply(ev.TimePassed(AT + 59.9))) == []
    assert assigned(machine.apply(ev.TimePassed(AT + 60))) == [(1, 1, "a-1")]


def test_a_task_has_its_own_count_of_attempts_and_its_own_backoff():
    machine = fleet(("a",), attempts_max=1, backoff_s=50.0)
    submit(machine, task(1, attempts_max=2, backoff_s=0.0), task(2, priority=-1))
    effects = ended(machine, 1, "failed")
    assert (recorded(effects), assigned(effects)) == ([], [(1, 2, "a-1")]), "without a pause it keeps its place"
    assert recorded(ended(machine, 1, "failed")) == [(1, "failed")]
    assert recorded(ended(machine, 2, "failed")) == [(2, "failed")], "the fleet's policy: one attempt"


# --------------------------------------------------------------------------- after


def test_a_task_waits_until_all_that_it_comes_after_are_done():
    machine = fleet(("a",), agents=3)
    assert assigned(submit(machine, task(1), task(2), task(3, after=[1, 2, 1]))) == [(1, 1, "a-1"), (2, 1, "a-2")]
    assert states(machine)[3] == "blocked"
    assert assigned(ended(machine, 1)) == []
    assert assigned(ended(machine, 2)) == [(3, 1, "a-3")]
    assert assigned(submit(machine, task(4, after=[1, 2]))) == [(4, 1, "a-1")], "what is done already counts"
    assert machine.state.dependants == {}


def test_a_task_that_waited_for_others_still_waits_for_its_time():
    machine = fleet(("a",))
    submit(machine, task(1), task(2, after=[1], delay_s=100.0))
    ended(machine, 1)
    assert states(machine)[2] == "delayed"
    assert assigned(machine.apply(ev.TimePassed(AT + 100))) == [(2, 1, "a-1")]


@pytest.mark.parametrize("how", ["failed", "dead", "cancelled"])
def test_what_comes_after_a_task_that_did_not_succeed_is_dead_at_once_all_the_way_down(how):
    machine = fleet(("a",), deaths_max=1)
    submit(machine, task(1), task(2, after=[1]), task(3, after=[2]), task(4, after=[3, 1]), task(5))
    if how == "failed":
        effects = ended(machine, 1, "failed")
    elif how == "dead":
        effects = machine.apply(ev.WorkerExited(AT + 1, "a-1", 1, None, 9))
    else:
        machine.apply(ev.TasksCancelled(AT + 1, [1]))
        effects = ended(machine, 1, "cancelled")
    assert sorted(recorded(effects)) == [(1, how), (2, "dead"), (3, "dead"), (4, "dead")]
    said = {"failed": "failed", "dead": "is dead", "cancelled": "was cancelled"}[how]
    assert evidence(machine, 2)[-1] == f"it comes after task 1, which {said}"
    assert evidence(machine, 3)[-1] == "it comes after task 2, which is dead"
    assert set(machine.state.tasks) == {5}
    assert machine.state.dependants == {}


def test_a_task_after_one_that_failed_long_ago_is_dead_at_submission():
    machine = fleet(("a",))
    submit(machine, task(1))
    ended(machine, 1, "failed")
    assert recorded(submit(machine, task(2, after=[1]))) == [(2, "dead")]


def test_a_batch_is_ordered_so_that_it_may_be_cut_anywhere():
    tasks = [task(1, after=[3, 9]), task(2, after=[1]), task(3)]
    seen: set[int] = {9}
    for each in in_order(tasks, lambda number: number == 9):
        assert seen.issuperset(each.after)
        seen.add(each.number)
    assert seen == {1, 2, 3, 9}


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([task(1, after=[7])], "task 1 comes after task 7, which does not exist"),
        ([task(1, after=[1])], "circle: 1 after 1"),
        ([task(1, after=[2]), task(2, after=[3]), task(3, after=[1])], "circle: "),
        ([task(1, after=list(range(2, limits.TASK_AFTER_MAX + 3)))], "1,000 is the most"),
    ],
)
def test_what_can_never_be_done_is_refused_in_one_sentence(tasks, says):
    with pytest.raises(DependencyError, match=says):
        in_order(tasks, lambda _number: False)


# --------------------------------------------------------------------------- routing


def test_a_task_goes_only_to_agents_whose_kind_has_all_of_its_tags():
    machine = fleet(("a", "b"), tags={"a": ["fast"], "b": ["fast", "gpu"]})
    got = assigned(submit(machine, task(1, tags=["gpu", "fast"]), task(2, tags=["gpu"]), task(3, tags=["fast"])))
    assert got == [(1, 1, "b-1"), (3, 1, "a-1")]
    assert assigned(ended(machine, 1)) == [(2, 1, "b-1")]


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"kind": "c"}, "no agent of kind 'c' is in this fleet"),
        ({"tags": ["tape"]}, "no agent has the tags tape"),
        ({"kind": "a", "tags": ["gpu"]}, "no agent of kind 'a' has the tags gpu"),
    ],
)
def test_a_task_that_nobody_can_do_is_dead_at_once_with_evidence(wishes, why):
    machine = fleet(("a", "b"), tags={"b": ["gpu"]})
    effects = submit(machine, task(1, **wishes), task(2))
    assert recorded(effects) == [(1, "dead")]
    assert evidence(machine, 1) == [why]
    assert assigned(effects) == [(2, 1, "a-1")]


def test_routes_are_bounded_and_those_that_nobody_uses_any_more_make_room():
    tags = [f"t{n}" for n in range(limits.TASK_ROUTES_MAX + 10)]
    machine = fleet(("a",), tags={"a": tags})
    submit(machine, *(task(n + 1, tags=[tag]) for n, tag in enumerate(tags[: limits.TASK_ROUTES_MAX])))
    assert recorded(submit(machine, task(900, tags=[tags[-1]]))) == [(900, "dead")]
    assert "more are refused" in evidence(machine, 900)[0]
    machine.apply(ev.TasksCancelled(AT, list(range(2, 200))))
    assert recorded(submit(machine, task(901, tags=[tags[-1]]))) == []
    assert states(machine)[901] == "queued"


def test_a_new_life_lays_the_lines_anew_and_buries_what_nobody_can_do_any_more():
    machine = fleet(("a", "b"))
    submit(machine, task(1, kind="a"), task(2, kind="b"), task(3, kind="b"), task(4, kind="b", after=[3]), task(5))
    entries = [ev.WorkerPlan("a-1", [("a-1", "a")])]
    effects = machine.apply(ev.FleetStarted(AT + 9, ev.Plan(workers=entries, run=False)))
    assert sorted(recorded(effects)) == [(2, "dead"), (3, "dead"), (4, "dead")]
    machine.apply(ev.WorkerStarted(AT + 9, "a-1", 2, 100, 1))
    assert assigned(machine.apply(ev.AgentReady(AT + 9, "a-1", 2, 1))) == [(1, 2, "a-1")]


# --------------------------------------------------------------------------- cancel, retry, forget, pause


def test_what_waits_is_cancelled_at_once_and_what_runs_when_nothing_of_it_is_left():
    machine = fleet(("a",))
    submit(machine, task(1), task(2), task(3, delay_s=50.0), task(4, after=[1]), task(5))
    effects = machine.apply(ev.TasksCancelled(AT, [1, 2, 3, 4, 99], "no use"))
    assert sorted(recorded(effects)) == [(2, "cancelled"), (3, "cancelled"), (4, "cancelled")]
    orders = [
        (e.to, e.body.number, e.body.attempt) for e in effects if isinstance(e, ev.Post) and isinstance(e.body, Cancel)
    ]
    assert orders == [("a-1", 1, 1)]
    cancel = next(e for e in effects if isinstance(e, ev.Post))
    assert isinstance(cancel.body, Cancel)
    assert not cancel.is_control, "it must not overtake the assignment"
    assert machine.apply(ev.TasksCancelled(AT, [1])) == [], "once is enough"
    effects = ended(machine, 1, "cancelled")
    assert recorded(effects) == [(1, "cancelled")]
    assert assigned(effects) == [(5, 1, "a-1")]
    assert machine.state.counters.cancelled == 4
    assert evidence(machine, 1) == ["cancelled by the operator: no use"]


@pytest.mark.parametrize("how", ["failed", "done", "death", "refusal"])
def test_a_task_that_is_being_cancelled_never_runs_again(how):
    machine = fleet(("a",), attempts_max=5, agents=2)
    submit(machine, task(1))
    machine.apply(ev.TasksCancelled(AT, [1]))
    if how == "death":
        effects = machine.apply(ev.WorkerExited(AT + 1, "a-1", 1, None, 9))
    elif how == "refusal":
        effects = machine.apply(ev.TaskRefused(AT + 1, "a-1", 1, 1, 1, "drain"))
    else:
        effects = ended(machine, 1, how)
    assert recorded(effects) == [(1, "done" if how == "done" else "cancelled")]
    assert assigned(effects) == []


def test_an_order_to_cancel_that_was_lost_with_a_coordinator_is_given_again_at_the_roll_call():
    machine = fleet(("a",))
    submit(machine, task(1))
    machine.apply(ev.TasksCancelled(AT, [1]))
    machine = Machine(load(snapshot(machine.state)))
    machine.apply(ev.Recovered(AT + 1, [("a-1", 1, 100, 1)], [], 1))
    effects = machine.apply(ev.AgentReady(AT + 1, "a-1", 1, 1, [(1, 1)], machine.state.roll))
    assert [(e.to, e.body.number) for e in effects if isinstance(e, ev.Post) and isinstance(e.body, Cancel)] == [
        ("a-1", 1)
    ]


def test_a_retried_task_goes_on_counting_attempts_and_begins_to_count_failures():
    machine = fleet(("a",), attempts_max=1)
    submit(machine, task(1))
    ended(machine, 1, "failed")
    assert machine.state.counters.failed == 1
    assert evidence(machine, 1) == ["attempt 1 on a-1: failed, status 7. ouch"]
    assert assigned(machine.apply(ev.TasksRetried(AT + 2, [1]))) == [(1, 2, "a-1")]
    counters = machine.state.counters
    assert (counters.failed, counters.retried, counters.submitted) == (0, 1, 1)
    stale = machine.apply(ev.TaskEnded(AT + 3, "a-1", 1, 1, 1, "done", 0))
    assert [e.code for e in stale if isinstance(e, ev.Rejected)] == ["task.stale_attempt"]
    assert recorded(ended(machine, 1)) == [(1, "done")]
    assert machine.apply(ev.TasksRetried(AT + 4, [1])) == [], "it is kept no longer"


def retry_judged(machine) -> Answer:
    """The operator asks for another try of what failed, in a turn whose other facts are not decided yet."""
    return RULES[RetryTasks].judge(machine.state, RetryTasks(states=["failed"]), Ask("operator", "1", AT))


def test_a_retry_that_meets_the_end_of_its_run_in_one_turn_is_refused_and_changes_nothing():
    machine = fleet(("a",), run=True)
    submit(machine, task(1), task(2))
    machine.apply(ev.InputEnded(AT, 2))
    ended(machine, 1, "failed")
    answer = retry_judged(machine)
    ended(machine, 2)
    assert [effect for fact in answer.facts for effect in machine.apply(fact)] == []
    told = answer.reply(machine.state)
    assert isinstance(told, Done)
    assert (told.ok, told.code) == (False, FleetNotRunningError.code)
    assert (machine.state.tasks, len(machine.state.kept), machine.state.counters.failed) == ({}, 1, 1)
    machine.apply(ev.AgentDrained(AT + 3, "a-1", 1))
    assert ev.Finish(1, "complete") in machine.apply(ev.WorkerExited(AT + 3, "a-1", 1, 0, None))


def test_a_retry_that_came_before_the_end_in_its_turn_is_answered_with_what_it_did():
    machine = fleet(("a",), run=True)
    submit(machine, task(1), task(2))
    ended(machine, 1, "failed")
    answer = retry_judged(machine)
    for fact in (*answer.facts, ev.StopRequested(AT, "drain", "down")):
        machine.apply(fact)
    assert answer.reply(machine.state) == Done(ok=True, facts={"retried": 1, "numbers": [1]})
    assert states(machine)[1] == "queued"


def test_tasks_that_come_after_each_other_are_retried_together():
    machine = fleet(("a",))
    submit(machine, task(1), task(2, after=[1]), task(3, after=[2]))
    ended(machine, 1, "failed")
    assert assigned(machine.apply(ev.TasksRetried(AT, [1, 2, 3]))) == [(1, 2, "a-1")]
    assert states(machine) == {1: "assigned", 2: "blocked", 3: "blocked"}
    assert assigned(ended(machine, 1)) == [(2, 1, "a-1")]


def test_an_old_timer_does_not_end_a_new_wait():
    machine = fleet(("a",), attempts_max=9, backoff_s=100.0, backoff_max_s=1000.0)
    submit(machine, task(1))
    ended(machine, 1, "failed")
    old_due_s = machine.state.tasks[1].due_s
    machine.apply(ev.TasksCancelled(AT + 2, [1]))
    assert assigned(machine.apply(ev.TasksRetried(AT + 3, [1]))) == [(1, 2, "a-1")], "a pause after a failure is over"
    ended(machine, 1, "failed")
    assert machine.state.tasks[1].due_s > old_due_s
    assert assigned(machine.apply(ev.TimePassed(old_due_s))) == []
    assert states(machine)[1] == "delayed"


def test_a_retry_brings_no_task_forward_whose_delay_since_its_submission_is_not_over():
    machine = fleet(("a",))
    submit(machine, task(1), task(2, delay_s=30.0), task(3, delay_s=60.0, after=[1]))
    machine.apply(ev.TasksCancelled(AT + 1, [2]))
    assert recorded(ended(machine, 1, "failed")) == [(1, "failed"), (3, "dead")]
    assert assigned(machine.apply(ev.TasksRetried(AT + 3, [1, 2, 3]))) == [(1, 2, "a-1")]
    assert assigned(ended(machine, 1)) == []
    assert assigned(machine.apply(ev.TimePassed(AT + 29))) == []
    assert assigned(machine.apply(ev.TimePassed(AT + 30))) == [(2, 1, "a-1")]
    assert assigned(ended(machine, 2)) == []
    assert assigned(machine.apply(ev.TimePassed(AT + 60))) == [(3, 1, "a-1")]


def test_the_newest_unsuccessful_tasks_are_kept_and_their_inputs_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "TASKS_KEPT_MAX", 3)
    machine = fleet(("a",))
    submit(machine, *(task(n, kind="nobody") for n in range(1, 6)))
    assert [t.number for t in machine.state.kept] == [3, 4, 5]
    monkeypatch.setattr(limits, "TASKS_KEPT_BYTES_MAX", 11)
    submit(machine, task(6, kind="nobody"))
    assert [t.number for t in machine.state.kept] == [5, 6]
    machine.apply(ev.TasksForgotten(AT, [5, 1]))
    assert [t.number for t in machine.state.kept] == [6]


def test_a_pause_assigns_nothing_new_until_it_is_lifted():
    machine = fleet(("a", "b"))
    machine.apply(ev.AssignmentPaused(AT, ["a"]))
    assert assigned(submit(machine, task(1), task(2), task(3, kind="a"))) == [(1, 1, "b-1")]
    machine.apply(ev.AssignmentPaused(AT, []))
    assert assigned(ended(machine, 1)) == []
    machine = Machine(load(snapshot(machine.state)))
    assert assigned(submit(machine, task(4))) == []
    assert assigned(machine.apply(ev.AssignmentResumed(AT, []))) == [(2, 1, "a-1"), (4, 1, "b-1")]


# --------------------------------------------------------------------------- restarts


def test_a_snapshot_at_any_moment_leads_to_equal_decisions():
    def facts():
        yield ev.AssignmentPaused(AT, ["b"])
        wishes = [
            task(1), task(2, after=[1]), task(3, priority=9, delay_s=5.0), task(4, tags=["x"]), task(5, kind="none"),
            task(6, after=[4, 2], attempts_max=2), task(7, after=[5]),
        ]  # fmt: skip
        yield ev.TasksSubmitted(AT, wishes)
        yield ev.TaskEnded(AT + 1, "a-1", 1, 1, 1, "done", 0)
        yield ev.TimePassed(AT + 5)
        yield ev.TasksCancelled(AT + 6, [2, 4])
        yield ev.TaskEnded(AT + 7, "a-1", 2, 1, 1, "cancelled")
        yield ev.TaskEnded(AT + 8, "a-1", 3, 1, 1, "failed", 1)
        yield ev.TasksRetried(AT + 9, [2, 3, 4, 6])
        yield ev.TaskEnded(AT + 9.5, "b-1", 2, 1, 1, "done", 0)
        yield ev.AssignmentResumed(AT + 10, [])
        for number in (3, 2, 4, 6, 2, 4, 6):
            for attempt in (1, 2, 3):
                yield ev.TaskEnded(AT + 11 + number, "a-1", number, attempt, 1, "done", 0)
                yield ev.TaskEnded(AT + 11 + number, "b-1", number, attempt, 1, "done", 0)

    plain = fleet(("a", "b"), tags={"a": ["x"]})
    reloaded = fleet(("a", "b"), tags={"a": ["x"]})
    for fact in facts():
        reloaded = Machine(load(snapshot(reloaded.state)))
        assert reloaded.apply(fact) == plain.apply(fact), fact
        assert snapshot(reloaded.state) == snapshot(plain.state), fact
    assert states(plain) == {5: "dead", 7: "dead"}
    assert plain.state.counters.done == 5
