"""Waiting without polling: futures that the bell wakes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from muster.core import limits
from muster.core.settings import EVICT_OLDEST, WAIT
from muster.errors import AskTimeoutError, BusError, InboxFullError, OutboxFullError

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.bus.bus import Bus
    from muster.bus.delivery import Receipt

_FINAL = frozenset({"acked", "dead", "expired", "evicted", "damaged", "forged", "finalised"})
#: How long a send waits by itself, by what its recipient wants (`overflow`).
_WAIT_S_OF = {WAIT: limits.OVERFLOW_WAIT_S, EVICT_OLDEST: limits.EVICTION_WAIT_S}
#: A bus that does not consume has no bell: while it waits it looks again, first after this time and ever more rarely.
LOOK_AGAIN_S, LOOK_AGAIN_MAX_S = 0.01, 0.25


class Waiters:
    """Those who wait for one kind of news; all are woken at once and look for themselves."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: list[asyncio.Future[bool | None]] = []

    def __bool__(self) -> bool:
        return bool(self._futures)

    def wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(True)
        self._futures.clear()

    async def wait(self, timeout_s: float | None) -> bool:
        """Until the next `wake`, or until `timeout_s` has passed; whether it was woken."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool | None] = loop.create_future()
        self._futures.append(future)
        handle = None if timeout_s is None else loop.call_later(timeout_s, set_done, future)
        try:
            return await future is True
        finally:
            if handle is not None:
                handle.cancel()
            if future in self._futures:
                self._futures.remove(future)


def set_done(future: asyncio.Future[Any]) -> None:
    """A timer's way to end a wait that nothing else has ended."""
    if not future.done():
        future.set_result(None)


class Pace:
    """How long one who waits sleeps before it looks by itself: whoever it waits for rings, so ever longer while nothing is to be seen."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._first_s, self._most_s = (
            (limits.RERING_S, limits.RERING_MAX_S) if bus._fileno >= 0 else (LOOK_AGAIN_S, LOOK_AGAIN_MAX_S)
        )
        self._pause_s = self._first_s

    async def sleep(self, remaining_s: float | None) -> None:
        """Until a bell tells of acks; without one for a pause, at most for `remaining_s`."""
        pause_s = self._pause_s if remaining_s is None else min(remaining_s, self._pause_s)
        is_rung = await self._bus._next_ack(pause_s)
        self._pause_s = self._first_s if is_rung else min(self._pause_s * 2, self._most_s)


async def wait_for_room(
    bus: Bus, to: str, wait_s: float | None, refusal: InboxFullError | OutboxFullError, post: Callable[[], Receipt]
) -> Receipt:
    """Post again whenever the recipient has finalised something, until it succeeds or `wait_s` has passed; then the last refusal.

    A sender's own bounds are used up by what recipients have not acked yet: that is waited for like room in an inbox, but never evicted.
    """
    policy = str(refusal.facts.get("overflow"))
    if wait_s is None:
        wait_s = 0.0 if policy == EVICT_OLDEST and isinstance(refusal, OutboxFullError) else _WAIT_S_OF.get(policy, 0.0)
    deadline = time.monotonic() + wait_s
    pace = Pace(bus)
    control = bool(refusal.facts.get("control"))
    waiting = bus._awaited.setdefault((to, control), [])
    while (remaining := deadline - time.monotonic()) > 0:
        number = bus.transport.number_for_room(to, control=control)
        waiting.append(number)
        try:
            bus.transport.want(to, control=control, seq=min(waiting))
            try:  # once more: room may have come before the wish was stored
                return post()
            except (InboxFullError, OutboxFullError) as error:
                refusal = error
            await pace.sleep(remaining)
        finally:
            waiting.remove(number)
    raise refusal


async def wait_finalised(bus: Bus, receipt: Receipt, timeout_s: float | None) -> None:
    """See Receipt.wait_acked."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    key = (receipt.recipient, receipt.control)
    waiting = bus._awaited.setdefault(key, [])
    waiting.append(receipt.seq)
    pace = Pace(bus)
    try:
        while (state := receipt.state) not in _FINAL:
            # The lowest awaited number stands in `want`; after it is finalised the others set theirs. Then look once more.
            bus.transport.want(receipt.recipient, control=receipt.control, seq=min(waiting))
            if (state := receipt.state) in _FINAL:
                break
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise AskTimeoutError(
                    f"{receipt.recipient} did not ack within {timeout_s:g} s", recipient=receipt.recipient
                )
            await pace.sleep(remaining)
    finally:
        waiting.remove(receipt.seq)
        if not waiting:
            bus._awaited.pop(key, None)
        else:
            bus._ack_waiters.wake()
    if state not in ("acked", "finalised"):
        raise BusError(f"message {receipt.seq} to {receipt.recipient} ended as {state}", state=state)
