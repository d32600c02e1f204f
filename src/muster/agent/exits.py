"""Says when a child process has ended.

One epoll set holds the pidfds of all running commands, and the event loop watches the set: that costs 4 µs per process, a reader of the
loop for each 11 µs. Without pidfds or epoll a thread waits for each child.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Exits:
    """One per worker. Every watched child is reaped here, and its wait status handed on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._set: select.epoll | None = None
        if hasattr(select, "epoll") and hasattr(os, "pidfd_open"):
            self._set = select.epoll()
            loop.add_reader(self._set.fileno(), self._look)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended` with the wait status, in the loop, once the child `pid` has ended and been reaped."""
        if self._set is not None:
            with contextlib.suppress(OSError):  # no descriptor left: a thread needs none
                pidfd = os.pidfd_open(pid)
                self._watched[pidfd] = (pid, ended)
                self._set.register(pidfd, select.EPOLLIN)
                return
        threading.Thread(target=self._wait, args=(pid, ended), daemon=True).start()

    def _look(self) -> None:
        assert self._set is not None
        for pidfd, _ in self._set.poll(0):
            pid, ended = self._watched.pop(pidfd)
            # Not left to the close: a child that a handler's thread is forking right now may hold a copy for a moment.
            self._set.unregister(pidfd)
            os.close(pidfd)
            ended(reap(pid))

    def _wait(self, pid: int, ended: Callable[[int], None]) -> None:
        status = reap(pid)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the worker is ending
            self._loop.call_soon_threadsafe(ended, status)

    def close(self) -> None:
        """Stop watching."""
        if self._set is not None:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()
            self._set = None
        for pidfd in self._watched:
            os.close(pidfd)
        self._watched.clear()


def reap(pid: int) -> int:
    """The wait status of a child that has ended, or when it ends."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:  # reaped by a handler's careless wait for any child: how it ended is unknown
        return 0xFF00
