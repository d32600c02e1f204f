"""What a bus does beside its calls: remind recipients, free what is finalised, sweep, and run what was put off."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from muster.core import limits
from muster.errors import StoreError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from muster.bus.transport import Transport


class Upkeep:
    """Timers of one bus. Without a loop nothing is put off: it is done at once, or by hand in a test."""

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop | None, sweep: Callable[[], None]) -> None:
        """`sweep`: look at every lane, in case a bell was lost; called ever again while the bus consumes."""
        self._transport = transport
        self._loop = loop
        self._timers: set[asyncio.TimerHandle] = set()
        self._sweep = sweep
        #: The timer that reminds recipients; None while nothing that was sent is untaken.
        self.reminder: asyncio.TimerHandle | None = None
        self.pause_s = limits.RERING_S
        if transport.fileno() >= 0 and loop is not None:
            self._sweep_later()
            self.later(limits.RERING_S, self._resume)

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call `call` in `delay_s`, unless `close` comes first."""
        if self._loop is None:
            call()
            return

        def fire() -> None:
            self._timers.discard(handle)
            call()

        handle = self._loop.call_later(delay_s, fire)
        self._timers.add(handle)

    def remind_later(self) -> None:
        """Something was sent: if it stays untaken its recipient is rung again after a second."""
        if self._loop is not None:
            self.reminder = self._loop.call_later(limits.RERING_S, self._remind)

    def _remind(self) -> None:
        """While something we sent is untaken or a sealed segment waits to be freed: ring again, reclaim. Else no timer runs."""
        self.reminder = None
        if self._transport.ring_again() and self._loop is not None:
            # A recipient that is away, or does not listen, is reminded ever more rarely: an idle fleet costs nothing.
            self.pause_s = min(self.pause_s * 2, limits.RERING_MAX_S)
            self.reminder = self._loop.call_later(self.pause_s, self._remind)

    def _resume(self) -> None:
        """Late enough that a short life never pays for it: take over the lanes of whoever held this identity before."""
        self._transport.resume()
        if self.reminder is None:
            self._remind()

    def _sweep_later(self) -> None:
        def sweep() -> None:
            with contextlib.suppress(OSError, StoreError):  # no descriptor just now: the next sweep looks again
                self._sweep()
            self._sweep_later()

        self.later(limits.SWEEP_S * random.uniform(0.75, 1.25), sweep)

    def close(self) -> None:
        for handle in (*self._timers, *([self.reminder] if self.reminder else [])):
            handle.cancel()
        self._timers.clear()
        self._loop = None
