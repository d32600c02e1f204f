"""Credit: how an inbox shares its capacity among senders without a counter that they share (docs/lane-format.md, "Credit").

A sender may store numbers up to the credit in its lane's cursor. Every possible lane owns a small floor from the start, so that a first
message needs nobody's leave; what is left of the inbox's capacity is a pool from which the recipient lends to lanes that use it. The sum
of all that may be stored and unacked therefore never exceeds the capacity, whatever dies when.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes.words import value_of

if TYPE_CHECKING:
    from muster.core.settings import BusSettings

#: A pool with less than this part of its size left is scarce: lanes give back what is acked.
_SCARCE_PART: Final = 4


class CreditPool:
    """What one inbox can lend. Only the holder of `inbox.lock` has one."""

    __slots__ = ("floor", "free", "lane_max", "size")

    def __init__(self, settings: BusSettings) -> None:
        self.floor = settings.credit_floor
        self.lane_max = settings.lane_messages_max
        self.size = self.free = settings.inbox_messages_max - settings.credit_reserved

    def first_window(self) -> int:
        """The window of a lane that is new to a living recipient: generous while there is plenty."""
        return min(self.lane_max, self.floor + max(0, self.free // _SCARCE_PART))

    def grown(self, window: int, lent: int) -> int:
        """The next larger window for a lane that has `lent` from the pool; the same one if there is nothing to lend."""
        return max(window, min(window * 2, self.lane_max, self.floor + lent + max(0, self.free)))

    @property
    def is_scarce(self) -> bool:
        """Whether lanes may soon be short of credit."""
        return self.free * _SCARCE_PART < self.size

    def shrunk(self, window: int) -> int:
        """The window of a lane while the pool is scarce: half of it."""
        return max(self.floor, window // 2)

    def lent(self, credit: int, acked_base: int) -> int:
        """What a lane has of the pool: all that its sender may still have stored, beyond the floor."""
        return max(0, credit - acked_base - self.floor)

    def count_lent(self, inbox: str) -> None:
        """Take into account what earlier holders lent: it stands in the cursors."""
        for name in os.listdir(inbox):
            if not name.endswith(".cursor"):
                continue
            try:
                fd = os.open(f"{inbox}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:  # a link, or somebody else's: no lane of ours is read with it either
                continue
            try:
                words = os.pread(fd, 24, 32)
            finally:
                os.close(fd)
            if len(words) == 24:
                base = value_of(int.from_bytes(words[8:16], "little")) or 0
                credit = value_of(int.from_bytes(words[16:], "little")) or 0
                self.free -= self.lent(credit, base)
