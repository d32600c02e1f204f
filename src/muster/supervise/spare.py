"""Descriptors held back for the moment when no other is free: proving a tree dead, killing it and refusing a client need two or three.

Without them a process that has used up its descriptors could not even list its own children.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar

_SPARE = 4


class _Held:
    """Of this process. A forked child finds its parent's numbers here, and leaves them alone."""

    pid = 0
    fds: ClassVar[list[int]] = []


def hold() -> None:
    """Hold descriptors back in this process, as many as are free."""
    _Held.pid, _Held.fds = os.getpid(), []
    _fill()


def _fill() -> None:
    with contextlib.suppress(OSError):
        while len(_Held.fds) < _SPARE:
            _Held.fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@contextlib.contextmanager
def released() -> Iterator[None]:
    """What is done inside may use the descriptors held back, if this process holds any. It keeps none of them open."""
    if _Held.pid != os.getpid() or not _Held.fds:
        yield
        return
    fds, _Held.fds = _Held.fds, []
    for fd in fds:
        os.close(fd)
    try:
        yield
    finally:
        _fill()
