"""What an attempt may take, and the watch over it: wall time and resident memory.

Memory is looked at, not enforced by the kernel: a cgroup would be exact, but needs a place in the hierarchy that an ordinary user rarely
has. So an attempt can pass its bound between two looks; the bound says when it is ended, not what it can never reach. One timer looks at
all attempts of a worker, and it only runs while there are any.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from muster.core import limits
from muster.errors import AttemptLimitError, MemoryLimitError, WallLimitError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from muster.agent.attempt import Attempt
    from muster.core.spec import AgentLimits

#: Processes named in the evidence of a breach.
_NAMED_MAX = 5


class TimeBound(NamedTuple):
    """When an attempt's time is over; `error` is set if that is the kind's limit, not the task's own."""

    after_s: float
    error: AttemptLimitError | None


def time_bound(attempt: Attempt, bounds: AgentLimits) -> TimeBound | None:
    """The nearer of the task's time limit and its kind's wall time."""
    wall_s, timeout_s = bounds.wall_s, attempt.timeout_s
    if wall_s is None or (timeout_s is not None and timeout_s <= wall_s):
        return None if timeout_s is None else TimeBound(timeout_s, None)
    return TimeBound(
        wall_s, WallLimitError(f"the attempt took longer than the {wall_s:g} s of limits.wall", limit_s=wall_s)
    )


@dataclass(frozen=True, slots=True)
class _Watched:
    limit_bytes: int
    processes: Callable[[], Iterable[int]]
    exceeded: Callable[[MemoryLimitError], None]


class MemoryWatch:
    """Looks at the memory of running attempts. One per worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[object, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: Shortest pause that keeps looking within its share of the time.
        self._rest_s = limits.RSS_SAMPLE_S

    def watch(
        self,
        key: object,
        limit_bytes: int | None,
        processes: Callable[[], Iterable[int]],
        exceeded: Callable[[MemoryLimitError], None],
    ) -> None:
        """Look at `processes` from now on, and call `exceeded` once when together they hold more than `limit_bytes`.

        Without a limit, or with one that this machine's memory cannot reach, nothing is looked at.
        """
        if limit_bytes is None or limit_bytes >= memory_bytes():
            return
        self._watched[key] = _Watched(limit_bytes, processes, exceeded)
        self._look_within(_reach_s(limit_bytes))

    def forget(self, key: object) -> None:
        """The attempt has ended."""
        if self._watched.pop(key, None) is not None and not self._watched:
            self.close()

    def close(self) -> None:
        """Stop looking."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        began = time.monotonic()
        self._timer = None
        soonest_s = limits.RSS_SAMPLE_MAX_S
        for key, watched in list(self._watched.items()):
            held = {pid: rss for pid in watched.processes() if (rss := rss_bytes(pid))}
            total = sum(held.values())
            if total > watched.limit_bytes:
                del self._watched[key]
                watched.exceeded(_breach(watched.limit_bytes, total, held))
            else:
                soonest_s = min(soonest_s, _reach_s(watched.limit_bytes - total))
        self._rest_s = max(limits.RSS_SAMPLE_S, (time.monotonic() - began) / limits.RSS_SAMPLE_SHARE)
        if self._watched:
            self._look_within(soonest_s)

    def _look_within(self, pause_s: float) -> None:
        due_s = self._loop.time() + max(pause_s, self._rest_s)
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._look)


def _reach_s(room_bytes: int) -> float:
    """The least time in which that much memory can be filled, within the bounds of looking."""
    return min(room_bytes / limits.RSS_FILL_BYTES_PER_S, limits.RSS_SAMPLE_MAX_S)


def _breach(limit_bytes: int, total: int, held: dict[int, int]) -> MemoryLimitError:
    largest = sorted(held, key=lambda pid: held[pid], reverse=True)[:_NAMED_MAX]
    named = ", ".join(f"{_name_of(pid)} ({pid}) {held[pid] / 1e6:.0f} MB" for pid in largest)
    rest = f" and {len(held) - len(largest)} more" if len(held) > len(largest) else ""
    return MemoryLimitError(
        f"the attempt's processes held {total / 1e6:.1f} MB, more than the {limit_bytes / 1e6:.1f} MB of limits.rss: {named}{rest}",
        limit_bytes=limit_bytes,
        rss_bytes=total,
        processes=len(held),
    )


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone or the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * _page_bytes()
    except (OSError, IndexError, ValueError):
        return 0


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            return file.read(64).decode(errors="replace").strip() or "?"
    except OSError:
        return "?"


@cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


@cache
def memory_bytes() -> int:
    """What this machine has; practically endless where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * _page_bytes()
    except (OSError, ValueError):
        return 1 << 62
