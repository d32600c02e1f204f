"""Segments that survive a power cut (rule D of docs/lane-format.md): written with `pwrite`, and accepted once they are on the disk.

Memory mode stores frames into a mapping and lets the kernel write them back whenever it likes, in any order. Here every frame is written by
a call whose error is seen, `sync` waits for the disk, and only then may the recipient take it and the sender be told "stored".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from muster.bus.transports.lanes.segment import DATA, HEADER_BYTES, SEAL, SegmentWriter, commit_word, segment_name
from muster.bus.transports.lanes.words import write_all
from muster.errors import StoreError
from muster.security.permissions import open_private, sync_path

if TYPE_CHECKING:
    import mmap
    from pathlib import Path


def sync_directories(path: str, top: Path) -> None:
    """Sync `path` and every directory from its own up to `top`: a new name survives only if its parent, too, was written."""
    sync_path(path)
    directory = os.path.dirname(path)
    while True:
        sync_path(directory)
        if directory == str(top) or len(directory) <= len(str(top)):
            return
        directory = os.path.dirname(directory)


class Pending(NamedTuple):
    """A sync that has begun: wait for `fd`, then tell `DurableWriter.end_sync`."""

    fd: int
    last: int
    error: OSError | None = None

    def wait(self) -> Pending:
        """Block until the disk has it, or has refused; in any thread. The descriptor is closed."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            return self._replace(error=error)
        finally:
            os.close(self.fd)
        return self


class DurableWriter(SegmentWriter):
    """A SegmentWriter whose frames count only once they are synced.

    After a failed fsync the kernel calls the pages clean although they are not on the disk. So whatever is not known to be there, because a
    sync failed or because an earlier process left it, is written anew before the next attempt.
    """

    _fd = -1
    _is_doubtful = False
    durable_seq = 0

    def _use(self, mapped: mmap.mmap, size: int, first: int, inode: int) -> None:
        super()._use(mapped, size, first, inode)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = open_private(f"{self._directory}/{segment_name(first)}", os.O_RDWR)
        self._is_doubtful = True

    def _put(self, at: int, end: int, content: bytes) -> None:
        length = len(content)
        write_all(self._fd, content + bytes(end - at - 8 - length) + bytes(8), at + 8)
        write_all(self._fd, commit_word(self._crc, self.next_seq, length, DATA).to_bytes(8, "little"), at)

    def _roll(self, length: int) -> None:
        self.sync()  # the old segment is left for good
        super()._roll(length)
        if self._at == HEADER_BYTES:  # made by us just now, and written whole
            self._is_doubtful = False

    def _seal(self, first: int) -> None:
        write_all(self._fd, commit_word(self._crc, first, 0, SEAL).to_bytes(8, "little"), self._at)
        self._sealed_tail = True
        # Before its successor gets a name: a reader would wait for ever at a tail that a power cut has unsealed.
        self._is_doubtful = True
        self.sync()

    def _rename(self, temporary: str, first: int) -> None:
        try:
            sync_path(temporary)
            super()._rename(temporary, first)
            sync_path(self._directory)
        except OSError as error:
            raise _refused(error, self._directory) from None

    def begin_sync(self) -> Pending | None:
        """Begin to write everything committed so far to the disk. None if it is there."""
        last = self.next_seq - 1
        if self._fd < 0 or (last <= self.durable_seq and not self._is_doubtful):
            return None
        if self._is_doubtful:
            assert self._map is not None
            end = self._at + 8  # with the seal, if there is one
            write_all(self._fd, self._map[:end], 0)
        return Pending(os.dup(self._fd), last)

    def end_sync(self, pending: Pending) -> int:
        """Take note of how it ended; the highest number that is on the disk.

        Raises:
            StoreError: The disk refused; the numbers above `durable_seq` are not accepted.
        """
        if pending.error is not None:
            self._is_doubtful = True
            raise _refused(pending.error, self._directory)
        self._is_doubtful = False
        self.durable_seq = max(self.durable_seq, pending.last)
        return self.durable_seq

    def sync(self) -> int:
        """`begin_sync` and `end_sync` at once. Raises StoreError."""
        pending = self.begin_sync()
        if pending is not None:
            return self.end_sync(pending.wait())
        self.durable_seq = self.next_seq - 1
        return self.durable_seq

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refused(error: OSError, directory: str) -> StoreError:
    return StoreError(f"the disk refused to keep what was sent: {error.strerror}", path=directory)
