"""Room for a sender that has used up its credit: lend it more, or evict the inbox's oldest messages if its recipient wants that."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from muster.bus.transports.lanes import overflow
from muster.bus.transports.lanes.inlane import DamagedLaneError
from muster.bus.transports.lanes.words import allocate
from muster.core.ids import show_id
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from muster.bus.transports.lanes.inbox import Inbox
    from muster.bus.transports.lanes.inlane import InLane
    from muster.core.message import Message

_ENTRY: Final = struct.Struct("<QQIH74s16s16x")
SLOTS: Final = 256


class Tombstone(NamedTuple):
    """What is left of an evicted message: who sent it, which number it had, how large it was. Not its body."""

    lane: str
    seq: int
    message_id: str
    body_bytes: int
    evicted_ns: int


class Tombstones:
    """The newest `SLOTS` evictions of one inbox, in a ring in `inbox/evicted`. Allocated when the policy is chosen, so that a full
    store can evict.
    """

    def __init__(self, inbox: str) -> None:
        """Raises OSError: no room for the ring."""
        path = f"{inbox}/evicted"
        try:
            self._fd = open_private(path, os.O_RDWR)
        except FileNotFoundError:
            self._fd = allocate(path, SLOTS * _ENTRY.size, b"")
        newest = max(_read(self._fd), key=lambda found: found[1].evicted_ns, default=None)
        self._next = 0 if newest is None else (newest[0] + 1) % SLOTS

    def add(self, message: Message, lane: str) -> None:
        """Remember one; the oldest is forgotten."""
        name = lane.encode()
        entry = _ENTRY.pack(message.seq, time.time_ns(), len(message.raw), len(name), name, message.raw_id)
        os.pwrite(self._fd, entry, self._next * _ENTRY.size)
        self._next = (self._next + 1) % SLOTS

    def close(self) -> None:
        os.close(self._fd)


def _read(fd: int) -> list[tuple[int, Tombstone]]:
    data = os.pread(fd, SLOTS * _ENTRY.size, 0)
    found = []
    for slot in range(len(data) // _ENTRY.size):
        seq, evicted_ns, body_bytes, size, name, raw_id = _ENTRY.unpack_from(data, slot * _ENTRY.size)
        if seq:
            lane = name[:size].decode("ascii", "replace")
            found.append((slot, Tombstone(lane, seq, show_id(raw_id), body_bytes, evicted_ns)))
    return found


def list_tombstones(inbox: str) -> list[Tombstone]:
    """The newest evictions of an inbox, oldest first; [] where none was ever made."""
    try:
        fd = open_private(f"{inbox}/evicted", os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        return sorted((stone for _slot, stone in _read(fd)), key=lambda stone: stone.evicted_ns)
    finally:
        os.close(fd)


def make_room(inbox: Inbox, lane: InLane) -> bool:
    """A sender has used up its credit on `lane`. True if it has more now.

    What the pool can lend comes first. Then, if the policy says so, the inbox's oldest untaken messages go, whoever sent them: one in
    eight of what this lane may hold, so that a flood costs one ring of the bell for many messages.
    """
    cursor = lane.cursor
    if cursor is None:
        return False  # it is opened, and gets its window, when its turn comes
    if cursor.grant(hungry=True):
        return True
    if inbox.overflow != overflow.EVICT_OLDEST:
        return False
    for _ in range(max(1, cursor.window >> 3)):
        oldest = _oldest(inbox)
        if oldest is None:
            break
        inbound = inbox._take_from(oldest, alone=False)
        if inbound is not None:
            inbox.evict(inbound)
    return cursor.grant(hungry=True)


def _oldest(inbox: Inbox) -> InLane | None:
    """The normal lane whose next untaken message was created first. Control messages are never evicted."""
    chosen, created_ns = None, 0
    for name in inbox.lookout.waiting() | {lane.name for lane in inbox.lookout.lanes.values() if lane.blocked}:
        lane = inbox.lookout.lanes[name]
        if lane.control or lane.cursor is None or not lane.cursor.can_take(lane.next_seq):
            continue
        try:
            message = lane.peek()
        except DamagedLaneError:
            continue  # healed when its turn comes
        if message is not None and (chosen is None or message.created_ns < created_ns):
            chosen, created_ns = lane, message.created_ns
    return chosen
