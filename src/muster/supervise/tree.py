"""Process trees: who is below whom, and how to end all of it with proof.

The proof rests on re-parenting. In a subreaper every process whose parent ended becomes the subreaper's own child
before that parent can be reaped. So "my list of children holds nobody unknown" means that nothing is left below the
children that have been reaped: no double fork, setsid, cleared environment or ignored signal leads out of it. (A
process can leave only by having another, outer subreaper of its own, which then is in the tree itself and is killed
first or last all the same.)

Killing freezes first: a stopped process cannot fork, so a tree that is stopped top-down cannot grow faster than it is
killed. What slips through a race between a fork and its stop is re-parented and met by the next pass; a pass is
repeated until none is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Container, Iterable

from muster.supervise import spare
from muster.supervise.platform import (
    IS_LINUX,
    children_of,
    environ_of,
    has_children_files,
    process_ids,
    set_parent_death_signal,
    set_subreaper,
    signal_exactly,
    start_time_of,
    stat_of,
    wait_for_exits,
)

__all__ = [
    "children_of",
    "descendants_of",
    "find_marked",
    "is_gone",
    "kill_orphans",
    "kill_trees",
    "orphans",
    "set_parent_death_signal",
    "set_subreaper",
    "start_time_of",
    "sweep_orphans",
]

#: Times a tree is looked through for processes born while it was being stopped; what is missed is caught by the next
#: pass.
_FREEZE_ROUNDS_MAX = 8
#: Longest uninterrupted time in one sweep, so that an event loop calling it keeps turning.
_SLICE_S = 0.02


def descendants_of(pid: int) -> list[int]:
    """Every process below `pid`, nearest first; a moment's picture unless the tree is stopped."""
    return _below([pid])


def _below(roots: Iterable[int]) -> list[int]:
    if IS_LINUX and has_children_files():
        children = children_of
    else:  # one look at all processes instead of one per parent
        table: dict[int, list[int]] = {}
        for pid in process_ids():
            if (stat := stat_of(pid)) is not None:
                table.setdefault(stat.parent, []).append(pid)

        def children(pid: int) -> list[int]:
            return table.get(pid, [])

    found: list[int] = []
    queue = list(roots)
    seen = set(queue)
    for parent in queue:
        for child in children(parent):
            if child not in seen:
                seen.add(child)
                found.append(child)
                queue.append(child)
    return found


def is_gone(pid: int, start_time: int) -> bool:
    """Whether the process that started at `start_time` has ended. A zombie has: nothing of it runs any more."""
    stat = stat_of(pid)
    return stat is None or stat.start_time != start_time or stat.state in ("Z", "X")


def kill_trees(roots: Iterable[int]) -> int:
    """One pass: stop `roots` and all below them, then SIGKILL every one. Returns how many were signalled; waits for
    nobody.

    Processes that change parents during the pass may be missed: repeat it (`kill_orphans` does) until the proof is
    there.
    """
    with spare.released():
        return _kill_trees(list(roots))


def _kill_trees(roots: list[int]) -> int:
    tree: dict[int, int] = {}
    for _ in range(_FREEZE_ROUNDS_MAX):
        fresh = [pid for pid in (*roots, *_below(roots)) if pid not in tree]
        if not fresh:
            break
        for pid in fresh:
            stat = stat_of(pid)
            if stat is not None and stat.state != "X":
                tree[pid] = stat.start_time
                signal_exactly(pid, stat.start_time, signal.SIGSTOP)
        roots = [pid for pid in roots if pid in tree]
    for pid, start_time in tree.items():
        signal_exactly(pid, start_time, signal.SIGKILL)
    return len(tree)


def orphans(keep: Container[int]) -> list[int]:
    """The caller's children that are not in `keep`, zombies included."""
    return [pid for pid in children_of(os.getpid()) if pid not in keep]


def sweep_orphans(keep: Container[int]) -> list[int]:
    """Kill and reap the caller's children outside `keep` and all below them, for at most some 20 ms. Returns those
    still there.

    An empty list is the proof described at the top, if the caller is a subreaper and nobody else reaps its children. Raises OSError when
    the caller cannot list its children: then nothing is proven.
    """
    with spare.released():
        return _sweep_orphans(keep)


def _sweep_orphans(keep: Container[int]) -> list[int]:
    ends = time.monotonic() + _SLICE_S
    # Only an empty list proves anything. "All that were listed have been reaped" does not: one of them may have ended,
    # and left its children to us, after the list was made.
    while listed := orphans(keep):
        left = _reap(listed)
        if left and time.monotonic() >= ends:
            return left
        if left:
            kill_trees(left)
            wait_for_exits(left, max(0.0, min(0.002, ends - time.monotonic())))
    return []


def kill_orphans(keep: Container[int], deadline_s: float) -> list[int]:
    """Kill every child of the caller that is not in `keep`, with all their descendants, until none is left; reap them.

    The caller is a subreaper. Blocks for `deadline_s` at most.

    Returns:
        Pids that survived the deadline (uninterruptible sleep); empty means: proven dead.
    """
    ends = time.monotonic() + deadline_s
    while left := sweep_orphans(keep):
        remaining_s = ends - time.monotonic()
        if remaining_s <= 0:
            return left
        wait_for_exits(left, min(remaining_s, 0.05))
    return []


def _reap(pids: list[int]) -> list[int]:
    """`pids` without those that had ended; their exit statuses are nobody's business any more."""
    left = []
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done == 0 or os.WIFSTOPPED(status):  # a tracer is told of stops, too
                left.append(pid)
    return left


def find_marked(store_id: str) -> list[tuple[int, int]]:
    """(pid, start_time) of this user's processes that were executed with MUSTER_STORE_ID=`store_id`, or whose stdout or
    stderr is a file in the folder of that name, where a run's commands write; never the caller itself.

    Finds commands of a fleet whose spawner and workers are all dead. It does not find processes that cleared their
    environment and write elsewhere.
    """
    mark = f"MUSTER_STORE_ID={store_id}".encode()
    others = (pid for pid in process_ids() if pid != os.getpid())
    marked = (pid for pid in others if mark in environ_of(pid) or _writes_below(pid, f"/{store_id}/"))
    return [(pid, start_time) for pid in marked if (start_time := start_time_of(pid)) is not None]


def _writes_below(pid: int, folder: str) -> bool:
    # An empty environment does not change where a command's output goes: to a nameless file, which the kernel shows
    # below the folder that it was made in.
    for fd in (1, 2) if IS_LINUX else ():
        with contextlib.suppress(OSError):
            if folder in os.readlink(f"/proc/{pid}/fd/{fd}"):
                return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    return False
