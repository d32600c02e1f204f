"""Tombstones: what is left of messages that an inbox evicted, in a bounded ring beside it."""

from __future__ import annotations

import os
import struct
import time
from typing import Final, NamedTuple

from muster.bus.transports.lanes.words import allocate, write_all
from muster.core.ids import show_id
from muster.security.permissions import open_private

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

    def add(self, lane: str, seq: int, raw_id: bytes, body_bytes: int) -> None:
        """Remember one; the oldest is forgotten. Raises OSError."""
        name = lane.encode()
        entry = _ENTRY.pack(seq, time.time_ns(), body_bytes, len(name), name, raw_id)
        write_all(self._fd, entry, self._next * _ENTRY.size)
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
