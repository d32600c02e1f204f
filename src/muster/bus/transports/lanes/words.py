"""Words: eight aligned bytes that one side stores and the other reads, and the pages they stand in.

Numbers in brackets refer to docs/lane-format.md. Publishing is always one store through `memoryview.cast("Q")`: CPython makes it a single
`mov`, whereas `struct.pack_into` writes zeros first, which a reader or a SIGKILL could see.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
import zlib
from typing import Final

from muster.core import limits
from muster.errors import CorruptStoreError, MusterError, StoreError, StoreFullError, StoreVersionError
from muster.security.permissions import open_private

#: What is written, and what can be read. A reader of version 1 would take what a durable store does not promise yet.
VERSION: Final = 2
READABLE: Final = (1, 2)
PAGE: Final = 4096
#: What the operating system says when a store is full.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})
VALUE_MAX: Final = (1 << 48) - 1

CHECK_FACTOR: Final = 0x9E3779B97F4A7C15
MASK_64: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<8s16sII")


class _OfThread(threading.local):
    """A lock of each thread's own, held except inside `barrier`: nobody else can be in its way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()


_own = _OfThread()


def barrier() -> None:
    """A full memory barrier: releasing, then taking, a private lock is an atomic read-modify-write on every supported processor.

    In this order: taking and then releasing would let later loads move up on weakly ordered ones.
    """
    lock = _own.lock
    try:
        lock.release()
    except RuntimeError:
        # A signal handler raised between the two steps of an earlier call, or runs between them now and calls this.
        lock.acquire(False)
        lock.release()
    lock.acquire(False)  # never waits: only such a handler, in this very thread, can have taken it already


def word(value: int) -> int:
    """`value` (48 bits) with its check, as stored."""
    return (value << 16) | ((((value + 1) * CHECK_FACTOR) & MASK_64) >> 48)


def value_of(stored: int) -> int | None:
    """The value, or None if the check does not hold: torn, never written, or damaged. Read again before believing the worst."""
    value = stored >> 16
    return value if ((((value + 1) * CHECK_FACTOR) & MASK_64) >> 48) == stored & 0xFFFF else None


def check_version(version: int, what: str) -> None:
    """Raises StoreVersionError for a format that this code does not read."""
    if version not in READABLE:
        raise StoreVersionError(
            f"{what} has lane format version {version}; this muster reads versions {READABLE[0]} to {READABLE[-1]}",
            version=version,
        )


def page_header(magic: bytes, lane_id: bytes) -> bytes:
    head = magic + lane_id
    return head + struct.pack("<II", zlib.crc32(head), VERSION)


def lane_id_of(header: bytes, magic: bytes) -> bytes | None:
    """The lane id in a page's first 32 bytes, or None if this is no whole page of that kind.

    Raises:
        StoreVersionError: It is, but of a version this code does not read.
    """
    if len(header) < _HEADER.size:
        return None
    found, lane_id, check, version = _HEADER.unpack_from(header)
    if found != magic or check != zlib.crc32(header[:24]):
        return None
    check_version(version, "the store")
    return bytes(lane_id)


class Page:
    """A mapped page of our own: only the owner's side ever maps it for writing."""

    def __init__(self, path: str) -> None:
        """Raises CorruptStoreError: the file is no whole page."""
        fd = open_private(path, os.O_RDWR)
        try:
            if os.fstat(fd).st_size != PAGE:
                raise CorruptStoreError(
                    f"{path} is not {PAGE} bytes long; muster fsck --repair makes it whole", path=path
                )
            self._map = mmap.mmap(fd, PAGE)
        finally:
            os.close(fd)
        self.words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self.words.release()
        self._map.close()


def refusal(error: OSError, what: str) -> MusterError:
    """An error of the operating system as one of ours: no room (StoreFullError), or anything else (StoreError)."""
    if error.errno in NO_ROOM:
        return StoreFullError(f"the store has no room: {what}", retry_after_s=limits.STORE_FULL_RETRY_S)
    return StoreError(f"{what}: {error.strerror or error}", errno=error.errno)


def write_all(fd: int, data: bytes, at: int) -> None:
    """`pwrite` of everything: the kernel may write less than it was given. Raises OSError."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def allocate(path: str, size: int, content: bytes) -> int:
    """A new private file of `size` allocated bytes starting with `content`; returns its descriptor (read-write).

    `posix_fallocate` reserves every page now: on a full store this call fails cleanly, and no later store can hit a hole (SIGBUS).

    Raises:
        OSError: ENOSPC, EDQUOT and the like; the file was removed again.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        write_all(fd, content, 0)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd
