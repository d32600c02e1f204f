"""One living spawner per store: a POSIX record lock that the kernel drops when its holder dies, however it dies.

The file is never unlinked (a removed and recreated lock file can be held twice). Record locks are not inherited by
forked children, but closing *any* descriptor of the file drops them in the process that closes: only this module opens
it in the spawner.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from muster.errors import FleetRunningError, SpawnFailedError
from muster.supervise import platform

NAME = "spawner.lock"


def running_pid(store: Path) -> int | None:
    """The pid of the living spawner of `store`, None without one. Never call it in the spawner itself (see above)."""
    try:
        fd = os.open(store / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _owner(fd)
    finally:
        os.close(fd)


def _owner(fd: int) -> int | None:
    pid = platform.lock_owner(fd)
    if pid == 0:  # the holder lives in another pid namespace: its own word for its pid must do
        with contextlib.suppress(ValueError, IndexError):
            return int(os.pread(fd, 256, 0).split()[0])
    return pid


def running_error(store: Path, pid: int | None) -> FleetRunningError:
    """The refusal of a second spawner."""
    return FleetRunningError(
        f"fleet {store.name!r} is already running: its spawner is {platform.since(pid)}", pid=pid, store=str(store)
    )


class SpawnerLock:
    """The lock of `store`, held from construction to `release` or death.

    Raises:
        FleetRunningError: A living spawner holds it; nothing was done.
        SpawnFailedError: The lock file cannot be used.
    """

    def __init__(self, store: Path) -> None:
        path = store / NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpawnFailedError(f"cannot open {path}: {error.strerror}", store=str(store)) from error
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            pid = _owner(self._fd)
            os.close(self._fd)
            raise running_error(store, pid) from error
        if not self._is_at(path):
            os.close(self._fd)
            raise SpawnFailedError(f"the store {store} was removed while the fleet was being started", store=str(store))
        pid = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{pid} {platform.start_time_of(pid)} {platform.boot_id()}\n".encode(), 0)

    def _is_at(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(self._fd))
        except OSError:
            return False

    def release(self) -> None:
        """Let the next spawner start."""
        os.close(self._fd)
