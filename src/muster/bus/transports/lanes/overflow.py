"""What a recipient wants to happen when its inbox is full, and acting for a recipient that is away.

The policy is a word in `inbox/overflow`, written by the recipient's side. Lending credit and evicting are the recipient's business; for
an identity that nobody holds, whoever gets its inbox lock may do it, as for every repair of a dead identity's files.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import locks
from muster.bus.transports.lanes.credit import CreditPool
from muster.bus.transports.lanes.tombstones import Tombstones
from muster.core.settings import POLICIES, REFUSE, check_overflow
from muster.errors import MusterError
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.core.settings import BusSettings


def write_policy(agent_directory: str, policy: str) -> None:
    """Set an inbox's policy; only its owner's side calls this. Raises ConfigError for an unknown one."""
    check_overflow(policy)
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
    agent_directory: str,
    lane: str,
    lane_id: bytes,
    settings: BusSettings,
    seq: int,
    describe: Callable[[int, int], list[tuple[int, bytes, int]]] | None = None,
) -> None:
    """Lend `lane` credit for number `seq` in the name of a recipient that nobody holds; where one lives, it decides.

    With nothing left to lend, and `describe` given, the lane's oldest messages are evicted: one part in eight of its window.
    `describe` tells (number, id, bytes) of a range of them, for the tombstones.
    """
    lock = f"{agent_directory}/inbox.lock"
    if not locks.acquire(lock):
        return
    try:
        inbox = f"{agent_directory}/inbox"
        cursor = cursors.CursorShelf(inbox, CreditPool(settings)).open(lane, lane_id)
        try:
            if cursor.credit < seq and not cursor.grant(hungry=True) and describe is not None:
                _evict(inbox, lane, cursor, describe)
        finally:
            cursor.close()
    except OSError:  # no spare cursor and no room: nothing can be lent
        return
    finally:
        locks.release(lock)


def _evict(
    inbox: str, lane: str, cursor: cursors.Cursor, describe: Callable[[int, int], list[tuple[int, bytes, int]]]
) -> None:
    """Finalise the lane's oldest as evicted, each after its tombstone stands."""
    first = cursor.acked_base + 1
    last = cursor.acked_base + min(cursors.WINDOW, max(1, cursor.window >> 3))
    stones = Tombstones(inbox)
    try:
        for seq, message_id, body_bytes in describe(first, last):
            if not cursor.is_finalised(seq):
                stones.add(lane, seq, message_id, body_bytes)
                cursor.take(seq)
                cursor.finalise(seq, cursors.EVICTED)
    finally:
        stones.close()
    cursor.grant(hungry=True)
