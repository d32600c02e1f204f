"""Who lives, who died, and which deaths the coordinator has not yet written down. Bookkeeping only: no system call, no
clock.

A worker's life: `started` → `died` (reaped; its tree may still live: a *grave*) → `settled` (tree proven gone, exit
reported) → `acknowledged` (forgotten). An exit is kept until acknowledged, however many coordinators come and go
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from muster.core.orders import WorkerExited, WorkerList, WorkerStarted

#: Processes that resist SIGKILL for this long (uninterruptible sleep) are reported as survivors.
SURVIVORS_AFTER_S = 5.0

Key = tuple[str, int]


@dataclass
class _Grave:
    """A reaped worker whose tree is not yet proven gone."""

    exit: WorkerExited
    report_at: float
    #: Survivors of earlier graves: they cannot belong to this worker, so they do not delay its proof.
    foreign: frozenset[int]
    reported: bool = False
    blockers: frozenset[int] = frozenset()


@dataclass
class Ledger:
    """All workers of the fleet, by pid and by (name, incarnation)."""

    alive: dict[int, WorkerStarted] = field(default_factory=dict)
    _pids: dict[Key, int] = field(default_factory=dict)
    exits: dict[Key, WorkerExited] = field(default_factory=dict)
    _graves: list[_Grave] = field(default_factory=list)
    #: Said twice, and the first saying not yet acknowledged: the next acknowledgement is for that one.
    _said_again: set[Key] = field(default_factory=set)

    def started(self, worker: str, incarnation: int, pid: int, start_time: int) -> WorkerStarted:
        """A worker was forked."""
        entry = WorkerStarted(worker=worker, incarnation=incarnation, pid=pid, start_time=start_time)
        self.alive[pid] = entry
        self._pids[worker, incarnation] = pid
        return entry

    def find(self, worker: str, incarnation: int) -> WorkerStarted | None:
        """The living worker of that name and incarnation."""
        pid = self._pids.get((worker, incarnation))
        return None if pid is None else self.alive[pid]

    def is_dying(self, worker: str, incarnation: int) -> bool:
        """Whether that worker is dead and its exit still to be told."""
        key = worker, incarnation
        return any((grave.exit.worker, grave.exit.incarnation) == key for grave in self._graves)

    def not_started(self, worker: str, incarnation: int, exit_status: int) -> WorkerExited:
        """A worker that could not be forked: an exit with pid 0, kept like every other."""
        entry = WorkerExited(worker=worker, incarnation=incarnation, pid=0, exit_status=exit_status, signal=None)
        self.exits[worker, incarnation] = entry
        return entry

    def died(self, pid: int, exit_status: int | None, signal: int | None, now: float) -> bool:
        """`pid` was reaped. False when it was none of the workers."""
        entry = self.alive.pop(pid, None)
        if entry is None:
            return False
        del self._pids[entry.worker, entry.incarnation]
        exit_ = WorkerExited(
            worker=entry.worker, incarnation=entry.incarnation, pid=pid, exit_status=exit_status, signal=signal
        )
        foreign = frozenset().union(*(grave.blockers for grave in self._graves if grave.reported))
        self._graves.append(_Grave(exit_, now + SURVIVORS_AFTER_S, foreign))
        return True

    def settle(self, unknown: Iterable[int], now: float) -> list[WorkerExited]:
        """What can be said now, given the spawner's children that belong to no living process of the fleet.

        None of them left: every grave is proven. Some left for too long: they are reported as survivors once, and the
        exit is said again without them when they are gone.
        """
        pids = frozenset(unknown)
        said: list[WorkerExited] = []
        waiting: list[_Grave] = []
        for grave in self._graves:
            grave.foreign &= pids
            grave.blockers = pids - grave.foreign
            if not grave.blockers:
                said.append(self._keep(grave.exit, []))
                continue
            if not grave.reported and now >= grave.report_at:
                grave.reported = True
                said.append(self._keep(grave.exit, sorted(grave.blockers)))
            waiting.append(grave)
        self._graves = waiting
        return said

    def _keep(self, exit_: WorkerExited, survivors: list[int]) -> WorkerExited:
        entry = WorkerExited(
            worker=exit_.worker,
            incarnation=exit_.incarnation,
            pid=exit_.pid,
            exit_status=exit_.exit_status,
            signal=exit_.signal,
            survivors=survivors,
        )
        key = exit_.worker, exit_.incarnation
        if key in self.exits:
            self._said_again.add(key)
        self.exits[key] = entry
        return entry

    def acknowledged(self, worker: str, incarnation: int) -> None:
        """The coordinator has the exit in its log."""
        if (worker, incarnation) in self._said_again:
            self._said_again.discard((worker, incarnation))
        else:
            self.exits.pop((worker, incarnation), None)

    def listing(self, coordinator_restarts: int) -> WorkerList:
        """Everything alive, and every exit that was not acknowledged. The asker knows no earlier sayings."""
        self._said_again.clear()
        # A dead worker whose tree is not proven gone still counts as alive: else its tasks would be given to somebody else.
        unproven = [
            WorkerStarted(
                worker=grave.exit.worker, incarnation=grave.exit.incarnation, pid=grave.exit.pid, start_time=0
            )
            for grave in self._graves
            if (grave.exit.worker, grave.exit.incarnation) not in self.exits
        ]
        return WorkerList(
            alive=[*self.alive.values(), *unproven],
            exited=list(self.exits.values()),
            coordinator_restarts=coordinator_restarts,
        )
