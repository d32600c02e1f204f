"""Private files and directories: made 0700/0600 whatever the umask, opened without following links, owner and mode verified."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from muster.errors import UnsafePermissionsError


def _refuse(path: str | Path, what: str) -> UnsafePermissionsError:
    return UnsafePermissionsError(f"{path} {what}; muster does not use it", path=str(path))


def check_private(path: str | Path, found: os.stat_result, *, directory: bool) -> None:
    """Raises UnsafePermissionsError unless `found` is ours, of the right type, and closed to group and others."""
    right_type = (
        stat.S_ISDIR(found.st_mode) if directory else (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode))
    )
    if not right_type:
        raise _refuse(path, "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is of the wrong type")
    if found.st_uid != os.geteuid():
        raise _refuse(path, f"belongs to user {found.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise _refuse(path, f"has mode {stat.S_IMODE(found.st_mode):04o}, open to others")


def make_private_dir(path: str | Path, *, exist_ok: bool = True) -> None:
    """Make one directory with mode 0700 (its parent must exist), or verify the one that is there.

    Raises:
        UnsafePermissionsError: It exists and is a link, somebody else's, or open to others; nothing was changed.
        FileExistsError: It exists and `exist_ok` is False.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not exist_ok:
            raise
        check_private(path, os.lstat(path), directory=True)
        return
    # mkdir's mode is cut by the umask only ever to less than 0700; a setgid parent or default ACL could add bits.
    os.chmod(path, 0o700)


def open_private(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file of the store, refusing links, foreign owners and open modes. Raises UnsafePermissionsError, OSError."""
    try:
        # Without waiting: a FIFO in the place of a file must not hold us up until somebody opens its other end.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == 40:  # ELOOP: O_NOFOLLOW met a symbolic link
            raise _refuse(path, "is a symbolic link") from None
        raise
    try:
        check_private(path, os.fstat(fd), directory=False)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sync_path(path: str | Path) -> None:
    """Wait until the disk has a file or directory. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_private(path: Path) -> bytes:
    """The whole of a small private file. Raises UnsafePermissionsError, OSError."""
    fd = open_private(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 24)
    finally:
        os.close(fd)


def write_private(path: Path, data: bytes, *, durable: bool = False) -> None:
    """A new private file with `data`, whole or not at all; `durable`: it is on the disk when this returns.

    Raises:
        FileExistsError: There is one; it was not changed.
    """
    temporary = path.with_name(f"tmp-{os.getpid()}-{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.link(temporary, path)  # link refuses to overwrite; rename would not
        if durable:
            sync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what stands under its name stands, whatever becomes of the temporary one
            os.unlink(temporary)
