"""What a crashed spawner left behind: found by record and by mark, killed, proven dead before anything starts again.

Three sources, because each misses something: the record (every process the spawner forked, with its start time and boot)
misses commands whose worker is dead; the mark (MUSTER_STORE_ID in the environment, and in the path of what a run's
commands write to) misses forks without exec that also write elsewhere; the sessions of the commands that the agents'
status pages name miss what left its session, and what began a moment before the page was brought up to date. A process
that did all of this, detached itself twice, cleared its environment and redirected its output, while every process above
it was killed, is found by nobody.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from muster.errors import SpawnFailedError
from muster.supervise import platform, tree

RECORD = "spawner.children"
#: Lines of ended processes that are tolerated before the record is written anew.
_STALE_LINES_MAX = 2000
_DEADLINE_S = 10.0


class ChildRecord:
    """The file of all processes forked; written by the living spawner only. A full store loses lines, never the fleet."""

    def __init__(self, store: Path) -> None:
        self._path = store / RECORD
        self._lines = 0
        self._rewrite_at = _STALE_LINES_MAX
        self._fd = -1
        self._begin([])

    def _begin(self, living: list[tuple[int, int]]) -> None:
        with contextlib.suppress(OSError):
            fresh = self._path.with_suffix(".new")
            fd = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            os.write(fd, "".join(_line(pid, start_time) for pid, start_time in living).encode())
            os.replace(fresh, self._path)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd
            self._lines = len(living)
            self._rewrite_at = 2 * self._lines + _STALE_LINES_MAX

    def add(self, pid: int, start_time: int, living: Callable[[], list[tuple[int, int]]]) -> None:
        """Note a new process; `living` lists all that live, this one included, when the record is to be written anew."""
        if self._lines >= self._rewrite_at:
            self._begin(living())
            return
        with contextlib.suppress(OSError):
            os.write(self._fd, _line(pid, start_time).encode())
            self._lines += 1

    def close(self) -> None:
        """All of them are proven dead: remove the record."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
            os.unlink(self._path)


def _line(pid: int, start_time: int) -> str:
    return f"{pid} {start_time} {platform.boot_id()}\n"


def recorded(store: Path) -> list[tuple[int, int]]:
    """(pid, start_time) of every process that an earlier spawner of `store` forked since this boot and that still
    lives.
    """
    return [(pid, start_time) for pid, start_time in _lines_of_this_boot(store) if not tree.is_gone(pid, start_time)]


def _lines_of_this_boot(store: Path) -> list[tuple[int, int]]:
    try:
        lines = (store / RECORD).read_text("ascii", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        pid, start_time, boot = [*line.split(), "", "", ""][:3]
        if boot == platform.boot_id() and pid.isdigit() and start_time.isdigit():
            found.append((int(pid), int(start_time)))
    return found


def find_leftovers(store: Path, store_id: str) -> list[tuple[int, int]]:
    """(pid, start_time) of living processes of a fleet that has no living spawner. Never the caller and its ancestors."""
    ours = _lineage()
    found = {*recorded(store), *tree.find_marked(store_id), *in_sessions(_sessions(store))}
    return sorted((pid, start) for pid, start in found if pid not in ours and not tree.is_gone(pid, start))


def _sessions(store: Path) -> dict[int, int]:
    """Session -> start time of its leader: every command runs in a session of its own, which its agent's page names.

    A page is believed only if its worker stands in the record of this boot: pids of an earlier boot mean nothing.
    """
    from muster.agent.status import read_status
    from muster.bus.store import roster

    workers = set(_lines_of_this_boot(store))
    pages = (read_status(store, agent) for agent in roster(store)) if workers else ()
    return {
        page.child_pid: page.child_start_time
        for page in pages
        if page is not None and page.child_pid and (page.pid, page.start_time) in workers
    }


def in_sessions(sessions: Mapping[int, int]) -> list[tuple[int, int]]:
    """(pid, start_time) of living processes in one of `sessions`.

    A session's number is not given again while the session has members; if a process with that number lives and is not
    the leader we know, the session is somebody else's.
    """
    ours = {sid: start for sid, start in sessions.items() if platform.start_time_of(sid) in (None, start)}
    if not ours:
        return []
    stats = ((pid, platform.stat_of(pid)) for pid in platform.process_ids())
    return [
        (pid, stat.start_time)
        for pid, stat in stats
        if stat is not None and stat.start_time >= ours.get(stat.session, 1 << 62)
    ]


def reap_leftovers(store: Path, store_id: str, deadline_s: float = _DEADLINE_S) -> list[int]:
    """Kill what a crashed fleet left on `store` and wait until it is proven dead. Call it while holding the spawner's
    lock.

    Returns:
        The pids that were found and are gone now.

    Raises:
        SpawnFailedError: Some could not be killed before the deadline; nothing of the old fleet may be resumed.
    """
    ends = time.monotonic() + deadline_s
    gone: set[int] = set()
    while left := find_leftovers(store, store_id):
        pids = [pid for pid, _ in left]
        if time.monotonic() >= ends:
            raise SpawnFailedError(
                f"processes of an earlier run of {store.name!r} cannot be killed: {', '.join(map(str, pids))}",
                store=str(store),
            )
        gone.update(pids)
        tree.kill_trees(pids)
        platform.wait_for_exits(pids, 0.05)
    return sorted(gone)


def _lineage() -> set[int]:
    """The caller and its ancestors: whoever starts a fleet is no leftover of it."""
    pids = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        stat = platform.stat_of(pid)
        pid = 0 if stat is None else stat.parent
    return pids
