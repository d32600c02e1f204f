"""Proof that nothing of an attempt is left in the worker's process tree, and the end of what is.

The worker is a subreaper: when a process below it ends, its children become the worker's own before its exit can be seen. So once an
attempt's main process has been reaped, everything that is left of the attempt hangs directly or indirectly below a child of the worker
that is no running main process. No such child is the proof.

A stray child is told to an attempt by its session (every command gets its own) or by the marks in its environment. What carries neither
can only be told apart while nothing else runs in this worker; until then it waits, and ends with the last attempt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from dataclasses import dataclass

from muster.supervise.platform import children_of, environ_of
from muster.supervise.tree import descendants_of, orphans, sweep_orphans


@dataclass(frozen=True, slots=True)
class Marks:
    """How processes of one attempt are recognised: their session, or these entries of their environment."""

    session: int
    entries: frozenset[bytes]

    @classmethod
    def of(cls, session: int, agent: str, number: int, attempt: int) -> Marks:
        text = (f"MUSTER_AGENT={agent}", f"MUSTER_TASK={number}", f"MUSTER_ATTEMPT={attempt}")
        return cls(session, frozenset(entry.encode() for entry in text))

    def fit(self, pid: int) -> bool:
        """Whether `pid` belongs to the attempt. False when it is gone."""
        with contextlib.suppress(OSError):
            return os.getsid(pid) == self.session or self.entries <= set(environ_of(pid))
        return False


class _Others(Container[int]):
    """The children to leave alone while one attempt is cleared away: everything that does not carry its marks."""

    def __init__(self, mains: Container[int], marks: Marks) -> None:
        self._mains = mains
        self._marks = marks

    def __contains__(self, pid: object) -> bool:
        return pid in self._mains or (isinstance(pid, int) and not self._marks.fit(pid))


class Remains:
    """What runs in this worker and what is left over. One per worker."""

    def __init__(self) -> None:
        #: Main processes of running attempts: each is waited for by its own attempt and by nobody else.
        self.mains: set[int] = set()
        self._listing = _Listing()
        #: Handlers at work in this process; their subprocesses are the worker's children, too, and theirs to reap.
        self.handlers = 0

    @property
    def is_idle(self) -> bool:
        return not self.mains and not self.handlers

    def is_clear(self) -> bool:
        """Whether nothing is left of any attempt whose main process or handler has ended. The common case, and cheap."""
        if self.is_idle:
            return has_no_children()
        children = self._listing.read()
        try:
            return (set(children_of(os.getpid())) if children is None else children) == self.mains
        except OSError:
            return False

    def clear(self, marks: Marks) -> bool:
        """End what is left of an attempt whose main process or handler has ended. True: proven that nothing is left.

        False: something survived some 20 ms of killing; call again. Never blocks longer.
        """
        try:
            if self.is_idle:
                return not sweep_orphans(()) and has_no_children()
            return not sweep_orphans(_Others(self.mains, marks)) and self.mains <= set(children_of(os.getpid()))
        except OSError:  # no descriptor left to list them with: it proves nothing
            return False

    def processes_of(self, main: int, marks: Marks) -> list[int]:
        """What runs of an attempt: its main process (0: none), what left it and became the worker's own, and all below them.

        What carries none of its marks is counted while it can be nobody else's.
        """
        try:
            strays = orphans(self.mains)
        except OSError:
            return []
        if len(self.mains) + self.handlers > 1:
            strays = [pid for pid in strays if marks.fit(pid)]
        roots = [main, *strays] if main else strays
        return [pid for root in roots for pid in (root, *descendants_of(root))]

    def reap(self) -> None:
        """Reap processes that outlived their parents and have ended, so that a long task leaves no heap of zombies."""
        if self.handlers:
            return  # a handler's own subprocess must find its exit status
        for pid in orphans(self.mains):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill_all(self) -> None:
        """SIGKILL and reap everything below this worker; gives up after about a second."""
        self.mains.clear()
        for _ in range(50):
            with contextlib.suppress(OSError):
                if not sweep_orphans(()):
                    return


class _Listing:
    """The kernel's list of this process's children, kept open: with many agents in a worker it is read after every task."""

    def __init__(self) -> None:
        self._fd = -1
        # Children hang below threads. Commands are started, and orphans adopted, by the main one; while it is alone, its list is all.
        with contextlib.suppress(OSError):
            self._fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> set[int] | None:
        """The children, or None if this list may not be all of them."""
        try:
            if self._fd < 0 or os.stat("/proc/self/task").st_nlink != 3:
                return None
            raw = os.pread(self._fd, 4096, 0)
        except OSError:
            return None
        return set(map(int, raw.split())) if len(raw) < 2048 else None  # longer lists come in pieces


def has_no_children() -> bool:
    """Whether this process has no child at all, not even a zombie: one system call."""
    if not hasattr(os, "waitid"):  # macOS
        return not orphans(())
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
