"""Wait for a condition with a deadline, instead of sleeping for luck."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

#: First pause between two looks; it doubles up to the longest one, so that quick conditions cost little and slow ones no CPU.
PAUSE_FIRST_S = 0.001
PAUSE_LONGEST_S = 0.05


def eventually(predicate: Callable[[], T], timeout_s: float = 5.0, what: str = "") -> T:
    """Look until `predicate` returns something true, and return that.

    The predicate is called at least once, and once more after the deadline, so that a machine that was busy elsewhere does not fail
    a condition that holds. What it raises passes through.

    Raises:
        AssertionError: It was still false `timeout_s` seconds later. The text names `what` and the last value.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = PAUSE_FIRST_S
    while True:
        is_last_look = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if is_last_look:
            raise AssertionError(_complaint(predicate, timeout_s, what, value))
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_LONGEST_S)


@overload
async def eventually_async(predicate: Callable[[], Awaitable[T]], timeout_s: float = ..., what: str = ...) -> T: ...
@overload
async def eventually_async(predicate: Callable[[], T], timeout_s: float = ..., what: str = ...) -> T: ...
async def eventually_async(predicate: Callable[[], T | Awaitable[T]], timeout_s: float = 5.0, what: str = "") -> T:
    """Do as `eventually` does, without blocking the event loop; the predicate may be a coroutine function.

    A predicate that itself never returns is not cut off: give what it waits on a deadline.

    Raises:
        AssertionError: It was still false `timeout_s` seconds later. The text names `what` and the last value.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = PAUSE_FIRST_S
    while True:
        is_last_look = time.monotonic() >= deadline
        answer = predicate()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if is_last_look:
            raise AssertionError(_complaint(predicate, timeout_s, what, value))
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_LONGEST_S)


def _complaint(predicate: Callable[..., object], timeout_s: float, what: str, value: object) -> str:
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    return f"not within {timeout_s:g} s: {name} (last value: {value!r})"
