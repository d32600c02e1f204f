"""Cursors: what a recipient took and finalised of one lane (rule C of docs/lane-format.md).

Each update is one store of one word; nothing ever needs clearing because slots carry their number, and the window is enforced: a number
that would overwrite a live slot cannot be taken.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes.words import (
    CHECK_FACTOR,
    MASK_64,
    PAGE,
    Page,
    allocate,
    lane_id_of,
    page_header,
    value_of,
    word,
    write_all,
)
from muster.core import limits
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Collection

    from muster.bus.transports.lanes.credit import CreditPool

MAGIC: Final = b"MUSTCUR1"
TAKEN, ACKED_BASE, CREDIT = 4, 5, 6
ACKED_RING, ATTEMPTS_RING = 16, 256
WINDOW: Final = limits.WINDOW
_THREE_WORDS: Final = struct.Struct("<QQQ")

DONE, DEAD, EVICTED, EXPIRED, DAMAGED, FORGED = 1, 2, 3, 4, 5, 6
VERDICTS: Final = {
    DONE: "acked",
    DEAD: "dead",
    EVICTED: "evicted",
    EXPIRED: "expired",
    DAMAGED: "damaged",
    FORGED: "forged",
}


def base_by_ring(finalised: Collection[int]) -> int:
    """`acked_base` as the numbers in the ring of verdicts prove it: of a full ring the oldest is exactly one window behind the next."""
    if len(finalised) == WINDOW:
        return min(finalised) + WINDOW - 1
    base = 0
    while base + 1 in finalised:
        base += 1
    return base


class Cursor:
    """The recipient's own, mapped for writing. Only the holder of `inbox.lock` makes one."""

    __slots__ = (
        "_later", "_page", "_pool", "_regrant_at", "_words", "acked_base", "credit", "lane_id", "lent", "path", "taken",
        "taken_before", "window",
    )  # fmt: skip

    def __init__(self, path: str, lane_id: bytes, page: Page, pool: CreditPool) -> None:
        self.path = path
        self.lane_id = lane_id
        self._page = page
        self._pool = pool
        self._words = page.words
        self.taken = self._own(TAKEN)
        base = value_of(self._words[ACKED_BASE])
        self.acked_base = base_by_ring(self._ring()) if base is None else base
        self.credit = self._own(CREDIT)
        #: Highest number taken before this process came; up to it, what is not finalised was in flight when a process ended.
        self.taken_before = self.taken
        self.window = max(pool.floor, self.credit - self.acked_base)
        self.lent = pool.lent(self.credit, self.acked_base)
        #: Numbers above the base that are finalised, none beyond what was taken; we alone write the ring, so it is read once.
        last = min(self.taken, self.acked_base + WINDOW)
        self._later = {seq for seq in range(self.acked_base + 1, last + 1) if self._finalised_in_ring(seq)}
        # A crash may have come between a slot and the base, or between the base and the credit, that follow from it.
        self._regrant_at = self.acked_base
        if self.acked_base + 1 in self._later:
            self._advance(self.acked_base)
        self.grant()

    def _own(self, index: int) -> int:
        value = value_of(self._words[index])
        return 0 if value is None else value  # our own word is never torn; 0 is safe: slots decide what is finalised

    def _ring(self) -> set[int]:
        values = (value_of(slot) for slot in self._words[ACKED_RING : ACKED_RING + WINDOW])
        return {value >> 8 for value in values if value is not None}

    def _finalised_in_ring(self, seq: int) -> bool:
        value = value_of(self._words[ACKED_RING + seq % WINDOW])
        return value is not None and value >> 8 >= seq

    def is_finalised(self, seq: int) -> bool:
        """Whether `seq` has its verdict: below the base, or in the ring."""
        return seq <= self.acked_base or seq in self._later

    def count_attempt(self, seq: int) -> int:
        """Move the attempts counter *before* the delivery is handed out, so that a message that kills its reader is counted."""
        index = ATTEMPTS_RING + seq % WINDOW
        slot = self._words[index]
        attempts = min((slot & 0xFF) + 1, 0xFF) if slot >> 8 == seq else 1
        self._words[index] = (seq << 8) | attempts
        return attempts

    def uncount_attempt(self, seq: int) -> None:
        """A clean release does not count."""
        index = ATTEMPTS_RING + seq % WINDOW
        slot = self._words[index]
        if slot >> 8 == seq and slot & 0xFF:
            self._words[index] = slot - 1

    def attempts(self, seq: int) -> int:
        slot = self._words[ATTEMPTS_RING + seq % WINDOW]
        return slot & 0xFF if slot >> 8 == seq else 0

    def can_take(self, seq: int) -> bool:
        return seq <= self.acked_base + WINDOW

    def take(self, seq: int) -> None:
        """Publish `taken`; it never goes back."""
        if seq > self.taken:
            self.taken = seq
            self._words[TAKEN] = (seq << 16) | ((((seq + 1) * CHECK_FACTOR) & MASK_64) >> 48)

    def finalise(self, seq: int, verdict: int) -> bool:
        """Store the verdict: the instant at which `seq` is finalised. False if it already was. Advances `acked_base` and credit."""
        base = self.acked_base
        if seq <= base or seq in self._later:
            return False
        value = (seq << 8) | verdict
        self._words[ACKED_RING + seq % WINDOW] = (value << 16) | ((((value + 1) * CHECK_FACTOR) & MASK_64) >> 48)
        if seq == base + 1:
            self._advance(seq)
        else:
            self._later.add(seq)
        return True

    def _advance(self, base: int) -> None:
        later = self._later
        while later and base + 1 in later:
            base += 1
            later.discard(base)
        self.acked_base = base
        self._words[ACKED_BASE] = (base << 16) | ((((base + 1) * CHECK_FACTOR) & MASK_64) >> 48)
        credit = base + self.window
        if credit > self.credit:  # the window is no larger than at the last grant, so nothing more is lent
            self.credit = credit
            self._words[CREDIT] = (credit << 16) | ((((credit + 1) * CHECK_FACTOR) & MASK_64) >> 48)
        if base >= self._regrant_at:
            self.grant()

    def grant(self, *, hungry: bool = False) -> bool:
        """Raise the credit to a window above the base; True if it rose. `hungry`: the sender says that it has none left.

        Credit never goes back. A lane that uses its window up gets a larger one while the pool has something; while others are short
        what is acked goes back to the pool, for those who ask. What is lent is counted as of now and only sinks until the next grant,
        so the sum is never exceeded.
        """
        pool, base = self._pool, self.acked_base
        if not hungry and pool.is_scarce:
            self.window = pool.shrunk(self.window)
        elif hungry or self.taken + (self.window >> 2) >= self.credit:
            self.window = pool.grown(self.window, self.lent)
        rose = base + self.window > self.credit
        if rose:
            self.credit = base + self.window
            self._words[CREDIT] = word(self.credit)
        lent = pool.lent(self.credit, base)
        pool.free += self.lent - lent
        self.lent = lent
        self._regrant_at = base + max(1, self.window >> 3)
        return rose

    @property
    def has_borrowed(self) -> bool:
        """Whether the sender may store more than its floor."""
        return self.credit - self.acked_base > self._pool.floor

    def give_back(self) -> None:
        """Let the credit stand when the next message is finalised: its room goes to the pool, for whoever asks."""
        self.window = max(self._pool.floor, self.window - 1)
        self._regrant_at = self.acked_base + 1

    def close(self) -> None:
        self._page.close()


def make_spares(inbox: str, first: int, count: int) -> list[str]:
    """Allocate pages that become cursors later; the names of those for which there was room."""
    made: list[str] = []
    with contextlib.suppress(OSError):
        for number in range(first, first + count):
            os.close(allocate(f"{inbox}/spare-{number}", PAGE, b""))
            made.append(f"spare-{number}")
    return made


class CursorShelf:
    """An inbox's cursors, with spares allocated ahead so that new lanes can be drained when the store is full."""

    def __init__(self, inbox: str, pool: CreditPool) -> None:
        self._inbox = inbox
        self._pool = pool
        names = os.listdir(inbox)
        for name in names:
            if name.startswith("tmp-") or (name.startswith("spare-") and os.stat(f"{inbox}/{name}").st_size < PAGE):
                os.unlink(f"{inbox}/{name}")  # of a process that died while it made it
        #: Known from here on without looking: only the holder of `inbox.lock` makes and uses them.
        self._spares = sorted(name for name in os.listdir(inbox) if name.startswith("spare-"))
        self._next_spare = max((int(name[6:]) + 1 for name in self._spares if name[6:].isdigit()), default=0)
        pool.count_lent(inbox)
        self.restock()

    def restock(self) -> bool:
        """Fill up to `limits.SPARE_CURSORS` spares; False if the store has no room (what is there stays usable)."""
        missing = limits.SPARE_CURSORS - len(self._spares)
        made = make_spares(self._inbox, self._next_spare, missing)
        self._next_spare += missing
        self._spares += made
        return len(made) == missing

    def open(self, lane: str, lane_id: bytes) -> Cursor:
        """The cursor of `lane`, bound to `lane_id`: the existing one, or a new file that replaces it by rename (never a reset in place).

        Raises:
            OSError: No spare is left and none can be allocated; the lane stays unread, nothing is lost.
        """
        path = f"{self._inbox}/{lane}.cursor"
        with contextlib.suppress(FileNotFoundError):
            page = Page(path)
            if lane_id_of(bytes(page.words[:4]), MAGIC) == lane_id:
                return Cursor(path, lane_id, page, self._pool)
            # Of a lane that is gone: what it had of the pool comes back.
            base, credit = (value_of(page.words[index]) or 0 for index in (ACKED_BASE, CREDIT))
            self._pool.free += self._pool.lent(credit, base)
            page.close()
        if not self._spares:
            self.restock()
        if not self._spares:
            raise OSError(28, "no spare cursor is left in a full store")
        # Out of the list first: after an interruption it is found again at the next start, and never used twice.
        spare = f"{self._inbox}/{self._spares.pop(0)}"
        window = self._pool.first_window()
        fd = open_private(spare, os.O_RDWR)
        try:
            words = (word(value).to_bytes(8, "little") for value in (0, 0, window))  # TAKEN, ACKED_BASE, CREDIT
            write_all(fd, (page_header(MAGIC, lane_id) + b"".join(words)).ljust(PAGE, b"\0"), 0)
        finally:
            os.close(fd)
        self._pool.free -= self._pool.lent(window, 0)
        os.rename(spare, path)
        self.restock()
        return Cursor(path, lane_id, Page(path), self._pool)


class PeerCursor:
    """The sender's view of its recipient's cursor: read with `pread`, every word checked."""

    __slots__ = ("_fd", "_lane_id", "_path", "_seen", "acked_base", "credit", "taken")

    def __init__(self, path: str, lane_id: bytes, credit: int) -> None:
        """`credit` is what a sender has on a lane that its recipient has not seen."""
        self._path = path
        self._lane_id = lane_id
        self._fd = -1
        self._seen = b""
        self.taken = 0
        self.acked_base = 0
        self.credit = credit

    def refresh(self) -> bool:
        """Read taken, acked_base and credit. False if there is no cursor of this lane id (then the recipient has not looked yet).

        A word whose check does not hold is being stored right now; the older value stands, which is always safe.
        """
        if self._fd < 0 and not self._open():
            return False
        data = os.pread(self._fd, 24, TAKEN * 8)
        if data != self._seen and len(data) == _THREE_WORDS.size:  # less: it was cut, and tells nothing
            taken, base, credit = _THREE_WORDS.unpack(data)
            self._seen = data
            # Unrolled: this runs once per message sent. A word whose check fails leaves the older value standing.
            if (((((taken >> 16) + 1) * CHECK_FACTOR) & MASK_64) >> 48) == taken & 0xFFFF:
                self.taken = taken >> 16
            if (((((base >> 16) + 1) * CHECK_FACTOR) & MASK_64) >> 48) == base & 0xFFFF:
                self.acked_base = base >> 16
            if (((((credit >> 16) + 1) * CHECK_FACTOR) & MASK_64) >> 48) == credit & 0xFFFF:
                self.credit = credit >> 16
        return True

    def _open(self) -> bool:
        try:
            fd = open_private(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            is_ours = lane_id_of(os.pread(fd, 32, 0), MAGIC) == self._lane_id
        except BaseException:
            os.close(fd)
            raise
        if not is_ours:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def reopen_if_gone(self) -> None:
        """Forget a cursor that was unlinked: its words will never change again."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self.close()

    def verdict(self, seq: int) -> int | None:
        """The verdict of `seq`: a code, 0 for "finalised, verdict no longer known", None while it is not finalised."""
        if self._fd < 0 and not self._open():
            return None
        value = value_of(int.from_bytes(os.pread(self._fd, 8, (ACKED_RING + seq % WINDOW) * 8), "little"))
        if value is not None and value >> 8 == seq:
            return value & 0xFF
        return 0 if seq <= self.acked_base or (value is not None and value >> 8 > seq) else None

    def confirmed_base(self) -> int:
        """`acked_base` read twice with the same result, as is due before anything is destroyed; 0 if it is moving."""
        if not self.refresh():
            return 0
        first = self.acked_base
        return first if self.refresh() and self.acked_base == first else 0

    def sync(self) -> None:
        """Make the recipient's acks survive a power cut. A reader's descriptor will do: the kernel writes the file's pages, whoever
        made them dirty.
        """
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
