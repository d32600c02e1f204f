"""One lane as its recipient sees it: read, verify, take, finalise (rules C and R of docs/lane-format.md).

A reader trusts nothing: it never maps a peer's file, a failed check is read again before it counts as damage, and nothing is parsed
before its tag was verified.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import layout, locks, outlane
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
from muster.bus.transports.lanes.words import barrier, lane_id_of, value_of
from muster.core.codec import CONTENT_BYTES_MAX, LANE_ID_AT, SEQ_AT, decode_frame
from muster.core.message import FrameError
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from pathlib import Path

    from muster.core.message import Message
    from muster.security.keys import Keyring

CHUNK_FIRST: Final = 4 << 10
CHUNK_MORE: Final = 64 << 10
#: Identical bytes in this many reads, spread over at least a millisecond, are damage; anything less is a write in progress.
READS_BEFORE_DAMAGE: Final = 3
_READ_AGAIN_S: Final = 0.0006


#: A `_visible` that hides nothing.
ALL: Final = 1 << 48
#: Bits of a commit word that no kind uses.
_NO_KIND: Final = 0xFF << 40
_word_at = struct.Struct("<Q").unpack_from
_pack_checked = struct.Struct("<QIB").pack
_crc32 = zlib.crc32


class Recipient(NamedTuple):
    """What all lanes into one inbox have in common."""

    store: Path
    agent: str
    keyring: Keyring
    shelf: cursors.CursorShelf
    durable: bool


class DamagedLaneError(Exception):
    """Bytes that stay wrong. `forged_end` is where the next frame stands if only the tag is wrong, else None."""

    def __init__(self, reason: str, *, forged_end: int | None = None, content: bytes = b"") -> None:
        super().__init__(reason)
        self.forged_end = forged_end  # where the next frame stands if only the tag is wrong
        self.content = content


class InLane:
    """Reads one lane in order. `take` semantics are the transport's; this class finds the next whole frame and remembers where it is."""

    __slots__ = (
        "_at", "_buffer", "_buffer_at", "_crc", "_fd", "_first", "_key", "_lane_id", "_names", "_outbox_lock", "_page_fd", "_peeked",
        "_shelf", "_visible", "_want_seen", "base_checked", "blocked", "control", "cursor", "directory", "fruitful", "name", "next_seq",
        "segment_ends", "sender", "sender_bell", "swept_ns", "used", "want",
    )  # fmt: skip

    def __init__(self, me: Recipient, sender: str, *, control: bool) -> None:
        self.sender = sender
        self.control = control
        self.name = layout.lane_name(sender, control=control)
        base = layout.agent_dir(me.store, sender)
        self.directory = f"{base}/outbox/{layout.lane_name(me.agent, control=control)}"
        self.sender_bell = f"{base}/bell"
        self._outbox_lock = f"{base}/outbox.lock"
        self._names = (sender, me.agent)
        self._key = me.keyring.verify_key(sender)
        self._shelf = me.shelf
        self.cursor: cursors.Cursor | None = None
        self.next_seq = 1
        self.fruitful = False  # whether this turn of the lane gave a message
        self.blocked = False  # the window is full: an ack makes the lane ready again
        #: Last numbers of sealed segments read past; acking one is news for the sender.
        self.segment_ends: deque[int] = deque()
        self.base_checked = 0  # the last `acked_base` for which this process finished the ack bell's check
        self.want = 0  # the sender's `want` word, as last seen
        self._want_seen = b""
        self.swept_ns = 0  # made ready by the sweep, not by a bell: what is older than this is the sweep's find
        self.used = 0  # when it last left the ready set, in turns of the inbox: idle lanes are closed
        #: Highest number that may be taken: in a durable store what is on the disk, else anything.
        self._visible = 0 if me.durable else ALL
        self._peeked: Message | None = None
        self._lane_id = b""
        self._crc = 0
        self._fd = -1
        self._first = 0
        self._page_fd = -1
        self._at = 0
        self._buffer = b""
        self._buffer_at = 0

    # ------------------------------------------------------------------ opening

    def open(self) -> bool:
        """Find the lane and our cursor of it. False while there is nothing to read yet. Raises OSError if no cursor can be had."""
        try:
            page_fd = open_private(f"{self.directory}/lane", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            lane_id = lane_id_of(os.pread(page_fd, 32, 0), outlane.MAGIC)
        except BaseException:
            os.close(page_fd)
            raise
        if lane_id is None:
            os.close(page_fd)
            return False
        self.close()
        self._page_fd = page_fd
        self._lane_id, self._crc = lane_id, zlib.crc32(lane_id)
        if self._visible != ALL:
            self._visible = 0
        self.cursor = self._shelf.open(self.name, lane_id)
        self.next_seq = self.cursor.acked_base + 1
        return True

    def reopen_if_replaced(self) -> bool:
        """At a silent tail: an unlinked page or segment means that the sender began anew. True if there is reason to read again."""
        if self._page_fd >= 0 and os.fstat(self._page_fd).st_nlink == 0:
            self.close()
            return True
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:  # replaced after an interrupted roll
            self.seek_again()
            return True
        return False

    def seek_again(self) -> None:
        """Forget where `next_seq` stands; the next read finds it anew by path."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._buffer, self._buffer_at = b"", 0
        self._peeked = None

    def _open_segment(self) -> bool:
        """Open the segment that holds `next_seq` and walk to it. False if it is not there (yet)."""
        firsts = self._segments_up_to_next()
        if not firsts or not self._attach(firsts[-1]):
            return False
        # Walk to next_seq by commit words. They were committed long ago; a check that fails is handled by the reading loop later.
        seq = firsts[-1]
        while seq < self.next_seq:
            stored = int.from_bytes(os.pread(self._fd, 8, self._at), "little")
            length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
            if kind != DATA or stored != commit_word(self._crc, seq, length, kind):
                found = self._search(seq)
                if found is None or found[1] > self.next_seq:
                    raise DamagedLaneError(
                        "damaged"
                    )  # it reaches to `next_seq`; what is lost is counted by whoever heals
                self._at, seq = found
                continue
            self._at += 8 + padded(length)
            seq += 1
        return True

    def _segments_up_to_next(self) -> list[int]:
        """Segments that may hold `next_seq`. Raises DamagedLaneError if only later ones exist, in several listings."""
        for _ in range(READS_BEFORE_DAMAGE):
            present = list_segments(self.directory)
            firsts = [first for first in present if first <= self.next_seq]
            if firsts or not present:
                return firsts
            time.sleep(_READ_AGAIN_S)
        raise DamagedLaneError("the segment of the next message is missing")

    def _attach(self, first: int) -> bool:
        try:
            fd = open_private(f"{self.directory}/{segment_name(first)}", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            parsed = parse_header(os.pread(fd, HEADER_BYTES, 0))
        except BaseException:
            os.close(fd)
            raise
        if parsed is None or parsed[0] != self._lane_id or parsed[1] != first:
            os.close(fd)
            return False
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._at, self._first = fd, HEADER_BYTES, first
        self._buffer, self._buffer_at = b"", HEADER_BYTES
        return True

    # ------------------------------------------------------------------ reading

    def read(self) -> Message | None:
        """The frame `next_seq`, verified, or None at a silent tail. The caller has published `taken` before it believes the None.

        Raises:
            DamagedLaneError: The bytes stay wrong; nothing was consumed.
        """
        if self._peeked is not None:
            message, self._peeked = self._peeked, None
            return message
        while True:
            if self._fd < 0 and not self._open_segment():
                return None
            at = self._at - self._buffer_at
            buffer = self._buffer
            stored = _word_at(buffer, at)[0] if at + 8 <= len(buffer) else 0
            if stored == 0:
                # Rule B's last look: after `taken` was published, and with bytes read now.
                barrier()
                more = CHUNK_MORE if at > CHUNK_FIRST // 2 else CHUNK_FIRST
                buffer = self._buffer = os.pread(self._fd, more, self._at)
                self._buffer_at, at = self._at, 0
                stored = int.from_bytes(buffer[:8], "little")
                if stored == 0:
                    if len(buffer) < 8:
                        raise DamagedLaneError("the segment ends without a seal")
                    return None
            length, kind, seq = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF, self.next_seq
            if (
                stored >> 48 != _crc32(_pack_checked(seq, length, kind), self._crc) & 0xFFFF
                or length > CONTENT_BYTES_MAX
                or stored & _NO_KIND
            ):
                return self._read_again()
            if kind == SEAL:
                if not self._next_segment():
                    return None
                continue
            if seq > self._visible and not self._is_durable(seq):
                return None
            end = at + 8 + length
            content = buffer[at + 8 : end] if end <= len(buffer) else os.pread(self._fd, length, self._at + 8)
            try:
                message = decode_frame(content, self._lane_id, seq, self._key, self._names)
            except FrameError:
                return self._read_again()
            self._at += 8 + ((length + 7) & ~7)
            return message

    def peek(self) -> Message | None:
        """What `read` would give, which then gives it once more. Raises DamagedLaneError."""
        if self._peeked is None:
            self._peeked = self.read()
        return self._peeked

    def _is_durable(self, seq: int) -> bool:
        """Durable stores: whether the sender has said that `seq` is on the disk, or we make sure ourselves because it died before."""
        value = value_of(int.from_bytes(os.pread(self._page_fd, 8, outlane.DURABLE * 8), "little"))
        if value is not None and value > self._visible:
            self._visible = value
        if seq <= self._visible:
            return True
        if locks.holder(self._outbox_lock) is not None:
            return False  # it is about to say so, and to ring
        os.fdatasync(self._fd)
        self._visible = seq
        return True

    def _next_segment(self) -> bool:
        """Past a seal. A sealed segment without a successor means "not yet" (rule S)."""
        barrier()  # rule B's last look, as before every fresh read
        old = os.fstat(self._fd)
        end = self.next_seq - 1
        name = f"{self.directory}/{segment_name(self.next_seq)}"
        try:
            if (
                os.stat(name, follow_symlinks=False).st_ino == old.st_ino
            ):  # an empty segment, sealed; its successor takes its name
                return False
        except FileNotFoundError:
            return False
        if not self._attach(self.next_seq):
            return False
        self.segment_ends.append(end)
        return True

    def _read_again(self) -> Message | None:
        """A check failed. Read word and bytes apart, and again, until they verify, vanish, or stay the same wrong bytes."""
        seen: list[tuple[bytes, bytes]] = []
        self._buffer, self._buffer_at = b"", self._at
        for _ in range(READS_BEFORE_DAMAGE * 20):
            head = os.pread(self._fd, 8, self._at)
            stored = int.from_bytes(head, "little")
            if stored == 0 and len(head) == 8:
                return None
            length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
            content, forged = b"", False
            if (
                kind == DATA
                and length <= CONTENT_BYTES_MAX
                and stored == commit_word(self._crc, self.next_seq, length, kind)
            ):
                content = os.pread(self._fd, length, self._at + 8)
                try:
                    message = decode_frame(content, self._lane_id, self.next_seq, self._key, self._names)
                except FrameError as error:
                    forged = len(content) == length and error.forged
                else:
                    self._at += 8 + padded(length)
                    return message
            elif kind == SEAL and stored == commit_word(self._crc, self.next_seq, length, kind):
                return self.read()
            if seen and seen[-1] != (head, content):
                seen.clear()
            seen.append((head, content))
            if len(seen) >= READS_BEFORE_DAMAGE:
                end = self._at + 8 + padded(length) if content and len(content) == length else None
                raise DamagedLaneError(
                    "forged" if forged else "damaged", forged_end=end if forged else None, content=content
                )
            time.sleep(_READ_AGAIN_S)
        return None

    def skip_forged(self, damage: DamagedLaneError) -> None:
        """Step over a frame whose shape is right but whose tag is not."""
        if damage.forged_end is not None:
            self._at = damage.forged_end
            self._buffer, self._buffer_at = b"", self._at

    def resume_after_damage(self) -> int | None:
        """Find the next whole frame behind the damage, in this segment or a later one; its number, or None if there is none yet."""
        found = self._search(self.next_seq) if self._fd >= 0 else None
        if found is not None:
            self._at, seq = found
            self._buffer, self._buffer_at = b"", self._at
            return seq
        # A damaged seal: the next segment begins with the very number that is looked for.
        current = self._first if self._fd >= 0 else 0
        later = [first for first in list_segments(self.directory) if first >= self.next_seq and first != current]
        if later and self._attach(later[0]):
            return later[0]
        return None

    def _search(self, from_seq: int) -> tuple[int, int] | None:
        """(offset, number) of the first frame with number >= from_seq behind `_at` whose word, lane id and number agree."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        for at in range(self._at + 8, len(data) - 8 - SEQ_AT - 8, 8):
            if data[at + 8 + LANE_ID_AT : at + 8 + SEQ_AT] != self._lane_id:
                continue
            seq = int.from_bytes(data[at + 8 + SEQ_AT : at + 16 + SEQ_AT], "little")
            stored = int.from_bytes(data[at : at + 8], "little")
            if seq >= from_seq and stored == commit_word(self._crc, seq, stored & 0xFFFFFFFF, DATA):
                return at, seq
        return None

    def sender_wants(self) -> int:
        """The sender's `want` word: ring once that number is finalised. 0 for none, -1 if it cannot be read: then ring, to be safe."""
        for _ in range(3):
            stored = os.pread(self._page_fd, 8, outlane.WANT * 8)
            if stored == self._want_seen:
                return self.want
            value = value_of(int.from_bytes(stored, "little"))
            if value is not None:
                self._want_seen, self.want = stored, value
                return value
        return -1

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is in hand, so that it may be closed and opened again when it rings."""
        return not self.blocked and (self.cursor is None or self.cursor.taken == self.cursor.acked_base)

    def close(self) -> None:
        for fd in (self._fd, self._page_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._page_fd = -1
        self._buffer, self._buffer_at = b"", 0
        self._peeked, self._want_seen = None, b""
        if self.cursor is not None:
            self.cursor.close()
            self.cursor = None
        self.segment_ends.clear()
        self.blocked, self.base_checked = False, 0
