"""`Bus.lock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.core import limits

if TYPE_CHECKING:
    from muster.bus.lease import Locked


class Locking:
    """The part of a bus that locks; what it takes is imported by the first lock."""

    def lock(self: Any, *names: str, timeout_s: float | None = None, ttl_s: float = limits.LOCK_TTL_S) -> Locked:
        """A lease on names and file globs, for the whole fleet: `async with agent.lock("src/api/**") as lease:`.

        All names are had at once, or none is. Between locks that conflict, because some path fits both, whoever asks first is first. The
        lease is renewed by itself; it ends with the block, with this process, or with `ttl_s` seconds of silence. Should it be lost, the
        block is cancelled and LockLostError raised. It binds those who ask for it; `Lease.token` lets others refuse a holder that was.

        Args:
            names: What to lock, see `docs/locks.md`: `migration-number`, `src/api/**`, `*.lock`; a final "/" means everything below.
            timeout_s: Wait so long; None without end, 0 not at all.
            ttl_s: How long it holds when this process falls silent, from 1 s to a day.

        Raises:
            UsageError: A name, or a time, that cannot be. LockHeldError, LockTimeoutError: It was not free; nothing was locked.
            LockDeadlockError: Its holder waits for what this task holds. LockTableFullError: There are too many locks.
        """
        from muster.bus.lease import Locked

        return Locked(self, names, timeout_s, ttl_s)
