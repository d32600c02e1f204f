"""Walking a segment without trusting it: every frame, every gap, and how it ends."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from muster.bus.transports.lanes.segment import DATA, HEADER_BYTES, MAGIC, SEAL, commit_word, padded
from muster.bus.transports.lanes.words import VERSION
from muster.core.codec import LANE_ID_AT, SEQ_AT
from muster.core.ids import show_id

#: Stands where a commit word stood that is lost for good, put there by a repair. It is no commit word, so readers step over it by the
#: rule for damage; a later check knows by it that the loss has been told.
LOST_MARK: Final = int.from_bytes(b"MUSTLOST", "little")
_ID_AT: Final = SEQ_AT + 8


class Frame(NamedTuple):
    seq: int
    at: int
    content: bytes


class Gap(NamedTuple):
    """Numbers without a frame, between two frames or the first of them; `at`: where the word of `first` should be."""

    first: int
    last: int
    at: int
    marked: bool
    message_id: str | None


class End(NamedTuple):
    """How the segment ends: `open` (the next frame goes here), `seal`, `damaged`, `marked`, or `cut` (the file is too short)."""

    how: str
    seq: int
    at: int
    message_id: str | None = None


def walk(data: bytes, lane_id: bytes, first: int) -> Iterator[Frame | Gap | End]:
    """What stands in a segment whose first number is `first`; always ends with an `End`."""
    crc, at, seq = zlib.crc32(lane_id), HEADER_BYTES, first
    while True:
        if at + 8 > len(data):
            yield End("cut", seq, at)
            return
        stored = int.from_bytes(data[at : at + 8], "little")
        length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
        valid = stored == commit_word(crc, seq, length, kind)
        if valid and kind == SEAL:
            yield End("seal", seq, at)
            return
        if valid and kind == DATA and at + 8 + length <= len(data):
            yield Frame(seq, at, data[at + 8 : at + 8 + length])
            at, seq = at + 8 + padded(length), seq + 1
            continue
        found = _next_frame(data, lane_id, crc, at + 8, seq)
        marked, known = stored == LOST_MARK, id_at(data, at, lane_id, seq)
        if found is not None:
            yield Gap(seq, found[1] - 1, at, marked, known)
            at, seq = found
            continue
        cut = valid and kind == DATA
        yield End("open" if stored == 0 else "marked" if marked else "cut" if cut else "damaged", seq, at, known)
        return


def _next_frame(data: bytes, lane_id: bytes, crc: int, start: int, seq: int) -> tuple[int, int] | None:
    """(offset, number) of the next frame whose word, lane id and number agree."""
    found = data.find(lane_id, start + 8 + LANE_ID_AT)
    while found >= 0:
        at = found - 8 - LANE_ID_AT
        number = int.from_bytes(data[at + 8 + SEQ_AT : at + 16 + SEQ_AT], "little")
        stored = int.from_bytes(data[at : at + 8], "little")
        if at % 8 == 0 and number >= seq and stored == commit_word(crc, number, stored & 0xFFFFFFFF, DATA):
            return at, number
        found = data.find(lane_id, found + 1)
    return None


def id_at(data: bytes, at: int, lane_id: bytes, seq: int) -> str | None:
    """The id of the message that stood here, if its header is still to be seen."""
    content = data[at + 8 : at + 8 + _ID_AT + 16]
    if len(content) < _ID_AT + 16 or content[LANE_ID_AT:SEQ_AT] != lane_id:
        return None
    if int.from_bytes(content[SEQ_AT:_ID_AT], "little") != seq:
        return None
    return show_id(content[_ID_AT:])


def segment_header(lane_id: bytes, first: int, size: int) -> bytes:
    """The first bytes of a segment, as docs/lane-format.md has them."""
    head = MAGIC + lane_id + struct.pack("<QQ", first, size)
    return head + struct.pack("<II", zlib.crc32(head), VERSION)
