"""The end of a task, and the beginning: admitted to its line, recorded when it is over, with all that waited for it. Pure."""

from __future__ import annotations

from heapq import heappush

from muster.coordinator import state as st
from muster.coordinator.dependencies import await_no_more, await_others, evidence, hopeless
from muster.coordinator.dispatch import enqueue
from muster.coordinator.ending import NOW_GRACE_S, begin_drain
from muster.coordinator.events import Effect, Record
from muster.coordinator.routing import open_route
from muster.coordinator.state import Ending, State
from muster.coordinator.tasks import CANCELLED, CODE, DEAD, DELAYED, DONE, FAILED, Task


def admit(state: State, task: Task, out: list[Effect]) -> None:
    """A task has just become `queued`: put it where it has to wait. One that can never be done is dead at once, with evidence."""
    why = "" if task.route in state.routes else open_route(state, task.route)
    if task.after:
        why = why or hopeless(state, task)
    if why:
        give_up(state, task, why, out)
    elif task.after and await_others(state, task):
        task.move("must_wait")
    else:
        line_up(state, task)


def line_up(state: State, task: Task) -> None:
    """A `queued` task waits for nothing but its time and an agent."""
    if task.due_s > state.now_s:
        task.move("not_yet_due")
        heappush(state.timers, (task.due_s, "task", task.number))
    else:
        enqueue(state, task)


def due(state: State, number: int, _out: list[Effect]) -> None:
    """A delay is over, if it still stands."""
    task = state.tasks.get(number)
    if task is not None and task.state == DELAYED and task.due_s <= state.now_s:
        task.move("due")
        enqueue(state, task)


def give_up(state: State, task: Task, why: str, out: list[Effect]) -> None:
    """Nobody can ever do it."""
    task.note(why)
    task.move("impossible")
    finish_task(state, task, DEAD, out)


def finish_task(state: State, task: Task, how: str, out: list[Effect], *, has_result: bool = False) -> None:
    """Record a task that is over, release or give up what comes after it, and halt the run if that was one failure too many.

    `has_result`: its agent's result is the record; else there is none but the evidence.
    """
    if how == DONE:
        del state.tasks[task.number]
        state.outcomes.set(task.number, CODE[DONE])
        state.counters.done += 1
        _announce(state, task, how, out, has_result=has_result)
    else:
        _keep(state, task, how, out, has_result=has_result)
    if state.dependants:
        _tell_dependants(state, task, how, out)
    plan, counters = state.plan, state.counters
    if plan.halt != "never" and state.phase == st.RUNNING and counters.failed + counters.dead >= plan.halt_after:
        now = plan.halt == "now"
        begin_drain(state, Ending("halted", now=now, deadline_s=state.now_s + NOW_GRACE_S if now else None), out)


def _keep(state: State, task: Task, how: str, out: list[Effect], *, has_result: bool) -> None:
    del state.tasks[task.number]
    state.outcomes.set(task.number, CODE[how])
    count(state, how, 1)
    await_no_more(state, task)
    task.ended_s = state.now_s
    state.kept.add(task)
    _announce(state, task, how, out, has_result=has_result)


def _announce(state: State, task: Task, how: str, out: list[Effect], *, has_result: bool) -> None:
    state.holders.ended(task)
    evidence = task.evidence
    out.append(
        Record(task.number, task.attempt, task.agent, how, task.input, evidence, task.source, task.asker, has_result)
    )


def _tell_dependants(state: State, task: Task, how: str, out: list[Effect]) -> None:
    ended = [(task.number, how)]
    for number, state_of_it in ended:  # grows while it is walked: whatever waits for the dead is dead, too
        for waiting in list(state.dependants.pop(number, ())):
            dependant = state.tasks[waiting]
            if state_of_it == DONE:
                dependant.waits -= 1
                if not dependant.waits:
                    dependant.move("fulfilled")
                    line_up(state, dependant)
                continue
            dependant.note(evidence(number, state_of_it))
            dependant.move("impossible")
            _keep(state, dependant, DEAD, out, has_result=False)
            ended.append((waiting, DEAD))


def cancelled(state: State, task: Task, out: list[Effect], *, has_result: bool = False) -> None:
    """Nothing of a task that the operator does not want any more is left."""
    task.is_cancelling = False
    task.move("cancelled")
    finish_task(state, task, CANCELLED, out, has_result=has_result)


def count(state: State, how: str, by: int) -> None:
    """So many more tasks have ended without success in this way; minus one: it is open again."""
    counters = state.counters
    if how == FAILED:
        counters.failed += by
    elif how == DEAD:
        counters.dead += by
    elif how == CANCELLED:
        counters.cancelled += by
