"""What the benchmarks ask of anything that passes messages between processes; muster and each peer answer it in their own best way.

The methods are coroutines, because some of the clients are. One that blocks is called from one all the same and never suspends: that
costs a tenth of a microsecond, and everybody pays it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

#: Longest wait for one message, in seconds.
WAIT_S = 20.0


class Sending(Protocol):
    """One process's side that sends."""

    async def send(self, to: str, bodies: list[bytes]) -> None:
        """Send these, in this order. When it returns they are as safe as this peer makes them; it waits when there is no room."""

    async def settle(self) -> None:
        """Return once this process is needed no more for what it has sent."""


class Receiving(Protocol):
    """One process's side that receives."""

    async def receive(self, most: int) -> list[bytes]:
        """The next messages, at least one and at most `most`, waiting for the first. Raises MeasureError when none comes in time."""

    async def ack(self) -> None:
        """Everything that the last `receive` returned is handled, and shall not be delivered again."""

    async def check_empty(self) -> None:
        """Raises MeasureError if something is left that was not acked."""


class Peer(Protocol):
    """A way of passing messages. `place` is opened before processes are forked, `sender` and `receiver` in them."""

    name: str

    def place(self, recipients: list[str], senders: list[str]) -> AbstractContextManager[Any]:
        """A fresh, empty place for these inboxes. Raises MissingContenderError when something is not on this machine."""

    def sender(self, place: Any, me: str) -> AbstractAsyncContextManager[Sending]: ...

    def receiver(self, place: Any, me: str) -> AbstractAsyncContextManager[Receiving]: ...

    def server_cpu_s(self) -> float:
        """Processor time that a server of this peer has used so far; 0 without one."""
