"""A recipient's cursor as a check sees it: read with `pread`, every word judged, and how a broken one is made whole again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes.fsck.findings import DAMAGE, NOTICE, Finding
from muster.bus.transports.lanes.fsck.headers import page_id
from muster.bus.transports.lanes.words import PAGE, page_header, value_of, word, write_all
from muster.errors import MusterError, StoreVersionError
from muster.security.permissions import open_private, write_private

WINDOW: Final = cursors.WINDOW


class CursorFacts:
    """What one cursor file says. `lane_id` is None if it is missing or no whole cursor page; then nothing else is known."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lane_id: bytes | None = None
        self.taken = self.base = self.credit = 0
        self.acked: dict[int, int] = {}
        self.bad_words: list[int] = []  # indexes of words whose check does not hold
        self.younger = ""  # of a format that this muster does not read; why
        self.is_usable = True  # not a link, nor somebody else's, nor open to others: the check of files says so
        try:
            data = _read(path)
        except FileNotFoundError:
            self.exists = False
            return
        except (OSError, MusterError):
            self.exists, self.is_usable = True, False
            return
        self.exists = True
        if len(data) != PAGE:
            return
        try:
            self.lane_id = page_id(data, cursors.MAGIC)
        except StoreVersionError as error:
            self.is_usable, self.younger = False, error.message
        if self.lane_id is not None:
            self._read_words([int.from_bytes(data[at : at + 8], "little") for at in range(0, PAGE, 8)])

    def _read_words(self, words: list[int]) -> None:
        values = []
        for index in (cursors.TAKEN, cursors.ACKED_BASE, cursors.CREDIT):
            value = value_of(words[index])
            values.append(0 if value is None else value)
            if value is None:
                self.bad_words.append(index)
        for slot in range(WINDOW):
            stored = words[cursors.ACKED_RING + slot]
            value = value_of(stored)
            if value is not None and (value >> 8) % WINDOW == slot:
                self.acked[value >> 8] = value & 0xFF
            elif stored:
                self.bad_words.append(cursors.ACKED_RING + slot)
            attempts = words[cursors.ATTEMPTS_RING + slot]
            if attempts and (attempts >> 8) % WINDOW != slot:
                self.bad_words.append(cursors.ATTEMPTS_RING + slot)
        self.taken, self.base, self.credit = values

    def base_by_ring(self) -> int:
        """`acked_base` as the ring of verdicts proves it: of a full ring the oldest number is exactly one window behind the next."""
        return cursors.base_by_ring(self.acked)

    def is_finalised(self, seq: int) -> bool:
        return seq <= self.base or seq in self.acked


def _read(path: str) -> bytes:
    fd = open_private(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.pread(fd, PAGE + 1, 0)
    finally:
        os.close(fd)


def check_cursor(facts: CursorFacts, place: str, lock: str, first_stored: int) -> Iterator[Finding]:
    """What is wrong inside a cursor that is a whole page. `first_stored`: the first number whose segment still exists."""
    names = {cursors.TAKEN: "taken", cursors.ACKED_BASE: "acked_base", cursors.CREDIT: "credit"}
    for index in facts.bad_words:
        what = names.get(index) or (
            "a slot of the ring of verdicts" if index < cursors.ATTEMPTS_RING else "a count of attempts"
        )
        yield Finding(
            DAMAGE, place, f"{what} is damaged (word {index} of the cursor)", remedy="derive it from the ring and the segments",
            lock=lock, cure=lambda: rebuild_words(facts.path, first_stored),
        )  # fmt: skip
    if not facts.bad_words and not facts.base <= facts.taken:
        yield Finding(
            DAMAGE, place, f"acked_base {facts.base:,} is beyond taken {facts.taken:,}", remedy="raise taken to acked_base",
            lock=lock, cure=lambda: rebuild_words(facts.path, first_stored),
        )  # fmt: skip


def rebuild_words(path: str, first_stored: int) -> None:
    """Make every word of a cursor valid. What cannot be derived is taken as not finalised: it is delivered again, never skipped."""
    facts = CursorFacts(path)
    if facts.lane_id is None:
        return
    bad = set(facts.bad_words)
    base = facts.base if cursors.ACKED_BASE not in bad else max(facts.base_by_ring(), first_stored - 1)
    taken = max(facts.taken, base, max(facts.acked, default=0))
    fd = open_private(path, os.O_RDWR)
    try:
        # The base first: a slot that is wiped below must not be needed to derive it.
        for index, value in ((cursors.ACKED_BASE, base), (cursors.TAKEN, taken)):
            write_all(fd, word(value).to_bytes(8, "little"), index * 8)
        if cursors.CREDIT in bad:  # none until the recipient grants it when it opens the lane
            write_all(fd, word(base).to_bytes(8, "little"), cursors.CREDIT * 8)
        for index in bad - {cursors.ACKED_BASE, cursors.TAKEN, cursors.CREDIT}:
            write_all(fd, bytes(8), index * 8)
    finally:
        os.close(fd)


def replace_cursor(path: str, lane_id: bytes | None, base: int) -> None:
    """A new cursor in which numbers up to `base` are finalised; without a lane id the file only goes, and the recipient makes one."""
    if lane_id is None or base <= 0:
        os.unlink(path)
        return
    page = bytearray(PAGE)
    head = page_header(cursors.MAGIC, lane_id)
    page[: len(head)] = head
    for index in (cursors.TAKEN, cursors.ACKED_BASE, cursors.CREDIT):
        page[index * 8 : index * 8 + 8] = word(base).to_bytes(8, "little")
    temporary = Path(path).with_name(f"tmp-fsck-{os.getpid()}")
    write_private(temporary, bytes(page))
    os.rename(temporary, path)


def orphan(place: str, path: str, lock: str) -> Finding:
    """A cursor of a lane that is not there (any more): normal after an outbox was removed."""
    return Finding(
        NOTICE,
        place,
        "the lane of this cursor does not exist",
        remedy="remove it",
        lock=lock,
        cure=lambda: os.unlink(path),
    )
