"""What the operator orders about tasks: cancel, retry, forget, and what is told of them. Asks are judged as `asks` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from muster.coordinator import state as st
from muster.coordinator.asks import Answer, Ask, Rule, Rules, refusal
from muster.coordinator.dependencies import evidence
from muster.coordinator.events import TasksCancelled, TasksForgotten, TasksRetried
from muster.coordinator.tasks import ASSIGNED, CODE, DELAYED, DONE, OPEN, STATE_OF_CODE, TRANSITIONS, UNKNOWN, Task
from muster.core import limits
from muster.core.requests import CancelTasks, Done, ForgetTasks, ListTasks, RetryTasks, TaskFacts, TaskListing
from muster.errors import FleetNotRunningError, TaskStateError, UnknownTaskError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.coordinator.state import State
    from muster.core.requests import TaskChoice

#: Numbers that an answer lists, and tasks that one listing holds; both must fit into a message.
LISTED_MAX = 5000
LISTING_MAX = 1000
#: Bytes of a listing, of which one task may take more.
_LISTING_BYTES_MAX = limits.BODY_BYTES_MAX // 2
_ENDING = "the fleet is coming to its end; nothing was changed"
_STATES = frozenset({state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()))


def _cancel(state: State, body: CancelTasks, ask: Ask) -> Answer:
    chosen = _chosen(body, state.tasks.values())
    numbers = [task.number for task in chosen]
    for number in body.numbers:
        if number not in state.tasks:
            _known(state, number)  # what is over already is no mistake of whoever cancels it

    def reply(after: State) -> msgspec.Struct:
        running = [number for number in numbers if number in after.tasks]
        return Done(ok=True, facts={"cancelled": len(numbers) - len(running), "running": running[:LISTED_MAX]})

    return Answer([TasksCancelled(ask.now_s, numbers, body.reason)] if numbers else [], reply)


def _retry(state: State, body: RetryTasks, ask: Ask) -> Answer:
    if state.phase != st.RUNNING:
        raise FleetNotRunningError(_ENDING)
    chosen = _kept(state, body)
    numbers = [task.number for task in chosen]
    again = set(numbers)
    for task in chosen:
        for number in task.after:
            code = state.outcomes.get(number)
            if code not in (OPEN, CODE[DONE]) and number not in again:
                why = evidence(number, STATE_OF_CODE.get(code, "unknown"))
                raise TaskStateError(f"task {task.number} cannot be retried: {why}; retry that one, too", number=number)
    before = {number: state.retries.get(number, 0) for number in numbers}

    def reply(after: State) -> msgspec.Struct:
        retried = [number for number in numbers if after.retries.get(number, 0) > before[number]]
        if numbers and not retried and after.phase != st.RUNNING:  # the end began in this very turn
            return refusal(FleetNotRunningError(_ENDING))
        return Done(ok=True, facts={"retried": len(retried), "numbers": retried[:LISTED_MAX]})

    return Answer([TasksRetried(ask.now_s, numbers)] if numbers else [], reply)


def _forget(state: State, body: ForgetTasks, ask: Ask) -> Answer:
    numbers = [task.number for task in _kept(state, body)]
    done = Done(ok=True, facts={"forgotten": len(numbers), "numbers": numbers[:LISTED_MAX]})
    return Answer([TasksForgotten(ask.now_s, numbers)] if numbers else [], lambda _after: done)


def _kept(state: State, body: TaskChoice) -> list[Task]:
    """The kept tasks that are meant, in the order of their numbers, so that whatever comes after another one follows it."""
    for number in body.numbers:
        if number not in state.kept:
            code = _known(state, number)
            what = "is not over" if code == OPEN else "is done" if code == CODE[DONE] else "is kept no longer"
            raise TaskStateError(f"task {number} {what}; nothing was changed", number=number)
    return sorted(_chosen(body, state.kept), key=lambda task: task.number)


def _known(state: State, number: int) -> int:
    code = state.outcomes.get(number)
    if code == UNKNOWN:
        raise UnknownTaskError(f"there is no task {number} in this fleet; nothing was changed", number=number)
    return code


def _chosen(body: TaskChoice, tasks: Iterable[Task]) -> list[Task]:
    """Those of `tasks` that are meant. Raises UsageError for a state that does not exist, and if nothing is named."""
    unknown = [state for state in body.states if state not in _STATES]
    if unknown:
        raise UsageError(f"no task is ever {unknown[0]!r:.40}; states are {', '.join(sorted(_STATES))}")
    if not body.numbers and not body.states:
        raise UsageError("no task is named: by number, or by state")
    numbers, states = set(body.numbers), set(body.states)
    return [task for task in tasks if task.number in numbers or (task.state in states and body.kind in ("", task.kind))]


def _list(state: State, body: ListTasks, ask: Ask) -> Answer:
    for number in body.numbers:
        if number not in state.tasks and number not in state.kept:
            _known(state, number)

    return Answer((), lambda after: listing(after, body, ask.now_s))


def listing(state: State, body: ListTasks, now_s: float) -> TaskListing:
    """The tasks that are meant (if nothing is named: all), by number, as many as are wanted and fit into a message."""
    if not body.numbers and not body.states:
        body = msgspec.structs.replace(body, states=sorted(_STATES))
    meant = [*_chosen(body, state.kept), *_chosen(body, state.tasks.values())]
    meant.sort(key=lambda task: task.number)
    told: list[TaskFacts] = []
    room = _LISTING_BYTES_MAX
    for task in meant:
        if task.number <= body.above:
            continue
        if len(told) >= min(body.limit, LISTING_MAX):
            break
        facts = facts_of(task, now_s)
        if body.with_input:
            facts = msgspec.structs.replace(facts, input=task.input)
        room -= len(msgspec.msgpack.encode(facts))
        if room < 0 and told:
            break
        told.append(facts)
    return TaskListing(tasks=told, total=len(meant))


def facts_of(task: Task, now_s: float) -> TaskFacts:
    """What is told of a task, without its input."""
    return TaskFacts(
        number=task.number,
        state=task.state,
        kind=task.kind,
        tags=list(task.tags),
        priority=task.priority,
        attempt=task.attempt,
        failures=task.failures,
        deaths=task.deaths,
        agent=task.agent,
        after=list(task.after),
        due_in_s=round(max(0.0, task.due_s - now_s), 3) if task.state == DELAYED else None,
        running_s=round(now_s - task.assigned_s, 3) if task.state == ASSIGNED else None,
        ended_s=round(max(0.0, now_s - task.ended_s), 3) if task.ended_s else None,
        is_cancelling=task.is_cancelling,
        evidence=task.evidence,
    )


RULES: Rules = {
    CancelTasks: Rule(_cancel),
    RetryTasks: Rule(_retry),
    ForgetTasks: Rule(_forget),
    ListTasks: Rule(_list, from_anybody=True),
}
