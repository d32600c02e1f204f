"""Who held a task: what tells a result that comes too late (stale) from one that was never anybody's to give (forged)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from muster.coordinator.tasks import PAST_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.coordinator.tasks import Task

#: (number, attempt, agent) of the attempt that ended it, and the (attempt, agent) before that.
Ended: TypeAlias = tuple[int, int, str, tuple[tuple[int, str], ...]]

#: So many of the newest ended tasks are remembered, each in the place of its number.
PLACES = 4096


class Holders:
    """A ring of the newest ended tasks and their holders; one that has left the ring is no longer known."""

    __slots__ = ("_ring",)

    def __init__(self, ended: Iterable[Ended] = ()) -> None:
        self._ring: list[Ended | None] = [None] * PLACES
        for entry in ended:
            self._ring[entry[0] % PLACES] = entry

    def ended(self, task: Task) -> None:
        """Remember a task that is over."""
        self._ring[task.number % PLACES] = (task.number, task.attempt, task.agent, task.past)

    def stored(self) -> list[Ended]:
        """All of it, for `Holders(…)`."""
        return [entry for entry in self._ring if entry is not None]

    def had(self, number: int, attempt: int, agent: str, task: Task | None) -> bool:
        """Whether the agent may have been given this attempt. `task`: the task, if it is open.

        True also where nobody remembers: an agent of the fleet has the benefit of the doubt.
        """
        if task is not None:
            last, holder, past = task.attempt, task.agent, task.past
        else:
            entry = self._ring[number % PLACES]
            if entry is None or entry[0] != number:
                return True
            _, last, holder, past = entry
        if attempt == last:
            return agent == holder
        if attempt > last:
            return False
        if (attempt, agent) in past:
            return True
        return len(past) >= PAST_MAX and attempt < past[0][0]
