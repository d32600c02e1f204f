"""What crashed fleets left on this machine: found by the kernel's lock table, killed with proof, removed."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from muster.bus.store import remove_store, unread
from muster.errors import FleetNotRunningError, FleetRunningError, MusterError
from muster.fleet import places
from muster.fleet.logs import last_event
from muster.supervise import lock
from muster.supervise.leftovers import find_leftovers, reap_leftovers
from muster.supervise.lock import SpawnerLock

#: A store that was never started within this time was left by a front door that died.
UNSTARTED_S = 60.0


def crashed(flag: str | None = None) -> list[places.Fleet]:
    """Runs that no living spawner holds, and standing fleets that have none but do have living processes.

    A standing fleet that is merely down is not a leftover: it keeps its messages for the next start.
    """
    return [
        fleet
        for fleet in places.scan(flag)
        if fleet.spawner_pid is None and _was_started(fleet) and (fleet.is_run or processes(fleet))
    ]


def _was_started(fleet: places.Fleet) -> bool:
    # A store without a lock file is being made at this moment, unless its maker died a while ago.
    try:
        return (fleet.store / lock.NAME).exists() or time.time() - fleet.store.stat().st_mtime > UNSTARTED_S
    except OSError:
        return False


def processes(fleet: places.Fleet) -> list[int]:
    """Living processes of a fleet that has no spawner."""
    return [pid for pid, _ in find_leftovers(fleet.store, fleet.store_id)] if fleet.store_id else []


def has_ended(fleet: places.Fleet) -> bool:
    """Whether a fleet without a spawner came to its end, instead of being killed."""
    return last_event(fleet.store, "fleet.ended") is not None


def reclaim(fleet: places.Fleet, *, keep_unread: bool) -> tuple[list[int], int]:
    """Kill what is left of a crashed fleet, prove it dead, and remove its store.

    Args:
        fleet: A fleet without a living spawner.
        keep_unread: Keep the store if it holds messages of users that nobody has read.

    Returns:
        The pids that were killed, and the number of unread messages because of which the store was kept (0: it was removed).

    Raises:
        FleetRunningError: A spawner holds it (again); nothing was done.
        SpawnFailedError: A process could not be killed; the store was kept.
    """
    held = SpawnerLock(fleet.store)
    try:
        killed = reap_leftovers(fleet.store, fleet.store_id)
        waiting = unread(fleet.store) if keep_unread else 0
        if not waiting and fleet.is_run:
            remove_spool(fleet)
            remove_store(fleet.store)
        return killed, waiting
    finally:
        held.release()


def remove_spool(fleet: places.Fleet) -> None:
    """Remove the directory for large output that a run's store names."""
    spool = fleet.spec.get("spool")
    if isinstance(spool, str) and Path(spool).name == fleet.store_id:
        shutil.rmtree(spool, ignore_errors=True)


def remove_lost_spools(flag: str | None = None) -> int:
    """Remove directories for large output that no store names any more; how many. A run writes its spec before it makes its spool."""
    named = {fleet.spec.get("spool") for fleet in places.scan(flag)}
    lost = [path for path in places.spools(flag) if str(path) not in named]
    for path in lost:
        shutil.rmtree(path, ignore_errors=True)
    return len(lost)


def reclaim_run_of(results: Path, flag: str | None = None) -> list[int]:
    """End what an earlier, crashed run on the same results file left behind, so that nothing of it runs beside its successor.

    Returns:
        The pids that were killed.

    Raises:
        FleetRunningError: A living run writes to that file.
        SpawnFailedError: A process of the earlier run could not be killed; nothing may be resumed.
    """
    killed: list[int] = []
    for fleet in places.scan(flag):
        run = fleet.spec.get("run")
        if not isinstance(run, dict) or run.get("results") != str(results):
            continue
        if fleet.spawner_pid is not None:
            raise FleetRunningError(
                f"the run {fleet.name!r} is writing to {results}; wait for it or stop it: muster down --fleet {fleet.name}"
            )
        with contextlib.suppress(FleetNotRunningError):
            killed += reclaim(fleet, keep_unread=False)[0]
    return killed


def reclaim_quietly(flag: str | None = None) -> int:
    """Reclaim every crashed run that holds nothing unread; how many. What resists is left to `muster doctor`."""
    count = 0
    for fleet in crashed(flag):
        with contextlib.suppress(MusterError, OSError):
            count += fleet.is_run and not reclaim(fleet, keep_unread=True)[1]
    remove_lost_spools(flag)
    return count
