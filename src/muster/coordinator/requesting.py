"""Tasks on their way in: numbered, checked, put into an order in which each stands behind what it comes after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator.asks import Answer, Ask, Rule, Rules
from muster.coordinator.dependencies import in_order
from muster.coordinator.events import TasksSubmitted
from muster.coordinator.tasks import NUMBER_MAX, UNKNOWN
from muster.core import wishes
from muster.core.protocol import TaskInput
from muster.core.requests import Done, TaskRequest
from muster.errors import UsageError

if TYPE_CHECKING:
    import msgspec

    from muster.coordinator.state import State


class Numbering:
    """Numbers that are taken, also by what this turn has taken in and the machine has not seen yet."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._given = 0
        self._batches: list[list[TaskInput]] = []

    def next(self) -> int:
        """A number that no task has."""
        self._given = max(self._given, self._state.outcomes.highest) + 1
        return self._given

    def checked(self, tasks: list[TaskInput]) -> list[TaskInput]:
        """A batch that may be accepted, in the order in which the machine is to see it.

        Raises:
            UsageError, ConfigError, DependencyError: One of them cannot be; none of them is accepted.
        """
        for task in tasks:
            if not 0 < task.number <= NUMBER_MAX:
                raise UsageError(f"task number {task.number} is not between 1 and {NUMBER_MAX}")
            wishes.check(task)
        ordered = in_order(tasks, self._is_known)
        self._batches.append(ordered)
        return ordered

    def handed_over(self) -> None:
        """The machine sees all of it now."""
        self._batches = []

    def _is_known(self, number: int) -> bool:
        return self._state.outcomes.get(number) != UNKNOWN or any(
            task.number == number for batch in self._batches for task in batch
        )


def refuse_in_runs(state: State) -> None:
    """Raises UsageError if the tasks of this fleet are the inputs of a run, whose numbers belong to whoever started it."""
    if state.plan.run:
        raise UsageError("this fleet is a run, whose tasks are its inputs; it takes no others")


def requested(state: State, body: TaskRequest, ask: Ask, numbering: Numbering) -> Answer:
    """Judge a request for one task."""
    refuse_in_runs(state)
    source = f"{ask.sender}:{ask.id}"
    task = TaskInput(
        numbering.next(),
        body.input,
        body.kind,
        body.timeout_s,
        source,
        ask.sender if body.reply == "end" and ask.wants_reply else "",
        body.priority,
        body.delay_s,
        body.after,
        body.tags,
        None if body.retries is None else body.retries + 1,
        body.backoff_s,
    )

    def reply(after: State) -> msgspec.Struct | None:
        return Done(ok=True, facts={"number": after.sources[source]}) if body.reply == "number" else None

    return Answer([TasksSubmitted(ask.now_s, numbering.checked([task]))], reply)


def rules(numbering: Numbering) -> Rules:
    """The rules for requests, whose numbers come from `numbering`."""
    return {TaskRequest: Rule(lambda state, body, ask: requested(state, body, ask, numbering), from_anybody=True)}
