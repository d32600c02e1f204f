"""Where a task's stdout and stderr go: a file without a name that is read when the task is over and used again for the next one.

A file instead of a pipe: nothing has to be read while the task runs, a full pipe can never block it, and output that is too large for a
message becomes a file by being given a name. With a spool directory the file is on disk (O_TMPFILE); without, it is in memory (memfd).
Opened for appending, so that several processes of one task never write over each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from typing import NamedTuple

from muster.core import limits


class Captured(NamedTuple):
    """One stream of one attempt. `head` is all of it unless `bytes` is larger; then `file` has all, or is None if none could be kept."""

    head: bytes
    bytes: int
    file: str | None


NOTHING = Captured(b"", 0, None)


class Capture:
    """One stream of one slot."""

    def __init__(self, spool: str | None) -> None:
        """Raises OSError when neither disk nor memory gives a file."""
        self._spool = spool
        self.fd = _nameless(spool)

    def take(self, name: str) -> Captured:
        """What was written since the last call, and start over. Call it only when no process that could write is left.

        Output over `limits.OUTPUT_INLINE_BYTES_MAX` is kept whole as `<spool>/<name>`; `head` is then its beginning.
        """
        size = os.lseek(
            self.fd, 0, os.SEEK_END
        )  # a sixth of the price of fstat; the offset means nothing to appending writers
        if size == 0:
            return NOTHING
        if size <= limits.OUTPUT_INLINE_BYTES_MAX:
            head = os.pread(self.fd, size, 0)
            self._empty()
            return Captured(head, size, None)
        kept = self._keep(name) if self._spool is not None else None
        head = os.pread(self.fd, limits.OUTPUT_RESULT_BYTES_MAX if kept else limits.OUTPUT_INLINE_BYTES_MAX, 0)
        if kept:
            self.renew()
        else:
            self._empty()
        return Captured(head, size, kept)

    def _empty(self) -> None:
        os.ftruncate(self.fd, 0)
        # A task may have cleared O_APPEND on this shared description; the next one must not begin behind a hole.
        os.lseek(self.fd, 0, os.SEEK_SET)

    def _keep(self, name: str) -> str | None:
        assert self._spool is not None
        path = os.path.join(self._spool, name)
        with contextlib.suppress(OSError):
            directory = os.open(self._spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                # A dir_fd, although the source is absolute: without one Python calls link(2), which does not follow /proc links.
                os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=directory, follow_symlinks=True)
                return path
            except OSError:
                return path if self._copy(path) else None
            finally:
                os.close(directory)
        return None

    def _copy(self, path: str) -> bool:
        """For file systems that cannot name a nameless file."""
        try:
            copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            at = 0
            while chunk := os.pread(self.fd, 1 << 20, at):
                at += os.write(copy, chunk)
            return True
        except OSError:  # the disk is full: better no file than half a file that looks whole
            os.unlink(path)
            return False
        finally:
            os.close(copy)

    def renew(self) -> None:
        """Go on with a fresh file; the old one belongs to whoever has it."""
        fresh = _nameless(self._spool)
        os.close(self.fd)
        self.fd = fresh

    def close(self) -> None:
        os.close(self.fd)


def _nameless(spool: str | None) -> int:
    if spool is not None:
        if hasattr(os, "O_TMPFILE"):
            with contextlib.suppress(OSError):
                return os.open(spool, os.O_TMPFILE | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            return _unlinked(spool)
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("muster-output", os.MFD_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd
    return _unlinked(None)


def _unlinked(directory: str | None) -> int:
    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd
