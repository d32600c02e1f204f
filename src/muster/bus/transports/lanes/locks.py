"""Record locks: who consumes an inbox, who sends as an agent. The kernel releases them at death, whatever was forked meanwhile.

POSIX record locks, not flock: a flock outlives its SIGKILLed owner while a forked child lives. Their traps are met here and nowhere else:
closing *any* descriptor of the file drops the lock, and one process may lock the same file twice. So this module alone opens lock files,
keeps one registry per process, and never unlinks them; a fork inherits no lock and starts with an empty registry.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time

from muster.security.permissions import open_private

_held: dict[tuple[int, int], int] = {}  # (device, inode) -> descriptor
_asked_by: dict[tuple[int, int], str] = {}  # the same -> the path it was taken by
_by_path: dict[str, list[tuple[int, int]]] = {}  # more than one where the file was removed and made anew
_guard = threading.Lock()
#: How often this process is a fork of one that had loaded this module: whoever opened something before has lost its locks.
forks = 0
# struct flock on 64-bit Linux: short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid
_FLOCK = struct.Struct("hhqqi4x")
_POLL_S = 0.005


def _after_fork() -> None:
    global _guard, forks
    _guard = threading.Lock()
    forks += 1
    for fd in _held.values():  # closing here drops nothing: locks belong to the parent process
        os.close(fd)
    _held.clear()
    _asked_by.clear()
    _by_path.clear()


os.register_at_fork(after_in_child=_after_fork)


def _key(path: str) -> tuple[int, int] | None:
    """The file behind `path`: one file has many spellings, and its lock is one."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def acquire(path: str, *, wait_s: float = 0.0) -> bool:
    """Take the lock of `path` for this process, waiting up to `wait_s`. False if another process, or this one already, holds it."""
    deadline = time.monotonic() + wait_s
    while True:
        with _guard:
            if _try_lock(path):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _try_lock(path: str) -> bool:
    if _key(path) in _held:  # opening it a second time would drop the lock when that descriptor is closed
        return False
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.fstat(fd)
        key = (locked.st_dev, locked.st_ino)
        if _key(path) != key:  # removed or replaced between opening and locking: this lock guards nothing
            os.close(fd)
            return False
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return False
    except BaseException:
        os.close(fd)
        raise
    _held[key] = fd
    _asked_by[key] = path
    _by_path.setdefault(path, []).append(key)
    return True


def release(path: str) -> None:
    """Give the lock back. Releasing one that is not held changes nothing."""
    with _guard:
        # First a lock whose file was removed below us, by the path it was taken by: what stands there now may be another one's.
        gone = [key for key in _by_path.get(path, ()) if os.fstat(_held[key]).st_nlink == 0]
        standing = _key(path)
        for key in gone or ([standing] if standing is not None else []):
            if key in _held:
                os.close(_held.pop(key))
                _forget_path(_asked_by.pop(key), key)


def _forget_path(path: str, key: tuple[int, int]) -> None:
    _by_path[path].remove(key)
    if not _by_path[path]:
        del _by_path[path]


def identities() -> int:
    """How many identities this process holds, about: each takes two locks."""
    return max(1, len(_held) // 2)


def holder(path: str) -> int | None:
    """The pid of the living process that holds the lock, or None. This is proof, not a guess: the kernel answers."""
    with _guard:
        if _key(path) in _held:
            return os.getpid()
        try:
            fd = open_private(path, os.O_RDWR)
        except OSError:
            return None
        try:
            answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(fd)
    kind, _whence, _start, _length, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else pid
