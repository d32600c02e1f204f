"""A lock that a plain script holds through its agent's worker. See `OwnerClient.lock`."""

from __future__ import annotations

import contextlib
import os

from muster.errors import LockLostError, MusterError, error_of

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from muster.agent.client import OwnerClient

#: Ids of the locks that this process's command stands under, see `muster.bus.lease`.
ENVIRONMENT = "MUSTER_LOCKS"


def around() -> list[str]:
    """Locks that are held around this process, by the `muster lock` that started it."""
    return os.environ.get(ENVIRONMENT, "").split()


class Held:
    """One lock, until `release` or the end of the block or of the connection."""

    def __init__(self, owner: OwnerClient, lock_id: str, token: int, names: list[str]) -> None:
        self.lock_id, self.token, self.names = lock_id, token, names
        self._owner = owner
        self._is_over = False

    def check(self) -> None:
        """Raise LockLostError if the lock is held no longer, as far as is known here. Never waits."""
        fields = self._owner.lost(self.lock_id)
        if fields is not None:
            self._is_over = True
            raise error_of(fields)
        if self._is_over:
            raise LockLostError("the lock was released already", lock_id=self.lock_id)

    def release(self) -> None:
        """Let go. Safe twice. Raises LockLostError if it had been lost before."""
        if not self._is_over:
            self._is_over = True
            self._owner.request("unlock", lock_id=self.lock_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            with contextlib.suppress(MusterError):
                self.release()
