"""Segments: the files frames stand in, and the writer that appends to them (rules S and F of docs/lane-format.md)."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes.words import NO_ROOM, VERSION, allocate, barrier, check_version
from muster.core import limits
from muster.errors import CorruptStoreError, OutboxFullError, StoreFullError
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC: Final = b"MUSTSEG1"
HEADER_BYTES: Final = 64
DATA, SEAL = 1, 2

_HEADER: Final = struct.Struct("<8s16sQQII")
_CHECKED: Final = struct.Struct("<QIB")
_pack_checked = _CHECKED.pack
_crc32 = zlib.crc32
#: A drained lane's segments stay below this; only a backlog makes them larger.
CALM_BYTES_MAX: Final = 64 << 10


def commit_word(lane_crc: int, seq: int, length: int, kind: int) -> int:
    """The word that makes a frame visible; `lane_crc` is the CRC-32 of the lane id."""
    return ((_crc32(_pack_checked(seq, length, kind), lane_crc) & 0xFFFF) << 48) | (kind << 32) | length


def padded(length: int) -> int:
    return (length + 7) & ~7


def segment_name(first_seq: int) -> str:
    return f"{first_seq:020d}.seg"


def list_segments(directory: str) -> list[int]:
    """First numbers of the segments in `directory`, ascending; [] if there is no such directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name[:20]) for name in names if len(name) == 24 and name.endswith(".seg") and name[:20].isdigit())


def parse_header(header: bytes) -> tuple[bytes, int, int] | None:
    """(lane id, first seq, size), or None if these bytes are no whole segment header. Raises StoreVersionError."""
    if len(header) < _HEADER.size:
        return None
    magic, lane_id, first_seq, size, check, version = _HEADER.unpack_from(header)
    if magic != MAGIC or check != _crc32(header[:40]):
        return None
    check_version(version, "a segment")
    return lane_id, first_seq, size


def _whole_pages(length: int) -> int:
    """Bytes of the smallest segment that holds a frame of `length` and the word behind it."""
    return (HEADER_BYTES + 8 + padded(length) + 8 + 4095) & ~4095


class SegmentWriter:
    """Appends frames to one directory. Exactly one process may hold it (the caller has the lock).

    `settle()` gives the next number, `commit()` makes a frame with that number visible. A death between the two, or anywhere inside
    `commit`, leaves the frame whole or invisible.
    """

    def __init__(self, directory: str, lane_id: bytes, has_room: Callable[[int], bool] | None = None) -> None:
        """`has_room` is asked before a segment of so many bytes is allocated: the quotas of whoever writes here."""
        self._directory = directory
        self._has_room = has_room
        self._lane_id = lane_id
        self._crc = _crc32(lane_id)
        self._map: mmap.mmap | None = None
        self._words: memoryview = memoryview(b"").cast("B")
        self._at = 0
        self._size = 0
        self._first = 1
        self._inode = 0
        self.next_seq = 1
        #: (first number, last number, bytes) of sealed segments that still exist, oldest first.
        self.sealed: list[tuple[int, int, int]] = []
        self._sealed_tail = False
        self.backlog = 0  # messages not acked, told by the owner; steers the size of the next segment
        self._open_existing()

    def frames(self, *, newest_only: bool = False) -> Iterator[tuple[int, memoryview]]:
        """(number, content) of every committed frame that still exists, or of those in the newest segment; read from our own files."""
        firsts = list_segments(self._directory)
        for first in firsts[-1:] if newest_only else firsts:
            with contextlib.ExitStack() as stack:
                fd = open_private(f"{self._directory}/{segment_name(first)}", os.O_RDONLY)
                stack.callback(os.close, fd)
                data = os.pread(fd, os.fstat(fd).st_size, 0)
            parsed = parse_header(data)
            if parsed is None or parsed[0] != self._lane_id:
                continue
            at, seq = HEADER_BYTES, first
            view = memoryview(data)
            while at + 8 <= len(data):
                stored = int.from_bytes(data[at : at + 8], "little")
                length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
                if stored == 0 or kind != DATA or stored != commit_word(self._crc, seq, length, kind):
                    break
                yield seq, view[at + 8 : at + 8 + length]
                at += 8 + padded(length)
                seq += 1

    def _open_existing(self) -> None:
        for name in os.listdir(self._directory):
            if name.startswith("tmp-"):  # a crash between making and renaming; only our side writes here
                os.unlink(f"{self._directory}/{name}")
        previous: int | None = None
        for first in list_segments(self._directory):
            if self._is_foreign(first):  # of the lane that ours replaced: a crash came before it was unlinked
                os.unlink(f"{self._directory}/{segment_name(first)}")
                continue
            if previous is not None:
                self.sealed.append((previous, first - 1, self._size))
            self._attach(first)
            previous = first
        if self._map is not None:
            self.settle()

    def _is_foreign(self, first: int) -> bool:
        fd = open_private(f"{self._directory}/{segment_name(first)}", os.O_RDONLY)
        try:
            parsed = parse_header(os.pread(fd, HEADER_BYTES, 0))
        finally:
            os.close(fd)
        return parsed is not None and parsed[0] != self._lane_id

    def _attach(self, first: int) -> None:
        fd = open_private(f"{self._directory}/{segment_name(first)}", os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            parsed = parse_header(os.pread(fd, HEADER_BYTES, 0))
            if parsed is None or parsed[0] != self._lane_id or parsed[2] != size:
                raise CorruptStoreError(
                    f"segment {segment_name(first)} of {self._directory} is damaged", path=self._directory
                )
            mapped = mmap.mmap(fd, size)
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        self._use(mapped, size, first, inode)

    def _use(self, mapped: mmap.mmap, size: int, first: int, inode: int) -> None:
        self._unmap()
        self._map, self._size = mapped, size
        self._words = memoryview(mapped).cast("Q")
        self._at, self.next_seq, self._sealed_tail = HEADER_BYTES, first, False
        self._inode = inode
        self._first = first

    def _unmap(self) -> None:
        if self._map is not None:
            self._words.release()
            self._map.close()
            self._map = None

    def settle(self) -> int:
        """The number the next frame gets.

        Walks on while the word at the cached tail is non-zero: an earlier call may have committed and been interrupted (a signal
        handler that raised) before it moved the tail; overwriting a committed frame would lose it.
        """
        if self._map is not None and not self._sealed_tail and self._words[self._at >> 3]:
            self._walk_on()
        return self.next_seq

    def _walk_on(self) -> None:
        while stored := self._words[self._at >> 3]:
            length, kind = stored & 0xFFFFFFFF, (stored >> 32) & 0xFF
            if stored != commit_word(self._crc, self.next_seq, length, kind):
                raise CorruptStoreError(
                    f"commit word {self.next_seq} of {self._directory} is damaged", path=self._directory
                )
            if kind == SEAL:
                self._sealed_tail = True
                return
            self._at, self.next_seq = self._at + 8 + padded(length), self.next_seq + 1

    def commit(self, content: bytes) -> int:
        """Make `content` visible as frame `next_seq`, and return that number. `settle()` must have been called.

        Raises:
            StoreFullError: No room for another segment; nothing was written and nothing was sealed.
        """
        length = len(content)
        at = self._at
        end = at + 8 + ((length + 7) & ~7)
        # Every frame leaves eight bytes for the next commit word (or the seal).
        if end + 8 > self._size or self._sealed_tail:
            self._roll(length)
            at = self._at
            end = at + 8 + ((length + 7) & ~7)
        self._put(at, end, content)
        seq = self.next_seq
        self._at, self.next_seq = end, seq + 1  # together: `settle` heals an interruption before both, not between them
        return seq

    def _put(self, at: int, end: int, content: bytes) -> None:
        """The frame `next_seq` at `at`; the word at `end` will be the next commit word."""
        words, length = self._words, len(content)
        words[end >> 3] = 0  # whatever stood there must not be read as a commit
        self._map[at + 8 : at + 8 + length] = content  # type: ignore[index]
        checked = _crc32(_pack_checked(self.next_seq, length, DATA), self._crc) & 0xFFFF
        barrier()
        words[at >> 3] = checked << 48 | DATA << 32 | length  # the commit instant: one store

    def sync(self) -> int:
        """The highest number that survives what this store is to survive: processes only, so all of them."""
        return self.next_seq - 1

    def _seal(self, first: int) -> None:
        """Say at the tail that `first` stands in the next segment."""
        self._words[self._at >> 3] = commit_word(self._crc, first, 0, SEAL)
        self._sealed_tail = True

    def _allocate(self, path: str, first: int, size: int, length: int) -> tuple[int, int]:
        """A prepared segment of `size` bytes, or of the least that holds the frame if the store has no more; (descriptor, size)."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # our own, of a call that was interrupted
        least = max(limits.SEGMENT_BYTES_FIRST, _whole_pages(length))
        for wanted in dict.fromkeys((size, least)):
            if self._has_room is not None and not self._has_room(wanted):
                continue
            header = _HEADER.pack(MAGIC, self._lane_id, first, wanted, 0, 0)[:40]
            header += struct.pack("<II", _crc32(header), VERSION)
            try:
                return allocate(path, wanted, header), wanted
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
        if self._has_room is not None and not self._has_room(least):
            raise OutboxFullError(
                f"another {least:,} bytes of segments exceed what this sender may have stored and unacked",
                retry_after_s=limits.INBOX_FULL_RETRY_S,
                path=self._directory,
            )
        raise StoreFullError(
            f"the store has no room for another {least:,} bytes",
            retry_after_s=limits.STORE_FULL_RETRY_S,
            path=self._directory,
        )

    def drop_all(self) -> None:
        """Seal and unlink every segment: only when each of their frames is finalised, and only to make room in a full store.

        The lane is then sealed without a successor, which readers take for "not yet"; numbers go on where they were.
        """
        if self._map is None:
            return
        if not self._sealed_tail:
            self._seal(self.next_seq)
        self.reclaim(self.next_seq - 1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{segment_name(self._first)}")
        self._unmap()
        self._size = 0

    def _next_size(self, length: int) -> int:
        calm = self.backlog < 64
        grown = (
            min(self._size * 2, CALM_BYTES_MAX if calm else limits.SEGMENT_BYTES_MAX)
            if self._size
            else limits.SEGMENT_BYTES_FIRST
        )
        return max(grown, limits.SEGMENT_BYTES_FIRST, _whole_pages(length))

    def _roll(self, length: int) -> None:
        """Prepare the new segment, seal the old one, then rename: in this order no reader can wait in the wrong file."""
        first = self.next_seq
        if self._sealed_tail and self._adopt_successor(first):
            return
        temporary = f"{self._directory}/tmp-{os.getpid()}-{first}"
        fd, size = self._allocate(temporary, first, self._next_size(length), length)
        try:
            populate = mmap.MAP_POPULATE if hasattr(mmap, "MAP_POPULATE") and size <= CALM_BYTES_MAX else 0
            mapped = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | populate)
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        if self._map is not None and not self._sealed_tail:
            self._seal(first)
        self._rename(temporary, first)
        self._note_sealed(first)
        self._use(mapped, size, first, inode)

    def _rename(self, temporary: str, first: int) -> None:
        os.rename(temporary, f"{self._directory}/{segment_name(first)}")

    def _note_sealed(self, first: int) -> None:
        if (
            self._map is not None and first > self._first
        ):  # an empty one was replaced by the rename: it has the same name
            self.sealed.append((self._first, first - 1, self._size))

    def _adopt_successor(self, first: int) -> bool:
        """Use a successor that exists already: an earlier roll was interrupted after its rename. Replacing it would strand its readers."""
        try:
            inode = os.stat(f"{self._directory}/{segment_name(first)}", follow_symlinks=False).st_ino
        except FileNotFoundError:
            return False
        if inode == self._inode:  # the current one, empty and sealed
            return False
        self._note_sealed(first)
        self._attach(first)
        self.settle()
        return True

    def reclaim(self, acked_base: int) -> bool:
        """Unlink sealed segments whose every frame is finalised. `acked_base` was read twice by the caller. True if any went."""
        gone = False
        acked_base = min(acked_base, self.next_seq - 1)
        while self.sealed and self.sealed[0][1] <= acked_base:
            first = self.sealed.pop(0)[0]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._directory}/{segment_name(first)}")
            gone = True
        return gone

    @property
    def held_bytes(self) -> int:
        """Bytes of segments that exist."""
        return self._size + sum(size for _first, _last, size in self.sealed)

    def close(self) -> None:
        self._unmap()
