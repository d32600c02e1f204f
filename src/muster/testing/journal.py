"""Journals: what one process did on the bus, written so cheaply that it can be done for every message, and whole up to a SIGKILL.

A journal is a mapped file of 32-byte records. A record belongs to one operation: it is stored before the operation begins and its state is
moved on, by one store, when the operation returns. What a killed process was doing can therefore be read off its last records. A folder of
journals is a history, which `muster.testing.history` checks.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = b"MUSTJRN1"
HEADER: Final = struct.Struct("<8sQ16s32x")
RECORD_WORDS: Final = 4
#: Size of a new journal: a sparse file costs what was written; it doubles when it is full.
JOURNAL_BYTES_FIRST: Final = 256 << 10
NAMES_FILE: Final = "agents.json"
SUFFIX: Final = ".journal"

# Kinds of records: the lowest byte of the first word, stored last, so that a record is there wholly or not at all.
TENURE, CLOSING, SEND, DELIVERY, LETTER = 1, 2, 3, 4, 5
# States, in the second byte. Of a send: begun, then stored or refused.
BEGUN, STORED, REFUSED = 1, 2, 3
# Of a delivery: in hand, then one pair of "begun" (even) and "returned" (odd).
IN_HAND, ACKING, ACKED, NACKING, NACKED, RELEASING, RELEASED, KILLING, KILLED = 1, 2, 3, 4, 5, 6, 7, 8, 9
# Flags, in the fourth byte.
WAITS, CONTROL = 1, 2

_STATE_MASK: Final = ~0xFF00
_MASK_64: Final = (1 << 64) - 1
_BODY: Final = struct.Struct("<QI")


def body_of(number: int, size: int = _BODY.size) -> bytes:
    """A body of at least 12 bytes that names its message and shows any damage."""
    tail = (number.to_bytes(8, "little") * (size // 8))[: max(0, size - _BODY.size)]
    return _BODY.pack(number, zlib.crc32(tail, number & 0xFFFFFFFF)) + tail


def number_of(body: object) -> int:
    """The number in a body made by `body_of`; 0 if it is not whole."""
    if not isinstance(body, bytes) or len(body) < _BODY.size:
        return 0
    number, check = _BODY.unpack_from(body)
    return int(number) if zlib.crc32(memoryview(body)[_BODY.size :], number & 0xFFFFFFFF) == check else 0


def fold(raw_id: bytes) -> int:
    """A message id of 16 bytes as one word: equal ids fold to equal words, and ids of one process differ if their folds do."""
    value = int.from_bytes(raw_id, "little")
    return (value ^ (value >> 64)) & _MASK_64


def create_history(directory: Path, agents: Sequence[str]) -> Path:
    """Make the folder of a history of these agents. The parent must exist."""
    directory.mkdir(exist_ok=True)
    (directory / NAMES_FILE).write_text(json.dumps(list(agents)), encoding="ascii")
    return directory


class Journal:
    """One process's. `lane` gives the word under which the records of a lane are written; the other calls are the hot path.

    Numbers identify messages: unique in the history and never 0. `new_number` makes them.
    """

    def __init__(self, directory: Path, incarnation: int, role: str = "") -> None:
        """Create the journal of process number `incarnation` (unique in the history, below 2^24).

        Raises:
            FileExistsError: That number has a journal already.
        """
        names = json.loads((directory / NAMES_FILE).read_text(encoding="ascii"))
        self._agents = {name: at for at, name in enumerate(names)}
        self._numbers = incarnation << 32
        path = directory / f"{incarnation:08d}{SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, HEADER.pack(MAGIC, incarnation, role.encode()[:16]), 0)  # there wholly or not at all
            os.ftruncate(fd, JOURNAL_BYTES_FIRST)
            self._map = mmap.mmap(fd, JOURNAL_BYTES_FIRST)
        finally:
            os.close(fd)
        self._use()
        self._at = HEADER.size // 8

    def _use(self) -> None:
        self._words = memoryview(self._map).cast("Q")
        self._end = len(self._words)

    def _grow(self) -> None:
        self._words.release()
        self._map.resize(len(self._map) * 2)
        self._use()

    def new_number(self) -> int:
        """A number for the next message."""
        self._numbers += 1
        return self._numbers

    def lane(self, agent: str, peer: str, *, control: bool = False) -> int:
        """The word for what `agent` does on its lane to or from `peer`. Raises KeyError for a name outside the history."""
        return (CONTROL if control else 0) << 24 | self._agents[agent] << 32 | self._agents[peer] << 48

    def _append(self, head: int, seq: int, number: int, folded: int) -> int:
        at = self._at
        if at + RECORD_WORDS > self._end:
            self._grow()
        words = self._words
        words[at + 1] = seq
        words[at + 2] = number
        words[at + 3] = folded
        words[at] = head
        self._at = at + RECORD_WORDS
        return at

    def opened(self, agent: str) -> None:
        """`agent` is ours from here on. Call it when the bus is open, before anything is sent or received."""
        self._append(TENURE | self._agents[agent] << 32, 0, time.monotonic_ns(), 0)

    def closing(self, agent: str) -> None:
        """Call it before the bus of `agent` is closed: what is in hand will be given back and count no attempt."""
        self._append(CLOSING | self._agents[agent] << 32, 0, time.monotonic_ns(), 0)

    def send_begun(self, lane: int, number: int, *, waits: bool = False) -> int:
        """A send is about to begin; `waits` if it may wait for room. The place that the outcome is told with."""
        return self._append(lane | SEND | BEGUN << 8 | (WAITS if waits else 0) << 24, 0, number, 0)

    def send_stored(self, place: int, seq: int, raw_id: bytes) -> None:
        """The send returned: the message was accepted as number `seq` of its lane."""
        words = self._words
        words[place + 1] = seq
        words[place + 3] = fold(raw_id)
        words[place] = (words[place] & _STATE_MASK) | STORED << 8

    def send_refused(self, place: int) -> None:
        """The send raised: nothing was stored."""
        self.moved(place, REFUSED)

    def received(self, lane: int, seq: int, attempt: int, number: int, raw_id: bytes) -> int:
        """A delivery is in hand. `number` is `number_of` its body."""
        return self._append(lane | DELIVERY | IN_HAND << 8 | attempt << 16, seq, number, fold(raw_id))

    def moved(self, place: int, state: int) -> None:
        """A delivery's (or send's) record goes on to `state`: ACKING before the ack, ACKED when it returned, and so on."""
        self._words[place] = (self._words[place] & _STATE_MASK) | state << 8

    def letter(self, lane: int, seq: int, number: int, raw_id: bytes) -> None:
        """A dead letter that stands in the recipient's inbox at the end of the history."""
        self._append(lane | LETTER, seq, number, fold(raw_id))

    def close(self) -> None:
        self._words.release()
        self._map.close()


class Entry(NamedTuple):
    """A journal as it is read: its process's number and role, and its words from the first record on."""

    incarnation: int
    role: str
    words: memoryview


def journals(directory: Path) -> list[Path]:
    """Every journal of a history, by incarnation."""
    return sorted(directory.glob(f"*{SUFFIX}"))


@contextlib.contextmanager
def opened_journal(path: Path) -> Iterator[Entry]:
    """Map a journal for reading; the words end behind the last record. One whose process died while it made it is empty.

    Raises:
        ValueError: The file is no journal.
    """
    if path.stat().st_size == 0:
        with memoryview(b"").cast("Q") as nothing:
            yield Entry(int(path.name.removesuffix(SUFFIX)), "", nothing)
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        magic, incarnation, role = HEADER.unpack_from(mapped)
        if magic != MAGIC:
            raise ValueError(f"{path} is no journal")
        with memoryview(mapped) as view, view.cast("Q") as words:
            first, count = HEADER.size // 8, 0
            low, high = 0, max(0, len(words) - first) // RECORD_WORDS
            while low < high:  # records are written in order: the first empty one is found by halving
                count = (low + high) // 2
                if words[first + count * RECORD_WORDS]:
                    low = count + 1
                else:
                    high = count
            with words[first : first + low * RECORD_WORDS] as records:
                yield Entry(incarnation, role.rstrip(b"\0").decode(), records)
