"""What a person does with tasks from a command line: list, cancel, retry, forget them; pause and resume a fleet.

A running fleet's coordinator is asked. Of a fleet that is down its log is read, and nothing can be changed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core.requests import CancelTasks, ForgetTasks, ListTasks, RetryTasks, TaskFacts, TaskListing
from muster.errors import UsageError
from muster.fleet import asking

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from muster.fleet.places import Fleet

#: Tasks in one listing, numbers in one range, and how long an answer may take.
PAGE = 500
RANGE_MAX = 100_000
ANSWER_S = 10.0
#: Pause between two looks at tasks that are being ended.
LOOK_S = 0.2
#: States of tasks that were given up.
GIVEN_UP = ("failed", "dead")


def parse_numbers(words: Iterable[str]) -> list[int]:
    """Task numbers from words such as "17" and "5-9", in order, each once. Raises UsageError."""
    numbers: dict[int, None] = {}
    for word in words:
        first, dash, last = word.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise UsageError(f"{word!r:.60} is not the number of a task, such as 17, nor a range of them, such as 5-9")
        span = range(int(first), int(last or first) + 1)
        if not 0 < len(span) <= RANGE_MAX:
            raise UsageError(f"{word!r:.60} is not a range of 1 to {RANGE_MAX:,} tasks")
        numbers.update(dict.fromkeys(span))
    return list(numbers)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < len(text) <= 8 and text[0] != "0"


def listed(
    fleet: Fleet,
    *,
    states: Collection[str] = (),
    numbers: Collection[int] = (),
    kind: str = "",
    with_input: bool = False,
) -> Iterator[TaskFacts]:
    """Open and kept tasks by number; all of them if neither states nor numbers are named.

    Raises:
        UnknownTaskError: A number that no task has.
    """
    tell = _asked(fleet) if fleet.spawner_pid is not None else read(fleet)
    above = 0
    while True:
        body = ListTasks(
            numbers=list(numbers), states=list(states), kind=kind, above=above, limit=PAGE, with_input=with_input
        )
        page = tell(body)
        yield from page.tasks
        if not page.tasks or page.tasks[-1].number == above:
            return
        above = page.tasks[-1].number


def _asked(fleet: Fleet) -> Callable[[ListTasks], TaskListing]:
    return lambda body: asking.ask(fleet, body, TaskListing, ANSWER_S)


def read(fleet: Fleet) -> Callable[[ListTasks], TaskListing]:
    """Tells what a coordinator knew that is not there."""
    from muster.coordinator.log import read_state
    from muster.coordinator.ordering import listing
    from muster.coordinator.state import State

    state = read_state(fleet.store / "coordinator") or State()
    return lambda body: listing(state, body, time.time())


def cancel(fleet: Fleet, order: CancelTasks, *, wait_s: float) -> dict[str, Any]:
    """Cancel tasks, and wait until nothing of those that ran is left.

    Returns how many are `cancelled`, how many were `over` before they could be, and which are still `running` when `wait_s` is over: they
    go on ending.

    Raises:
        UnknownTaskError, UsageError, FleetNotRunningError, AskTimeoutError: As `asking.order` says; nothing was changed.
    """
    facts = asking.order(fleet, order)
    ordered: list[int] = facts["running"]
    running, cancelled = ordered, 0
    deadline = time.monotonic() + wait_s
    while running and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        states = {task.number: task.state for task in listed(fleet, numbers=ordered)}
        running = [number for number in ordered if states.get(number) == "assigned"]
        cancelled = sum(state == "cancelled" for state in states.values())
    over = len(ordered) - cancelled - len(running)
    return {"cancelled": facts["cancelled"] + cancelled, "over": over, "running": running}


def retry(fleet: Fleet, order: RetryTasks) -> dict[str, Any]:
    """Have tasks that ended without success tried again; how many, and their `numbers`. Raises as `asking.order`."""
    return asking.order(fleet, order)


def forget(fleet: Fleet, numbers: list[int]) -> dict[str, Any]:
    """Have tasks that ended without success kept no longer. Raises as `asking.order`."""
    return asking.order(fleet, ForgetTasks(numbers=numbers))


def plain(task: TaskFacts) -> dict[str, Any]:
    """A task as a JSON-ready object."""
    told: dict[str, Any] = msgspec.to_builtins(task, builtin_types=(bytes,))
    return told
