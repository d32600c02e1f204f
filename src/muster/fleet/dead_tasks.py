"""Tasks that were given up, as `muster dead` shows them beside messages: listed, shown, redriven and dropped by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from muster.core.requests import RetryTasks
from muster.errors import UsageError
from muster.fleet import tasking

if TYPE_CHECKING:
    from collections.abc import Collection

    from muster.core.requests import TaskFacts
    from muster.fleet.letters import Filters
    from muster.fleet.places import Fleet


class DeadTask(NamedTuple):
    """A task that failed or died, and is kept."""

    task: TaskFacts

    @property
    def facts(self) -> dict[str, Any]:
        """What `list` says of it, under the names that messages have; `agent` had its last attempt."""
        task = self.task
        return {
            "id": str(task.number),
            "agent": task.agent or None,
            "from": None,
            "type": f"task@{task.kind}" if task.kind else "task",
            "age_s": task.ended_s,
            "attempts": task.failures + task.deaths,
            "reason": task.evidence[-1] if task.evidence else "given up",
            "body_bytes": None,
            "task": task.number,
            "state": task.state,
        }

    def fits(self, filters: Filters) -> bool:
        facts = self.facts
        return (
            filters.sender is None
            and filters.agent in (None, facts["agent"])
            and filters.type in (None, facts["type"], "task")
            and (filters.reason_contains is None or filters.reason_contains.casefold() in facts["reason"].casefold())
            and (filters.older_than_s is None or (facts["age_s"] or 0.0) >= filters.older_than_s)
        )


def split(ids: Collection[str]) -> tuple[list[int], list[str]]:
    """Ids of a command line as (numbers of tasks, ids of messages). An id of a message has letters, or begins with a zero."""
    numbers = [word for word in ids if word.isascii() and word.isdigit() and len(word) <= 8 and word[0] != "0"]
    return [int(word) for word in numbers], [word for word in ids if word not in numbers]


def find(fleet: Fleet, filters: Filters) -> list[DeadTask]:
    """The tasks that were given up and fit, by number. Raises what `tasking.listed` raises."""
    if filters.sender is not None:
        return []
    found = (DeadTask(task) for task in tasking.listed(fleet, states=tasking.GIVEN_UP))
    return [one for one in found if one.fits(filters)]


def show(fleet: Fleet, number: int) -> dict[str, Any]:
    """Everything about a task that is open or kept, with its input as `body`.

    Raises:
        UsageError: It is neither.
    """
    for task in tasking.listed(fleet, numbers=[number], with_input=True):
        told = tasking.plain(task)
        body = told.pop("input")
        return {**told, "body": body}
    raise UsageError(
        f"task {number} is neither open nor kept; `muster dead list` shows those that are kept", id=str(number)
    )


def redrive(fleet: Fleet, numbers: list[int]) -> list[dict[str, Any]]:
    """Queue tasks again, all or none; what became of each. Raises what `tasking.retry` raises."""
    if numbers:
        tasking.retry(fleet, RetryTasks(numbers=numbers))
    return [_told(number, "redriven") for number in numbers]


def drop(fleet: Fleet, numbers: list[int]) -> list[dict[str, Any]]:
    """Keep tasks no longer, all or none; what became of each. Raises what `tasking.forget` raises."""
    if numbers:
        tasking.forget(fleet, numbers)
    return [_told(number, "dropped") for number in numbers]


def _told(number: int, outcome: str) -> dict[str, Any]:
    return {"id": str(number), "agent": None, "from": None, "task": number, "outcome": outcome}
