"""Tasks: submitted, ended, handed back, given up. Pure, like all of the machine."""

from __future__ import annotations

from heapq import heappush

from muster.coordinator import budget, ending, entrusted, lifecycle, recycling
from muster.coordinator import state as st
from muster.coordinator.credible import micro_usd
from muster.coordinator.dispatch import enqueue, release
from muster.coordinator.events import (
    Effect,
    Handlers,
    InputEnded,
    TaskEnded,
    TaskImpossible,
    TaskRefused,
    TasksSubmitted,
)
from muster.coordinator.fencing import is_current, reject
from muster.coordinator.finishing import admit, cancelled, finish_task, give_up
from muster.coordinator.routing import route_of
from muster.coordinator.state import State
from muster.coordinator.tasks import (
    ASSIGNED,
    DONE,
    FAILED,
    NUMBER_MAX,
    OPEN,
    SOURCES_MAX,
    UNKNOWN,
    Task,
    backoff_s,
)

#: Shortest wait after a vendor's limit: what refuses at once must not be asked in a circle.
LIMITED_S_MIN = 0.1
#: Weight of the newest attempt in the mean that decides about prefetching.
_MEAN_WEIGHT = 1 / 16


def _tasks_submitted(state: State, fact: TasksSubmitted, out: list[Effect]) -> None:
    outcomes = state.outcomes
    for given in fact.tasks:
        number = given.number
        if not 0 < number <= NUMBER_MAX or outcomes.get(number) != UNKNOWN:
            continue  # submitted before: nothing changes
        if given.source:
            if given.source in state.sources:
                continue  # the message came again after a crash
            state.sources[given.source] = number
            if len(state.sources) > SOURCES_MAX:
                del state.sources[next(iter(state.sources))]
        task = Task(number, given.input, given.kind, given.timeout_s, source=given.source, asker=given.asker)
        task.route, task.priority, task.hops = given.kind, given.priority, given.hops
        task.attempts_max, task.backoff_s = given.attempts_max, given.backoff_s
        outcomes.set(number, OPEN)
        state.tasks[number] = task
        state.counters.submitted += 1
        if given.tags or given.after or given.delay_s or task.route not in state.routes:
            task.route, task.tags = route_of(given.kind, given.tags), tuple(given.tags)
            task.after = tuple(given.after)
            task.due_s = state.now_s + given.delay_s if given.delay_s else 0.0
            admit(state, task, out)
        else:
            enqueue(state, task)  # as `admit` would, which is most of what submitting costs


def _input_ended(state: State, fact: InputEnded, _out: list[Effect]) -> None:
    state.input_ended, state.input_total = True, fact.total


def _task_ended(state: State, fact: TaskEnded, out: list[Effect]) -> None:
    task = state.tasks.get(fact.number)
    if task is None or not is_current(task, fact):
        reject(state, fact, out)
        return
    agent = state.agents[fact.agent]
    release(state, agent, task.number)
    recycling.count_attempt(state, agent)
    if fact.tokens or fact.cost_usd:
        budget.book(state, agent, micro_usd(fact.cost_usd), fact.tokens, out)
    if fact.outcome == "died":  # a team says so of its agent
        lifecycle.free(state, task, fact.detail, out)
        return
    if fact.outcome == "cancelled" and not state.plan.upstream:
        _ended_unfinished(state, task, out, has_result=True)
        return
    if fact.session:
        task.session = fact.session
    if fact.outcome == "limited" and not state.plan.upstream:
        _limited(state, task, fact, out)
        return
    taken_s = state.now_s - task.assigned_s
    worked_s = state.now_s - max(task.assigned_s, agent.freed_s) if agent.slots == 1 else taken_s
    agent.freed_s = state.now_s
    mean_s = state.attempt_mean_s
    state.attempt_mean_s = worked_s if mean_s is None else mean_s + (worked_s - mean_s) * _MEAN_WEIGHT
    if state.plan.upstream:
        agent.done += fact.outcome == "done"
        agent.failed += fact.outcome not in ("done", "limited", "cancelled")
        state.latency.add(taken_s)
        entrusted.ended(state, task, fact.outcome, out)
    elif fact.outcome == "done":
        agent.done += 1
        state.latency.add(taken_s)
        task.move("done")
        finish_task(state, task, DONE, out, has_result=True)
    else:
        agent.failed += 1
        _attempt_failed(state, task, fact, taken_s, out)


def _attempt_failed(state: State, task: Task, fact: TaskEnded, taken_s: float, out: list[Effect]) -> None:
    plan = state.plan
    state.counters.attempts_failed += 1
    task.failures += 1
    how = f"signal {fact.signal}" if fact.signal is not None else f"status {fact.exit_status}"
    task.note(f"attempt {task.attempt} on {task.agent}: {fact.outcome}, {how}. {fact.detail}".rstrip(". "))
    if task.is_cancelling:
        cancelled(state, task, out, has_result=True)
    elif task.failures >= (plan.attempts_max if task.attempts_max is None else task.attempts_max):
        state.latency.add(taken_s)
        task.move("failed_finally")
        finish_task(state, task, FAILED, out, has_result=True)
    else:
        task.move("failed_again")
        base_s = plan.backoff_s if task.backoff_s is None else task.backoff_s
        task.due_s = state.now_s + backoff_s(task.number, task.failures, base_s, plan.backoff_max_s)
        if task.due_s > state.now_s:
            heappush(state.timers, (task.due_s, "task", task.number))
        else:
            task.move("due")
            enqueue(state, task)


def _limited(state: State, task: Task, fact: TaskEnded, out: list[Effect]) -> None:
    """A vendor's limit was hit: nobody's failure. The task is tried again when it is over."""
    state.counters.limited += 1
    task.note(
        f"attempt {task.attempt} on {task.agent}: limited for {fact.retry_in_s:.0f} s. {fact.detail}".rstrip(". ")
    )
    if task.is_cancelling:
        cancelled(state, task, out, has_result=True)
        return
    task.move("limited")
    task.due_s = state.now_s + max(LIMITED_S_MIN, fact.retry_in_s)
    heappush(state.timers, (task.due_s, "task", task.number))


def _task_refused(state: State, fact: TaskRefused, out: list[Effect]) -> None:
    agent = state.agents.get(fact.agent)
    task = state.tasks.get(fact.number)
    if agent is not None and fact.reason == "drain" and state.workers[agent.worker].incarnation == fact.incarnation:
        ending.agent_leaving(state, agent, st.DRAINING)
    if task is None or agent is None or not is_current(task, fact):
        state.counters.stale_refused += 1
        return
    release(state, agent, task.number)
    if state.plan.upstream:
        entrusted.handed_back(state, task, out)
        return
    _ended_unfinished(state, task, out, has_result=False)


def _ended_unfinished(state: State, task: Task, out: list[Effect], *, has_result: bool) -> None:
    """An attempt was not begun, or was ended by us: another agent may do the task, unless nobody is to do it."""
    if task.is_cancelling:
        cancelled(state, task, out, has_result=has_result)
        return
    state.counters.handed_back += 1
    task.move("handed_back")
    enqueue(state, task)


def _task_impossible(state: State, fact: TaskImpossible, out: list[Effect]) -> None:
    task = state.tasks.get(fact.number)
    if task is None or task.state != ASSIGNED or task.attempt != fact.attempt:
        return
    release(state, state.agents[task.agent], task.number)
    if state.plan.upstream:
        task.note(fact.reason)
        entrusted.ended(state, task, entrusted.IMPOSSIBLE, out)
        return
    give_up(state, task, fact.reason, out)


HANDLERS: Handlers = {
    TasksSubmitted: _tasks_submitted,
    InputEnded: _input_ended,
    TaskEnded: _task_ended,
    TaskRefused: _task_refused,
    TaskImpossible: _task_impossible,
}
