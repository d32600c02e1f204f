"""An append log in the segment format, for one writer without a peer: the coordinator's event log."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from muster.bus.transports.lanes import outlane
from muster.bus.transports.lanes.inspect import frames_of
from muster.bus.transports.lanes.segment import SegmentWriter, list_segments
from muster.bus.transports.lanes.words import PAGE, allocate, lane_id_of, page_header
from muster.core.codec import CHECKSUM_KEY, TAG_BYTES, digest
from muster.security.permissions import make_private_dir, read_private

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

RESERVE_BYTES = 256 << 10


class AppendLog:
    """Records in order, each whole or absent. One process may hold it at a time (the coordinator has its inbox lock).

    A reserve file is allocated beside the segments: `release_reserve` frees it when the store is full, so that what was accepted can
    still be recorded and drained.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create. Raises UnsafePermissionsError, CorruptStoreError, OSError (no room for the first page)."""
        make_private_dir(directory)
        self._directory = directory
        page = directory / "lane"
        lane_id: bytes | None = None
        with contextlib.suppress(FileNotFoundError):
            lane_id = lane_id_of(read_private(page)[:32], outlane.MAGIC)
        if lane_id is None:
            lane_id = os.urandom(16)
            temporary = directory / f"tmp-lane-{os.getpid()}"
            os.close(allocate(str(temporary), PAGE, page_header(outlane.MAGIC, lane_id)))
            os.rename(temporary, page)
        self._lane_id = lane_id
        self._writer = SegmentWriter(str(directory), lane_id)
        self._reserve = directory / "reserve"
        self.restore_reserve()

    @property
    def last_seq(self) -> int:
        return self._writer.next_seq - 1

    def append(self, records: Sequence[bytes]) -> int:
        """Append; the number of the last one. Each record is visible once its commit word is stored.

        Raises:
            StoreFullError: The records before the failing one stand, it and those behind it do not; `last_seq` tells how far it came.
        """
        writer = self._writer
        for record in records:
            writer.settle()
            writer.commit(record + digest(CHECKSUM_KEY, record))
        return writer.next_seq - 1

    def replay(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """(number, record) of every whole record behind number `after`, oldest first. A damaged record ends the replay."""
        return _records(str(self._directory), self._lane_id, after)

    def drop_before(self, seq: int) -> None:
        """Unlink whole segments whose records all lie before `seq` (a snapshot holds them)."""
        self._writer.reclaim(seq - 1)

    def release_reserve(self) -> bool:
        """Free the reserve so that the next append finds room. False if it was gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._reserve.unlink()
            return True
        return False

    def restore_reserve(self) -> bool:
        """Allocate the reserve again once there is room. True if it stands."""
        try:
            if self._reserve.exists():
                if self._reserve.stat().st_size == RESERVE_BYTES:
                    return True
                self._reserve.unlink()  # of a process that died while it made it
            os.close(allocate(str(self._reserve), RESERVE_BYTES, b""))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._writer.close()


def read_records(directory: Path, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """What `AppendLog.replay` yields, without taking the log: nothing is written, and its writer may be at work meanwhile.

    Raises:
        FileNotFoundError: There is no log.
        UnsafePermissionsError, CorruptStoreError: It cannot be read.
    """
    lane_id = lane_id_of(read_private(directory / "lane")[:32], outlane.MAGIC)
    return iter(()) if lane_id is None else _records(str(directory), lane_id, after)


def _records(directory: str, lane_id: bytes, after: int) -> Iterator[tuple[int, bytes]]:
    firsts = list_segments(directory)
    for at, first in enumerate(firsts):
        if at + 1 < len(firsts) and firsts[at + 1] <= after + 1:
            continue
        for seq, content in frames_of(directory, lane_id, first):
            record = content[:-TAG_BYTES]
            if digest(CHECKSUM_KEY, record) != content[-TAG_BYTES:]:
                return
            if seq > after:
                yield seq, record
