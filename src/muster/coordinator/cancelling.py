"""The operator's will about single tasks: not any more, once again, forgotten. Pure, like all of the machine.

What waits is cancelled at once. What an agent holds is ended there, with its whole process tree, and is cancelled when that is proven:
by the agent's word, or by the death of its worker.
"""

from __future__ import annotations

from heapq import heapify
from typing import TYPE_CHECKING

from muster.coordinator import state as st
from muster.coordinator.events import Effect, Handlers, Post, TasksCancelled, TasksForgotten, TasksRetried
from muster.coordinator.finishing import admit, cancelled, count
from muster.coordinator.tasks import ASSIGNED, NUMBER_MASK, OPEN, QUEUED
from muster.core.protocol import Cancel

if TYPE_CHECKING:
    from muster.coordinator.state import State
    from muster.coordinator.tasks import Task


def cancellation(task: Task) -> Post:
    """The message that ends an attempt. It follows the assignment in its lane: overtaking, it would meet nothing to end."""
    body = Cancel(number=task.number, attempt=task.attempt)
    return Post(task.agent, body, f"cancel-{task.number}-{task.attempt}-{task.incarnation}")


def _tasks_cancelled(state: State, fact: TasksCancelled, out: list[Effect]) -> None:
    waiting = [
        task for number in fact.numbers if (task := state.tasks.get(number)) is not None and task.state != ASSIGNED
    ]
    _leave_lines(state, [task for task in waiting if task.state == QUEUED])
    note = f"cancelled by the operator{f': {fact.reason}' if fact.reason else ''}"
    for task in waiting:
        if task.number in state.tasks:  # else it came after one of the others, and died with that
            task.note(note)
            cancelled(state, task, out)
    for number in fact.numbers:
        held = state.tasks.get(number)
        if held is not None and held.state == ASSIGNED and not held.is_cancelling:
            held.is_cancelling = True
            held.note(note)
            out.append(cancellation(held))


def _leave_lines(state: State, tasks: list[Task]) -> None:
    gone = {task.number for task in tasks}
    for route in dict.fromkeys(task.route for task in tasks):
        queue = state.queues[route]
        queue[:] = [place for place in queue if place & NUMBER_MASK not in gone]
        heapify(queue)
    state.queued -= len(tasks)


def _tasks_retried(state: State, fact: TasksRetried, out: list[Effect]) -> None:
    if state.phase != st.RUNNING:
        return  # it began to end after the ask was judged, in the same turn: nobody would do them, and a run is complete
    again = [task for number in fact.numbers if (task := state.kept.pop(number)) is not None]
    for task in again:  # all of them are open before any of them looks for what it comes after
        count(state, task.state, -1)
        state.counters.retried += 1
        state.retries[task.number] = state.retries.get(task.number, 0) + 1
        state.outcomes.set(task.number, OPEN)
        state.tasks[task.number] = task
        task.move("retried")
        task.failures = task.deaths = 0
        task.ended_s = 0.0
        if task.attempt:  # else it still waits for the time that was wished for it, which counts from its submission
            task.due_s = 0.0
        task.note("retried by the operator")
    for task in again:
        admit(state, task, out)


def _tasks_forgotten(state: State, fact: TasksForgotten, _out: list[Effect]) -> None:
    for number in fact.numbers:
        state.kept.pop(number)


HANDLERS: Handlers = {
    TasksCancelled: _tasks_cancelled,
    TasksRetried: _tasks_retried,
    TasksForgotten: _tasks_forgotten,
}
