"""Before a store is used: does this file system keep what the lane protocol stands on?"""

from __future__ import annotations

import mmap
import os
import sys
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes.words import PAGE, allocate, value_of, word
from muster.errors import StoreTooSmallError, StoreUnsuitableError

if TYPE_CHECKING:
    from pathlib import Path

#: File systems on which stores and reads of different processes are not coherent, or locks and FIFOs do not work.
REFUSED = frozenset(
    {
        "9p",
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "drvfs",
        "fuse",
        "fuseblk",
        "ceph",
        "lustre",
        "afs",
        "virtiofs",
        "vboxsf",
    }
)


#: File systems that forget everything when the machine goes down.
VOLATILE: Final = frozenset({"tmpfs", "ramfs"})


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`, or "unknown" where the system does not tell (macOS)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            lines = table.readlines()
    except OSError:
        return "unknown"
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = "unknown"
    real = os.path.realpath(path)
    longest = -1
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        point = fields[4]
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if right and inside and (fields[2] == wanted or longest < 0) and len(point) > longest:
            found, longest = right.split()[0], len(point)
    return found


def check(directory: Path, *, room_bytes: int = 1 << 20) -> None:
    """Try on `directory` what lanes need: real allocation, a store seen by `pread`, a FIFO, a record lock, and room.

    Raises:
        StoreUnsuitableError: The file system is of a refused kind, or one of these does not work.
        StoreTooSmallError: There is less than `room_bytes` free.
    """
    if sys.maxsize < 2**32:
        raise StoreUnsuitableError("muster needs a 64-bit Python: words are stored with one instruction")
    kind = filesystem_of(directory)
    if kind in REFUSED or kind.startswith("fuse."):
        raise StoreUnsuitableError(
            f"{directory} is on {kind}, where processes do not see each other's writes in time; choose a local disk or tmpfs",
            filesystem=kind,
        )
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if free < room_bytes:
        raise StoreTooSmallError(
            f"{directory} has {free >> 10:,} KiB free, this fleet needs at least {room_bytes >> 10:,} KiB",
            free_bytes=free,
        )
    _try_it(directory, kind)


def _try_it(directory: Path, kind: str) -> None:
    token = f"{directory}/tmp-probe-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        fd = allocate(token, PAGE, b"")
        try:
            with mmap.mmap(fd, PAGE) as mapped, memoryview(mapped) as view, view.cast("Q") as words:
                words[1] = word(12345)
                seen = value_of(int.from_bytes(os.pread(fd, 8, 8), "little"))
            os.lockf(fd, os.F_TLOCK, 0)
        finally:
            os.close(fd)
            os.unlink(token)
        os.mkfifo(token, 0o600)
        os.unlink(token)
    except OSError as error:
        raise StoreUnsuitableError(
            f"{directory} ({kind}) cannot hold a store: {error.strerror}", filesystem=kind
        ) from None
    if seen != 12345:
        raise StoreUnsuitableError(f"{directory} ({kind}) does not show a mapped store to a reader", filesystem=kind)
