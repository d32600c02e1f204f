"""What an agent has to say to the coordinator, in order and never lost while the worker lives.

A full inbox or store refuses a message; whoever only tried once would lose a result. Here it waits, and everything behind it too, because
the coordinator relies on the order (a result stored before a `Ready` has arrived before it).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from muster.core.names import COORDINATOR
from muster.errors import BusClosedError, InboxFullError, OutboxFullError, StoreError, StoreFullError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import msgspec

    from muster.bus.bus import Bus

_RETRY_MAX_S = 2.0


class Outbox:
    """The ordered way to the coordinator of one agent."""

    def __init__(
        self,
        bus: Bus,
        loop: asyncio.AbstractEventLoop,
        coordinator: str = COORDINATOR,
        *,
        emptied: Callable[[], None],
    ) -> None:
        """`emptied` is called when the last message that had to wait has been stored."""
        self._bus, self._coordinator = bus, coordinator
        self._loop = loop
        self._emptied = emptied
        self._waiting: deque[msgspec.Struct] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._delay_s = 0.0
        #: Refusals met so far.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def post(self, struct: msgspec.Struct) -> None:
        """Store `struct` in the coordinator's inbox, now or as soon as there is room."""
        if self._waiting or not self._try(struct):
            self._waiting.append(struct)

    def flush(self) -> None:
        """Try the waiting ones again: there may be room now."""
        if not self._waiting:
            return
        while self._waiting:
            if not self._try(self._waiting[0]):
                return
            self._waiting.popleft()
        self._delay_s = 0.0
        self._emptied()

    def _try(self, struct: msgspec.Struct) -> bool:
        try:
            self._bus.post_struct(self._coordinator, struct)
        except (
            InboxFullError,
            OutboxFullError,
            StoreFullError,
            StoreError,
        ) as error:  # StoreError: no descriptor left just now
            self.refused += 1
            wait_s = getattr(error, "retry_after_s", None) or 0.1
            self._delay_s = min(max(wait_s, self._delay_s * 2), _RETRY_MAX_S)
            if self._timer is None:
                self._timer = self._loop.call_later(self._delay_s, self._again)
            return False
        except BusClosedError:  # the worker is ending; the coordinator gets proof of that instead
            return True
        return True

    def _again(self) -> None:
        self._timer = None
        self.flush()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
