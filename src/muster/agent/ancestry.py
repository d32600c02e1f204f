"""Who is on the other end of an owner socket: a process of one of the agent's running attempts, or somebody else.

The kernel says which process connected (SO_PEERCRED, and SO_PEERPIDFD where there is one, so that the pid cannot have got a new owner
while it was looked up). From there parents are followed up to the main process of a running attempt. A process that cut its line by a
double fork hangs below the worker, which is a subreaper: it is known by its session or by the marks in its environment.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

from muster.agent.remains import Marks
from muster.supervise.platform import stat_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.agent.attempt import Attempt

_UCRED = struct.Struct("=iII")
#: Not in Python's socket module before 3.14.
_SO_PEERPIDFD = 77
_DEPTH_MAX = 256


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pid, user id) of the process that connected. Raises OSError where the system cannot tell."""
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def is_alive_still(connection: socket.socket) -> bool:
    """Whether the very process that connected still runs, so that what was read about its pid was about it."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError:
        return True  # an older kernel: the pid alone must do
    handle = int.from_bytes(raw, "little")
    try:
        signal.pidfd_send_signal(handle, 0)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def attempt_of(pid: int, agent: str, attempts: Iterable[Attempt], *, is_alone: bool) -> Attempt | None:
    """The running attempt of `agent` that process `pid` belongs to, or None.

    `is_alone`: the agent is the only one of this worker, so everything below the worker is its. A handler's attempts have no process of
    their own: this process itself speaks for them.
    """
    running = list(attempts)
    if not running:
        return None
    by_main = {attempt.pid: attempt for attempt in running if attempt.pid}
    worker = os.getpid()
    if pid == worker:
        return next((attempt for attempt in running if not attempt.pid), None)
    at = pid
    for _ in range(_DEPTH_MAX):
        if at in by_main:
            return by_main[at]
        stat = stat_of(at)
        if stat is None or stat.parent <= 1:
            return None
        if stat.parent == worker:
            return _orphans_attempt((at, pid), agent, running, is_alone=is_alone)
        at = stat.parent
    return None


def _orphans_attempt(pids: tuple[int, ...], agent: str, running: list[Attempt], *, is_alone: bool) -> Attempt | None:
    for attempt in running:
        marks = Marks.of(attempt.pid or -1, agent, attempt.number, attempt.attempt)
        if any(marks.fit(pid) for pid in pids):
            return attempt
    return running[0] if is_alone else None
