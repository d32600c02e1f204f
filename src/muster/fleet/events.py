"""What `muster watch` follows: the coordinator's event log, read from outside while it is written.

A place in it is `RECORD-FACT`: the number of a record and of a fact in it, both from 1. A reader that resumes behind the last place it saw
gets every fact once, whatever died in between; what a snapshot has replaced meanwhile is told as a gap.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from muster.bus.transports.lanes import outlane
from muster.bus.transports.lanes.segment import (
    DATA,
    HEADER_BYTES,
    SEAL,
    commit_word,
    list_segments,
    padded,
    parse_header,
    segment_name,
)
from muster.bus.transports.lanes.words import lane_id_of
from muster.coordinator.events import AnyFact, TasksSubmitted
from muster.core.codec import CHECKSUM_KEY, TAG_BYTES, digest
from muster.errors import ConfigError, CorruptStoreError, FleetNotRunningError, StoreVersionError
from muster.security.permissions import open_private, read_private

#: Looks at a silent log: at first soon, then ever more rarely up to every quarter of a second.
LOOK_FIRST_S, LOOK_MAX_S = 0.02, 0.25
#: A record that does not verify is read again: it may have been half copied when it was read.
READS_MAX = 5

_decoder: msgspec.msgpack.Decoder[list[AnyFact]] = msgspec.msgpack.Decoder(list[AnyFact])
_PLACE = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,9}))?", re.ASCII)
_WORDS = re.compile(r"[A-Z][a-z]*")


class Place(NamedTuple):
    """Behind which fact of which record; `fact` None: behind all of the record."""

    record: int = 0
    fact: int | None = None


def parse_place(text: str) -> Place:
    """`12-3`, or `12` for the end of record 12. Raises ConfigError."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ConfigError(f"--after: {text!r:.60} is not the `seq` of an event, such as 12-3", key="after")
    return Place(int(found[1]), None if found[2] is None else int(found[2]))


class LogReader:
    """Reads records in order as they are committed, with `pread` alone. The writer never notices."""

    def __init__(self, log: Path, after: int) -> None:
        """Begin behind record `after`. Raises FleetNotRunningError: no coordinator ever wrote a log here."""
        self._log = str(log)
        self.next_seq = after + 1
        self._fd, self._at, self._seq = -1, 0, 0
        try:
            lane_id = lane_id_of(read_private(log / "lane")[:32], outlane.MAGIC)
        except (FileNotFoundError, NotADirectoryError):
            lane_id = None
        if lane_id is None:
            raise FleetNotRunningError(
                "this fleet has no event log: no coordinator has run in it, so there is nothing to watch",
                store=str(log.parent.parent),
            )
        self._lane_id, self._crc = lane_id, zlib.crc32(lane_id)

    def read(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, record) of what is new; (number, None) for a gap that ends before `number`. Raises CorruptStoreError."""
        while True:
            if self._fd < 0:
                before = self.next_seq
                if not self._open():
                    return
                if self.next_seq > before:
                    yield self.next_seq, None
            stored = int.from_bytes(os.pread(self._fd, 8, self._at), "little")
            length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
            if stored == 0:
                return
            if kind == SEAL and stored == commit_word(self._crc, self._seq, 0, SEAL):
                if not self._has_successor():
                    return
                self.close()
                continue
            raw = self._record(stored, length, kind)
            seq, self._at, self._seq = self._seq, self._at + 8 + padded(length), self._seq + 1
            if seq >= self.next_seq:
                self.next_seq = seq + 1
                yield seq, raw

    def _open(self) -> bool:
        """The segment that holds `next_seq`, or the first behind it when that is gone. False while there is none."""
        firsts = list_segments(self._log)
        first = max((one for one in firsts if one <= self.next_seq), default=min(firsts, default=0))
        if not first:
            return False
        try:
            fd = open_private(f"{self._log}/{segment_name(first)}", os.O_RDONLY)
        except FileNotFoundError:
            return False
        parsed = parse_header(os.pread(fd, HEADER_BYTES, 0))
        if parsed is None or parsed[0] != self._lane_id:
            os.close(fd)
            raise CorruptStoreError(
                f"segment {segment_name(first)} of the event log is damaged; see `muster fsck`", path=self._log
            )
        self._fd, self._at, self._seq = fd, HEADER_BYTES, first
        self.next_seq = max(self.next_seq, first)
        return True

    def _has_successor(self) -> bool:
        """Whether a sealed segment has one. An empty one that was sealed is not its own, though its successor takes its name."""
        try:
            return os.stat(f"{self._log}/{segment_name(self._seq)}").st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return any(first > self._seq for first in list_segments(self._log))

    def _record(self, stored: int, length: int, kind: int) -> bytes:
        for _ in range(READS_MAX):
            if kind == DATA and stored == commit_word(self._crc, self._seq, length, DATA):
                content = os.pread(self._fd, length, self._at + 8)
                if digest(CHECKSUM_KEY, content[:-TAG_BYTES]) == content[-TAG_BYTES:]:
                    return content[:-TAG_BYTES]
            time.sleep(0.001)
            stored = int.from_bytes(os.pread(self._fd, 8, self._at), "little")
            length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
        raise CorruptStoreError(f"record {self._seq:,} of the event log is damaged; see `muster fsck`", path=self._log)

    def close(self) -> None:
        """Let go of the file; the next read opens what it needs."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def last_record(log: Path) -> int:
    """The number of the newest record. Raises as `LogReader`."""
    firsts = list_segments(str(log))
    reader = LogReader(log, firsts[-1] - 1 if firsts else 0)
    try:
        for _ in reader.read():
            pass
    finally:
        reader.close()
    return reader.next_seq - 1


def follow(log: Path, after: Place, *, ended: Callable[[], bool] | None) -> Iterator[dict[str, Any] | None]:
    """Events behind a place, oldest first, then as they happen until `ended()`; None for `ended`: only what is there.

    An event is `seq`, `at`, `event` and its facts. None is given whenever there is nothing more to show for now.

    Raises:
        FleetNotRunningError, CorruptStoreError, StoreVersionError: The log is not there, damaged, or of another version.
    """
    # Without a fact's number the whole record was seen; with one, the record is read again from its middle on.
    reader = LogReader(log, after.record if after.fact is None else max(0, after.record - 1))
    pause_s = LOOK_FIRST_S
    try:
        while True:
            last = ended is None or ended()
            expected = reader.next_seq
            for seq, raw in reader.read():
                pause_s = LOOK_FIRST_S
                if raw is None:
                    if after.record or expected > 1:
                        yield {"seq": f"{seq - 1}", "at": None, "event": "log.gap", "first": expected, "last": seq - 1}
                else:
                    skip = after.fact or 0 if seq == after.record else 0
                    yield from _events(seq, raw, skip)
                expected = reader.next_seq
            yield None
            if last:
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LOOK_MAX_S)
    finally:
        reader.close()


def _events(record: int, raw: bytes, skip: int) -> Iterator[dict[str, Any]]:
    try:
        facts = _decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise StoreVersionError(f"the event log cannot be read by this version: {error}") from None
    for at, fact in enumerate(facts[skip:], skip + 1):
        yield {"seq": f"{record}-{at}", **describe(fact)}


def describe(fact: AnyFact) -> dict[str, Any]:
    """A fact as plain data. Inputs of tasks are left out: they may be large, and are their owner's business."""
    words = _WORDS.findall(type(fact).__name__)
    name = ".".join(word.lower() for word in (words if len(words) > 1 else ["coordinator", *words]))
    told = {field: msgspec.to_builtins(getattr(fact, field)) for field in fact.__struct_fields__ if field != "at_s"}
    if isinstance(fact, TasksSubmitted):
        told["tasks"] = [task.number for task in fact.tasks]
    at = datetime.fromtimestamp(fact.at_s, UTC).isoformat(timespec="milliseconds")
    return {"at": at, "event": name, **told}
