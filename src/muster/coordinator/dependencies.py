"""`after`: tasks that wait until others are done, and die with them. Pure, like all of the machine.

A batch is put into an order in which every task stands behind those it names (Kahn's algorithm, by `graphlib`), so the log may cut it
anywhere. Only numbers that are known already or stand in the same batch may be named: a cycle can only lie within a batch.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from muster.coordinator.tasks import CANCELLED, CODE, DEAD, DONE, FAILED, OPEN, STATE_OF_CODE, Task
from muster.core import limits
from muster.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.coordinator.state import State
    from muster.core.protocol import TaskInput


_HOW = {FAILED: "failed", DEAD: "is dead", CANCELLED: "was cancelled"}


def in_order(tasks: list[TaskInput], is_known: Callable[[int], bool]) -> list[TaskInput]:
    """A batch with every task behind those of the batch that it comes after.

    Raises:
        DependencyError: A task names an unknown number, too many of them, or itself, also by way of others.
    """
    if not any(task.after for task in tasks):
        return tasks
    batch = {task.number: task for task in tasks}
    for task in tasks:
        if len(task.after) > limits.TASK_AFTER_MAX:
            raise DependencyError(
                f"task {task.number} comes after {len(task.after):,} others; {limits.TASK_AFTER_MAX:,} is the most",
                number=task.number,
            )
        for number in task.after:
            if number not in batch and not is_known(number):
                raise DependencyError(
                    f"task {task.number} comes after task {number}, which does not exist", number=task.number
                )
    graph = {task.number: [number for number in task.after if number in batch] for task in tasks}
    try:
        return [batch[number] for number in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        way = " after ".join(str(number) for number in reversed(error.args[1]))
        raise DependencyError(f"tasks wait for each other in a circle: {way}", number=error.args[1][0]) from None


def hopeless(state: State, task: Task) -> str:
    """Why what a task comes after can never be done any more; "" if it can."""
    for number in task.after:
        code = state.outcomes.get(number)
        if code not in (OPEN, CODE[DONE]):
            return evidence(number, STATE_OF_CODE.get(code, "unknown"))
    return ""


def evidence(number: int, how: str) -> str:
    """What a task dies of when one that it comes after ends so."""
    return f"it comes after task {number}, which {_HOW.get(how, 'does not exist')}"


def await_others(state: State, task: Task) -> bool:
    """Let a task wait for what it comes after and is still open. Whether there is anything."""
    waits = 0
    for number in dict.fromkeys(task.after):
        if state.outcomes.get(number) == OPEN:
            state.dependants.setdefault(number, {})[task.number] = None
            waits += 1
    task.waits = waits
    return waits > 0


def await_no_more(state: State, task: Task) -> None:
    """The task waits for nothing any more, because it is over."""
    if task.waits:
        task.waits = 0
        for number in task.after:
            waiting = state.dependants.get(number)
            if waiting is not None:
                waiting.pop(task.number, None)
                if not waiting:
                    del state.dependants[number]


def dependants_of(tasks: dict[int, Task], is_open: Callable[[int], bool]) -> dict[int, dict[int, None]]:
    """Who waits for whom, found anew from the tasks themselves."""
    found: dict[int, dict[int, None]] = {}
    for task in tasks.values():
        if task.waits:
            for number in task.after:
                if is_open(number):
                    found.setdefault(number, {})[task.number] = None
    return found
