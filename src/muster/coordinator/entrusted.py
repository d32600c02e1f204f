"""A team's side of a task: it comes from the root under a number and an attempt, and its end goes back there. Pure, like the machine.

The root alone numbers attempts, so (number, attempt) is one token all the way down: what never began may be given to another agent of the
team under the same token, and whatever did begin goes back when it ends, however it ends. Each token goes back once, as a `Record`:

    with the agent's result     done, failed, timeout, killed, cancelled
    without one                 died (its agent's worker is proven dead), cancelled (before it began), refused (handed back unstarted),
                                impossible (no agent of the team can be given it)

Records since the last snapshot are sent again by a new coordinator of the team; message ids make that harmless.
"""

from __future__ import annotations

from muster.coordinator import state as st
from muster.coordinator.dispatch import enqueue
from muster.coordinator.events import Effect, Handlers, Post, Record, TaskRecalled, TasksEntrusted
from muster.coordinator.state import State
from muster.coordinator.tasks import ASSIGNED, QUEUED, Task
from muster.core.protocol import Cancel

REFUSED, DIED, CANCELLED, IMPOSSIBLE = "refused", "died", "cancelled", "impossible"


def token_of(task: Task) -> int:
    """The attempt that the root gave: assigning counts up to it, so a task that waits is one below."""
    return task.attempt + (task.state != ASSIGNED)


def holding(state: State) -> list[tuple[int, int]]:
    """The (number, attempt) of all that the team has in hand."""
    return [(task.number, token_of(task)) for task in state.tasks.values()]


def capacity(state: State) -> int:
    """Slots of the agents that can be given something."""
    if state.phase != st.RUNNING:
        return 0
    return sum(agent.slots for agent in state.agents.values() if agent.state == st.READY)


def _entrusted(state: State, fact: TasksEntrusted, out: list[Effect]) -> None:
    for given in fact.tasks:
        number, attempt = given.number, given.attempt
        if state.tokens.get(number) >= attempt:
            continue  # gone back already: its end is on the way to the root, or there
        if number in state.tasks:
            if token_of(state.tasks[number]) != attempt:
                _give_back(state, Record(number, attempt, "", REFUSED), out)
            continue
        if state.phase != st.RUNNING:
            _give_back(state, Record(number, attempt, "", REFUSED), out)
            continue
        state.tasks[number] = task = Task(
            number, given.input, "", given.timeout_s, attempt=attempt - 1, session=given.session, hops=given.hops
        )
        state.counters.submitted += 1
        enqueue(state, task)
    if state.kinds_out:
        hand_back_waiting(state, out)


def _recalled(state: State, fact: TaskRecalled, out: list[Effect]) -> None:
    task = state.tasks.get(fact.number)
    if task is None:
        if state.tokens.get(fact.number) < fact.attempt:  # a control message: it has overtaken what it calls back
            _give_back(state, Record(fact.number, fact.attempt, "", CANCELLED), out)
    elif token_of(task) != fact.attempt:
        return
    elif task.state == ASSIGNED:
        out.append(Post(task.agent, Cancel(number=task.number, attempt=task.attempt), is_control=True))
    else:
        _leave(state, task, CANCELLED, out)
        _queue_anew(state)


def ended(state: State, task: Task, outcome: str, out: list[Effect]) -> None:
    """An agent's attempt ended, and its agent has been released."""
    counters = state.counters
    if outcome == "done":
        counters.done += 1
    elif outcome == CANCELLED:
        counters.handed_back += 1
    elif outcome == "limited":
        counters.limited += 1
    else:
        counters.failed += 1
    _leave(state, task, outcome, out)


def handed_back(state: State, task: Task, out: list[Effect]) -> None:
    """An agent did not begin: another one of the team may, under the same token; a team that comes to its end hands it on to the root."""
    state.counters.handed_back += 1
    if state.phase == st.RUNNING and not state.kinds_out:
        task.move("handed_back")
        task.attempt -= 1
        enqueue(state, task)
    else:
        _leave(state, task, REFUSED, out)


def freed(state: State, task: Task, blame: str | None, out: list[Effect], *, has_begun: bool) -> None:
    """The worker of its agent is proven dead. `blame`: the evidence, if the attempt may have begun and nothing else explains the death."""
    if not has_begun:
        handed_back(state, task, out)
        return
    if blame is None:
        state.counters.handed_back += 1
        _leave(state, task, REFUSED, out)
        return
    task.note(blame)
    state.counters.reassigned += 1
    _leave(state, task, DIED, out)


def hand_back_waiting(state: State, out: list[Effect]) -> None:
    """The team comes to its end, or has nobody left: what no agent was given goes back to the root."""
    waiting = [task for task in state.tasks.values() if task.state == QUEUED]
    for task in waiting:
        state.counters.handed_back += 1
        _leave(state, task, REFUSED, out)
    if waiting:
        _queue_anew(state)


def _leave(state: State, task: Task, how: str, out: list[Effect]) -> None:
    attempt = token_of(task)
    del state.tasks[task.number]
    _give_back(state, Record(task.number, attempt, task.agent, how, evidence=task.evidence), out)


def _give_back(state: State, record: Record, out: list[Effect]) -> None:
    state.tokens.set(record.number, record.attempt)
    out.append(record)


def _queue_anew(state: State) -> None:
    for queue in state.queues.values():
        queue.clear()
    state.queued = 0
    for task in state.tasks.values():
        if task.state == QUEUED:
            enqueue(state, task)


HANDLERS: Handlers = {TasksEntrusted: _entrusted, TaskRecalled: _recalled}
