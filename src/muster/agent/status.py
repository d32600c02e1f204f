"""The status page: one page per agent that says how it is, written by its owner, read by anyone of the same user.

`agents/<id>/status` is 4 KiB of 64-bit words, each `value << 16 | check16(index, value)`. The owner maps the page and publishes a word by
one aligned 8-byte store, so a word is old or new, never half. A reader maps nothing (a shrinking file would be SIGBUS) and trusts
nothing: it checks owner, mode, type and size, every word's check, and that both ends of the page name the same start of the owner.
A page is a statement of its owner, never a proof of life: proofs are the kernel's (pidfd, reaped children).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muster.errors import UnsafePermissionsError

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES = 4096
#: Values have 48 bits: milliseconds for 8,900 years, bytes for 280 TB.
VALUE_MAX = (1 << 48) - 1

STATES = ("absent", "starting", "ready", "busy", "waiting", "limited", "draining", "stopped")
VERDICTS = ("unknown", "healthy", "degraded", "unhealthy")

#: Word 0 and the last word name the format and the start of the owner; a page is whole only if the two starts are equal.
_MAGIC = 0x6D75_7374_6572  # "muster"
_FIELDS = (
    "magic", "start", "state", "verdict", "heartbeat_ms", "started_ms", "pid", "start_time", "incarnation", "task", "attempt", "child_pid",
    "child_start_time", "running", "done", "failed", "progress_ms", "pss_bytes", "fds", "loop_lag_us", "inbox_depth", "start_again",
)  # fmt: skip
_AT = {name: index for index, name in enumerate(_FIELDS)}
_WORDS = struct.Struct(f"={len(_FIELDS)}Q")
_READS_MAX = 3


def boottime_ms() -> int:
    """Milliseconds since boot, counting sleep: heartbeats of every process of the machine are on this clock."""
    return (
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic_ns() // 1_000_000
    )


def _check16(index: int, value: int) -> int:
    # Multiplicative hashing (Knuth, TAOCP 6.4): every bit of the value reaches the upper 16 bits; the index makes words unswappable,
    # the constant makes a word of zeros invalid.
    return ((value ^ (index << 40) ^ 0x5A5A_1234) * 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF) >> 48


def _word(index: int, value: int) -> int:
    return value << 16 | _check16(index, value)


@dataclass(frozen=True, slots=True)
class StatusPage:
    """What an agent said last. Times are `boottime_ms()`; 0 stands for none in `task`, `attempt`, `child_pid` and `pss_bytes`."""

    state: str
    verdict: str
    heartbeat_ms: int
    started_ms: int
    pid: int
    #: Clock ticks after boot (/proc/PID/stat field 22); with it a pid is unambiguous.
    start_time: int
    incarnation: int
    task: int
    attempt: int
    child_pid: int
    child_start_time: int
    #: Attempts that run here now.
    running: int
    done: int
    failed: int
    #: When an attempt last began or ended: busy without progress is how a wedge looks.
    progress_ms: int
    pss_bytes: int
    fds: int
    loop_lag_us: int
    inbox_depth: int

    def heartbeat_age_s(self) -> float:
        """Seconds since the last heartbeat."""
        return max(0, boottime_ms() - self.heartbeat_ms) / 1000


class StatusWriter:
    """The owner's side of one agent's page. `set` costs one store; nothing here blocks or allocates after the start."""

    def __init__(self, path: Path) -> None:
        """Open the page, making it if there is none.

        A page that is there is written over in place, so that an agent also restarts when the store is full.

        Raises:
            UnsafePermissionsError: The path is a link, somebody else's, open to others, or no page; it was not touched.
            OSError: The store has no room for a new page.
        """
        fd = _open_page(path)
        try:
            self._map = mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
        self._bytes = memoryview(self._map)
        # Stores through a cast view are single aligned 8-byte writes; struct.pack_into would zero the word first.
        self._words = self._bytes.cast("Q")
        self._values = [-1] * len(_FIELDS)

    def begin(self, **values: int) -> None:
        """Start a new life of the page: every field is zero but `values`. A reader sees the old page, the new one, or none."""
        start = (self._words[_AT["start"]] >> 16) + 1 & VALUE_MAX
        self._store(_AT["start"], start)  # the two ends differ now: readers see no page
        for name in _FIELDS[2:-1]:
            self._store(_AT[name], values.get(name, 0))
        self._store(_AT["magic"], _MAGIC)
        self._store(_AT["start_again"], start)

    def set(self, name: str, value: int) -> None:
        """Publish one field; values out of range are clamped."""
        index = _AT[name]
        if self._values[index] != value:
            self._store(index, value)

    def state(self, name: str) -> None:
        """Publish the state, one of `STATES`."""
        self.set("state", STATES.index(name))

    def verdict(self, name: str) -> None:
        """Publish the agent's own verdict, one of `VERDICTS`."""
        self.set("verdict", VERDICTS.index(name))

    def beat(self) -> None:
        """Publish a heartbeat."""
        self._store(_AT["heartbeat_ms"], boottime_ms())

    def close(self) -> None:
        """Unmap the page; it stays as the agent's last words."""
        self._words.release()
        self._bytes.release()
        self._map.close()

    def _store(self, index: int, value: int) -> None:
        value = min(max(int(value), 0), VALUE_MAX)
        self._values[index] = value
        self._words[index] = _word(index, value)


def _open_page(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return _open_checked(path, os.O_RDWR)
    temporary = path.with_name("status.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # left by a crash: the identity's owner, which we are, is the only writer here
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        _allocate(fd)
        os.rename(temporary, path)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    return fd


def _allocate(fd: int) -> None:
    # Allocated, not only extended: a store through the map into a hole of a full tmpfs would be SIGBUS.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, PAGE_BYTES)
    else:
        os.write(fd, bytes(PAGE_BYTES))


def _open_checked(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UnsafePermissionsError(
            f"{path} cannot be used as a status page: {error.strerror}", path=str(path)
        ) from None
    found = os.fstat(fd)
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_uid != os.geteuid()
        or found.st_mode & 0o077
        or found.st_size != PAGE_BYTES
    ):
        os.close(fd)
        raise UnsafePermissionsError(f"{path} is no status page of this user", path=str(path))
    return fd


def read_status(store: Path, agent: str) -> StatusPage | None:
    """The status page of `agent` in `store`; None if there is none that can be believed as a whole.

    `agent` must be a checked id. Costs about 20 µs and never blocks.
    """
    try:
        fd = _open_checked(store / "agents" / agent / "status", os.O_RDONLY)
    except (FileNotFoundError, UnsafePermissionsError):
        return None
    try:
        for _ in range(_READS_MAX):
            # pread promises neither atomic words nor their order: what does not check is read again before it counts as damage.
            page = os.pread(fd, _WORDS.size, 0)
            values = _decode(page) if len(page) == _WORDS.size else None
            if values is not None:
                return _page(values)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _decode(page: bytes) -> dict[str, int] | None:
    values: dict[str, int] = {}
    for index, word in enumerate(_WORDS.unpack(page)):
        value = word >> 16
        if word & 0xFFFF != _check16(index, value):
            return None
        values[_FIELDS[index]] = value
    if values["magic"] != _MAGIC or values["start"] != values["start_again"]:
        return None
    if values["state"] >= len(STATES) or values["verdict"] >= len(VERDICTS):
        return None
    return values


def _page(values: dict[str, int]) -> StatusPage:
    rest = {name: values[name] for name in _FIELDS[4:-1]}
    return StatusPage(STATES[values["state"]], VERDICTS[values["verdict"]], **rest)
