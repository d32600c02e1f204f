"""What an agent's process prints outside of a task's captured output: a file per agent, bounded, rotated while it is written.

`log` is the newest; at `LOG_BYTES_MAX` it becomes `log.1`, and what was `log.3` before is gone. Descriptors 1 and 2 of a worker lead to the
log of its first agent. Where several agents share the process, what a handler prints goes to its own agent's: `Streams` knows by the thread
whose words they are. What a program of theirs writes by itself to an inherited descriptor cannot be told apart.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOG_BYTES_MAX = 1 << 20
#: Names, newest first.
FILES = ("log", "log.1", "log.2", "log.3")


class AgentLog:
    """One agent's log. Nothing here raises: a store without room loses words, never work."""

    def __init__(self, folder: Path, *, standard: bool = False) -> None:
        """`standard`: descriptors 1 and 2 lead here, too, from now on."""
        self._folder = folder
        self._is_standard = standard
        self._lock = threading.Lock()
        self._fd = -1
        if standard:
            self._open(folder / FILES[0])

    def write(self, data: bytes) -> None:
        """Append `data`. May be called by any thread."""
        with self._lock, contextlib.suppress(OSError):
            if self._fd < 0:  # most agents never say anything
                self._open(self._folder / FILES[0])
            os.write(self._fd, data)
        self.look()

    def look(self) -> None:
        """Rotate if it has grown large: processes that write to it by descriptor do not ask."""
        with self._lock, contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size >= LOG_BYTES_MAX and self._leads_here():
                self._rotate()

    def _leads_here(self) -> bool:
        """False while a task's output is captured: then descriptors 1 and 2 are not ours to lay elsewhere."""
        return not self._is_standard or os.path.sameopenfile(1, self._fd)

    def _rotate(self) -> None:
        # The new file is there before the oldest goes: so their inodes differ, by which readers tell files apart.
        fresh = self._folder / "log.new"
        old = self._fd
        self._open(fresh)
        if self._fd == old:
            return  # no room for another file
        for newer, older in zip(reversed(FILES[:-1]), reversed(FILES[1:]), strict=True):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._folder / newer, self._folder / older)
        os.replace(fresh, self._folder / FILES[0])
        os.close(old)

    def _open(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if self._is_standard:
                for fd in (1, 2):
                    os.dup2(self._fd, fd)


class Streams(io.TextIOBase):
    """`sys.stdout` and `sys.stderr` of a process with several agents: a thread's words go to the log of the agent it works for."""

    def __init__(self, otherwise: AgentLog) -> None:
        self._otherwise = otherwise
        self._mine = threading.local()

    def work_for(self, log: AgentLog) -> None:
        """What the calling thread prints from now on belongs to `log`."""
        self._mine.log = log

    def write(self, text: str) -> int:
        words = getattr(self._mine, "rest", "") + text
        lines, newline, self._mine.rest = words.rpartition("\n")
        self._say(lines + newline)
        return len(text)

    def flush(self) -> None:
        rest, self._mine.rest = getattr(self._mine, "rest", ""), ""
        self._say(rest)

    def _say(self, words: str) -> None:
        if words:
            log: AgentLog = getattr(self._mine, "log", self._otherwise)
            log.write(words.encode("utf-8", "backslashreplace"))

    def writable(self) -> bool:
        return True


def redirect(folder: Path) -> AgentLog:
    """Lay this process's stdin on nothing, and its stdout and stderr into the log of the agent in `folder`."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):  # also 1 and 2: the log may find no room
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    log = AgentLog(folder, standard=True)
    log.look()
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 -- lives as long as we do
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    return log
