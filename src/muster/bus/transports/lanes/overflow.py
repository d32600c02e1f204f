"""What a recipient wants to happen when its inbox is full, and acting for a recipient that is away.

The policy is a word in `inbox/overflow`, written by the recipient's side. Lending credit and evicting are the recipient's business; for
an identity that nobody holds, whoever gets its inbox lock may do it, as for every repair of a dead identity's files.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import locks
from muster.bus.transports.lanes.credit import CreditPool
from muster.errors import ConfigError, MusterError
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from muster.core.settings import BusSettings

REFUSE, WAIT, EVICT_OLDEST = "refuse", "wait", "evict_oldest"
POLICIES: Final = (REFUSE, WAIT, EVICT_OLDEST)


def write_policy(agent_directory: str, policy: str) -> None:
    """Set an inbox's policy; only its owner's side calls this. Raises ConfigError for an unknown one."""
    if policy not in POLICIES:
        raise ConfigError(f"overflow is one of {', '.join(POLICIES)}, not {policy!r:.60}", key="overflow")
    path = f"{agent_directory}/inbox/overflow"
    if read_policy(agent_directory) == policy:
        return
    temporary = f"{agent_directory}/inbox/tmp-overflow-{os.getpid()}"
    fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, policy.encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def read_policy(agent_directory: str) -> str:
    """An inbox's policy; `refuse` where none, or none that this version knows, was set."""
    with contextlib.suppress(OSError, MusterError):
        fd = open_private(f"{agent_directory}/inbox/overflow", os.O_RDONLY)
        try:
            policy = os.read(fd, 32).decode("ascii", "replace")
        finally:
            os.close(fd)
        if policy in POLICIES:
            return policy
    return REFUSE


def act_for_absent(
    agent_directory: str, lane: str, lane_id: bytes, settings: BusSettings, *, evict_up_to: int = 0
) -> bool:
    """Lend more credit to `lane` in the name of a recipient that nobody holds; True if there is more now.

    With nothing left to lend, the lane's oldest untaken messages up to number `evict_up_to` are evicted: one part in eight of its
    window. False where the recipient lives: then it decides.
    """
    lock = f"{agent_directory}/inbox.lock"
    if not locks.acquire(lock):
        return False
    try:
        pool = CreditPool(settings)
        shelf = cursors.CursorShelf(f"{agent_directory}/inbox", pool)
        cursor = shelf.open(lane, lane_id)
        try:
            rose = cursor.grant(hungry=True)
            if not rose and evict_up_to:
                last = min(
                    evict_up_to, cursor.acked_base + max(1, cursor.window >> 3), cursor.acked_base + cursors.WINDOW
                )
                for seq in range(cursor.acked_base + 1, last + 1):
                    cursor.take(seq)
                    rose = cursor.finalise(seq, cursors.EVICTED) or rose
                cursor.grant()
            return rose
        finally:
            cursor.close()
    except OSError:  # no spare cursor and no room: nothing can be lent
        return False
    finally:
        locks.release(lock)
