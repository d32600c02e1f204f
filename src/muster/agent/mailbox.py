"""Messages for the agent's own command or handler, until it asks for them through the owner socket.

Nothing is taken from other agents' lanes while nobody asks: what waits there keeps its sender's credit in use (so senders are slowed
down), counts no delivery attempt when the worker dies, and costs the worker no memory. What was taken for somebody who went away without
acking it waits here for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.bus.delivery import Delivery


class Mailbox:
    """One agent's user messages. `demand(True)` is called when more are wanted than are here, `demand(False)` when no more are."""

    def __init__(self, demand: Callable[[bool], None]) -> None:
        self._demand = demand
        self._messages: deque[Delivery] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._wanted = 0

    def __len__(self) -> int:
        return len(self._messages)

    def offer(self, delivery: Delivery) -> None:
        """Keep a delivery for whoever asks next."""
        self._messages.append(delivery)
        if len(self._messages) >= self._wanted:
            self._demand(False)  # at once: nothing that nobody asked for may leave its lane
        self._wake()

    def give_back(self, deliveries: list[Delivery]) -> None:
        """Unfinished deliveries of somebody who went away: they come first, in their order."""
        self._messages.extendleft(delivery for delivery in reversed(deliveries) if delivery.is_open)
        if self._messages:
            self._wake()

    async def take(self, count: int, wait_s: float) -> list[Delivery]:
        """Up to `count` messages, as many as there are; waits up to `wait_s` for the first one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        self._wanted += count
        try:
            if len(self._messages) < self._wanted:
                self._demand(True)
            while not self._messages:
                remaining = deadline - loop.time()
                if remaining <= 0:
                    return []
                future: asyncio.Future[None] = loop.create_future()
                self._waiting.append(future)
                handle = loop.call_later(remaining, _set, future)
                try:
                    await future
                finally:
                    handle.cancel()
            return [self._messages.popleft() for _ in range(min(count, len(self._messages)))]
        finally:
            self._wanted -= count
            if self._wanted <= len(self._messages):
                self._demand(False)

    def close(self) -> None:
        """Forget everything; closing the bus gives it back."""
        self._messages.clear()
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def _wake(self) -> None:
        for future in self._waiting:
            _set(future)
        self._waiting.clear()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
