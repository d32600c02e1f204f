"""Explicit message ids that a lane remembers, so that sending one again adds no second copy.

The newest `SLOTS` of a lane stand in `outbox/<recipient>/ids`, a ring of 32-byte entries `id | number word | first half of the lane id`,
and outlive the segments. An entry is written after its frame's commit: a crash in between is healed at the next open, which looks at
the frames that are still there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes.words import allocate, value_of, word, write_all
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOTS: Final = 256
ENTRY_BYTES: Final = 32
FILE_BYTES: Final = SLOTS * ENTRY_BYTES


class ExplicitIds:
    """The ids of one lane, by number. Written by the sender's side only."""

    def __init__(self, directory: str, lane_id: bytes) -> None:
        self._path = f"{directory}/ids"
        self._half = lane_id[:8]
        self._fd = -1
        self._next = 0
        self._seqs: OrderedDict[bytes, int] = OrderedDict()
        #: Whether there was a file: without one every frame that is left has to be looked at.
        self.is_kept = self._load()

    def _load(self) -> bool:
        try:
            self._fd = open_private(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False
        data = os.pread(self._fd, FILE_BYTES, 0)
        found = []
        for slot in range(len(data) // ENTRY_BYTES):
            entry = data[slot * ENTRY_BYTES : (slot + 1) * ENTRY_BYTES]
            seq = value_of(int.from_bytes(entry[16:24], "little"))
            if seq and entry[24:] == self._half:
                found.append((seq, entry[:16], slot))
        for seq, message_id, slot in sorted(found):
            self._seqs[message_id] = seq
            self._next = (slot + 1) % SLOTS
        return True

    def learn(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Remember (number, id) of frames whose entry may be missing."""
        for seq, message_id in frames:
            if message_id not in self._seqs:
                self.remember(message_id, seq)

    def get(self, message_id: bytes) -> int | None:
        """The number under which this id was sent, if it is remembered."""
        return self._seqs.get(message_id)

    def remember(self, message_id: bytes, seq: int) -> None:
        """Write the entry. In a store without room for the file the id is remembered by this process only."""
        self._seqs[message_id] = seq
        if len(self._seqs) > SLOTS:
            self._seqs.popitem(last=False)
        if self._fd < 0:
            try:
                self._fd = allocate(self._path, FILE_BYTES, b"")
            except OSError:
                return
        # One entry, written by one call: torn, its check or its lane does not fit and it counts as absent.
        entry = message_id + word(seq).to_bytes(8, "little") + self._half
        write_all(self._fd, entry, self._next * ENTRY_BYTES)
        self._next = (self._next + 1) % SLOTS

    def sync(self) -> None:
        """Make the ids survive a power cut: before segments that also tell them are unlinked."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
