"""Tasks that ended without success, kept with input and evidence so that they can be listed, shown and retried."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from muster.core import limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from muster.coordinator.tasks import Task


class Kept:
    """The newest `limits.TASKS_KEPT_MAX` of them, and at most `TASKS_KEPT_BYTES_MAX` of input; the oldest make room."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._tasks: OrderedDict[int, Task] = OrderedDict()
        self._bytes = 0
        for task in tasks:
            self.add(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __contains__(self, number: int) -> bool:
        return number in self._tasks

    def get(self, number: int) -> Task | None:
        return self._tasks.get(number)

    def add(self, task: Task) -> None:
        """Keep a task; it is the newest now."""
        self._tasks[task.number] = task
        self._bytes += _weight(task)
        while len(self._tasks) > limits.TASKS_KEPT_MAX or (
            self._bytes > limits.TASKS_KEPT_BYTES_MAX and len(self._tasks) > 1
        ):
            self._bytes -= _weight(self._tasks.popitem(last=False)[1])

    def pop(self, number: int) -> Task | None:
        """Keep it no longer; None if it was not kept."""
        task = self._tasks.pop(number, None)
        if task is not None:
            self._bytes -= _weight(task)
        return task


def _weight(task: Task) -> int:
    given = task.input
    return len(given) if isinstance(given, str | bytes) else len(msgspec.msgpack.encode(given))
