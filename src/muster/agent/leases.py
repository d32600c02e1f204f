"""Locks of what an agent's command starts: each belongs to the connection that asked for it, and ends with it.

The worker renews them; a program need not. Two commands of one agent share none. What happens meanwhile is told between the answers, as
lines that are no answer: {"event": "lock.waiting", …} and {"event": "lock.lost", …}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from muster.bus.lease import Lease
from muster.errors import LockLostError

if TYPE_CHECKING:
    from muster.agent.socket import Request
    from muster.bus.bus import Bus


class SessionLeases:
    """The locks of one connection."""

    def __init__(self, bus: Bus, tell: Callable[[dict[str, Any]], None]) -> None:
        """`tell` writes an event to the other side."""
        self._bus = bus
        self._tell = tell
        self._held: dict[str, Lease] = {}

    async def lock(self, request: Request) -> dict[str, Any]:
        """Wait for a lock on all of the request's names. Raises what `Bus.lock` raises."""
        lease = await Lease.acquire(
            self._bus,
            request.names,
            timeout_s=request.patience_s,
            ttl_s=request.ttl_s,
            within=[*request.within, *self._held],
            on_wait=lambda facts: self._tell({"event": "lock.waiting", **facts}),
        )
        self._held[lease.lock_id] = lease
        lease.on_lost.append(lambda error: self._lost(lease, error))
        return {"lock_id": lease.lock_id, "token": lease.token, "names": lease.names}

    async def unlock(self, request: Request) -> dict[str, Any]:
        """Let go of a lock of this connection. Raises LockLostError if it is over already."""
        lease = self._held.pop(request.lock_id, None)
        if lease is None:
            raise LockLostError("this connection holds no such lock, or not any more", lock_id=request.lock_id)
        await lease.release()
        return {}

    def close(self) -> None:
        """The connection has ended."""
        for lease in self._held.values():
            lease.abandon()
        self._held.clear()

    def _lost(self, lease: Lease, error: LockLostError) -> None:
        if self._held.pop(lease.lock_id, None) is not None:
            self._tell({"event": "lock.lost", "lock_id": lease.lock_id, "error": error.as_dict()})
