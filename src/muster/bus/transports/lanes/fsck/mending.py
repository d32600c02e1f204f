"""What repairs do to a sender's files. The caller holds the outbox lock; every step leaves the lane as good as it was or better."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

from muster.bus.transports.lanes import locks, outlane
from muster.bus.transports.lanes.deadletters import letter_path, store_letter
from muster.bus.transports.lanes.fsck.walk import LOST_MARK, Frame, segment_header
from muster.bus.transports.lanes.segment import HEADER_BYTES, SEAL, commit_word, segment_name
from muster.bus.transports.lanes.words import PAGE, allocate, page_header, word, write_all
from muster.core import limits
from muster.core.message import Message
from muster.errors import IdentityBusyError, StoreFullError
from muster.security.permissions import open_private


def new_page(directory: str, lane_id: bytes, *, durable: int) -> None:
    """The lane page with this id; of its words only `durable` says anything."""
    words = (0, 0, durable, 0)  # floor, released, durable, want
    content = page_header(outlane.MAGIC, lane_id) + b"".join(word(value).to_bytes(8, "little") for value in words)
    _place(f"{directory}/lane", PAGE, content)


def set_word(directory: str, index: int, value: int) -> None:
    """One word of the lane page."""
    _write(f"{directory}/lane", index * 8, word(value).to_bytes(8, "little"))


def new_segment(directory: str, lane_id: bytes, first: int, *, lost: bool = False) -> None:
    """An empty segment, or with `lost` one that holds nothing but the mark. One that exists is left alone."""
    path = f"{directory}/{segment_name(first)}"
    if os.path.lexists(path):
        return
    size = limits.SEGMENT_BYTES_FIRST
    content = segment_header(lane_id, first, size).ljust(HEADER_BYTES, b"\0")
    _place(path, size, content + (LOST_MARK.to_bytes(8, "little") if lost else b""))


def write_header(directory: str, lane_id: bytes, first: int) -> None:
    """A segment's header as its name and size say, in place. A file too short for any frame gets room for one mark."""
    path = f"{directory}/{segment_name(first)}"
    size = os.stat(path, follow_symlinks=False).st_size
    wanted = max(HEADER_BYTES + 8, size & ~7)
    if wanted != size:
        os.truncate(path, wanted)
    _write(path, 0, segment_header(lane_id, first, wanted))


def mark_lost(directory: str, first: int, at: int) -> None:
    """Put the mark where a commit word should stand. A file that was cut there grows by it, and its header is then written anew."""
    _write(f"{directory}/{segment_name(first)}", at, LOST_MARK.to_bytes(8, "little"))


def write_seal(directory: str, lane_id: bytes, first: int, at: int, following: int) -> None:
    """Seal a segment at `at`; `following` is the first number of the next."""
    seal = commit_word(zlib.crc32(lane_id), following, 0, SEAL)
    _write(f"{directory}/{segment_name(first)}", at, seal.to_bytes(8, "little"))


def keep_as_letter(inbox: str, cursor_path: str, lane_id: bytes, names: tuple[str, str], frame: Frame) -> None:
    """Keep a frame that cannot be delivered among its recipient's dead letters, as the recipient itself would.

    Raises:
        IdentityBusyError: The recipient lives: it does so itself.
        StoreFullError: There is no room; the frame stays where it is.
    """
    lock = f"{os.path.dirname(inbox)}/inbox.lock"
    if not locks.acquire(lock):
        raise IdentityBusyError("the recipient lives, and sets the frame aside itself when it reads it")
    try:
        letter = Message(names[0], names[1], "forged", frame.content)
        letter.content, letter.seq = 0, frame.seq
        lane = os.path.basename(cursor_path).removesuffix(".cursor")
        path = letter_path(inbox, lane, lane_id, frame.seq)
        if not store_letter(path, letter, reason="the tag does not fit", attempts=0):
            raise StoreFullError("the store has no room for the dead letter")
    finally:
        locks.release(lock)


def _place(path: str, size: int, content: bytes) -> None:
    temporary = f"{os.path.dirname(path)}/tmp-fsck-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.close(allocate(temporary, size, content))
    os.rename(temporary, path)


def _write(path: str, at: int, content: bytes) -> None:
    fd = open_private(Path(path), os.O_RDWR)
    try:
        write_all(fd, content, at)
    finally:
        os.close(fd)
