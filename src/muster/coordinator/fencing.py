"""The fence: only the newest attempt, by the agent and incarnation it was given to, may say anything about a task. Pure.

Whatever else claims to be a result is refused and counted, as one of two: *stale* comes from an agent that once held the task under that
attempt; that happens whenever an agent is slow to die, and the agent is told. *Forged* is a result for an attempt that its sender was
never given: a bug or a lie, kept as a dead letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator.events import Effect, Rejected, TaskEnded, TaskRefused
from muster.coordinator.tasks import ASSIGNED, UNKNOWN, Task
from muster.errors import ForgedResultError, StaleAttemptError

if TYPE_CHECKING:
    from muster.coordinator.state import State


def is_current(task: Task, fact: TaskEnded | TaskRefused) -> bool:
    """Whether a fact may be believed of this task."""
    return (
        task.state == ASSIGNED
        and task.attempt == fact.attempt
        and task.agent == fact.agent
        and task.incarnation == fact.incarnation
    )


def reject(state: State, fact: TaskEnded, out: list[Effect]) -> None:
    """Refuse a result that is not current."""
    number, attempt, agent = fact.number, fact.attempt, fact.agent
    task = state.tasks.get(number)
    if state.outcomes.get(number) == UNKNOWN and task is None and not state.tokens.get(number):
        why = f"task {number} was never submitted"
    elif agent not in state.agents or not state.holders.had(number, attempt, agent, task):
        why = f"attempt {attempt} of task {number} was never given to {agent}"
    else:
        state.counters.stale_refused += 1
        now = f"attempt {task.attempt} counts now" if task is not None else "the task is over"
        out.append(
            Rejected(
                agent, number, attempt, StaleAttemptError.code, f"attempt {attempt} of task {number} is over; {now}"
            )
        )
        return
    state.counters.forged_refused += 1
    out.append(Rejected(agent, number, attempt, ForgedResultError.code, why))
