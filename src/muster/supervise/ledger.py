"""Who lives, who died, whose they are, and which deaths their owner has not yet written down. Bookkeeping only: no system
call, no clock.

A worker's life: `started` → `died` (reaped; its tree may still live: a *grave*) → `settled` (tree proven gone, exit
reported) → `acknowledged` (forgotten). An exit is kept until acknowledged, however many coordinators come and go
meanwhile.

A worker belongs to the coordinator that spawned it, its *home*; once the home is given up, to the home's heir, until
somebody spawns it again. To its owner, the coordinator of a team is a worker like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from muster.core.names import COORDINATOR
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
    #: Who spawned it, of everything that is not forgotten.
    _homes: dict[Key, str] = field(default_factory=dict)
    #: The last incarnation that was ordered of each worker, and by whom.
    _last: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: Homes that were given up, and who answers for their workers; an heir is never given up itself.
    _heirs: dict[str, str] = field(default_factory=dict)

    def allows(self, owner: str, worker: str, incarnation: int) -> bool:
        """Whether `owner` may start this incarnation: a new one, of a worker of which nothing lives, and that is its own
        or left to whoever wants it.
        """
        last, home = self._last.get(worker, (0, owner))
        # Only the last one can live: it was not started beside an earlier one.
        if incarnation <= last or (worker, last) in self._pids or self.is_dying(worker, last):
            return False
        return home == owner or home in self._heirs

    def started(
        self, worker: str, incarnation: int, pid: int, start_time: int, owner: str = COORDINATOR
    ) -> WorkerStarted:
        """A worker was forked for `owner`."""
        entry = WorkerStarted(worker=worker, incarnation=incarnation, pid=pid, start_time=start_time)
        self.alive[pid] = entry
        self._pids[worker, incarnation] = pid
        self._note_order(worker, incarnation, owner)
        return entry

    def _note_order(self, worker: str, incarnation: int, owner: str) -> None:
        self._homes[worker, incarnation] = owner
        self._last[worker] = incarnation, owner

    def find(self, worker: str, incarnation: int) -> WorkerStarted | None:
        """The living worker of that name and incarnation."""
        pid = self._pids.get((worker, incarnation))
        return None if pid is None else self.alive[pid]

    def is_dying(self, worker: str, incarnation: int) -> bool:
        """Whether that worker is dead and its tree not proven gone."""
        return any((grave.exit.worker, grave.exit.incarnation) == (worker, incarnation) for grave in self._graves)

    def owner_of(self, worker: str, incarnation: int) -> str | None:
        """Who is told of its exit and may signal it; None for one that never was or is forgotten."""
        home = self._homes.get((worker, incarnation))
        return None if home is None else self._heirs.get(home, home)

    def reown(self, source: str, target: str) -> None:
        """`source` is given up: `target` answers for what it spawned, and for what it had inherited. `target` itself is
        given up no more.
        """
        self._heirs = {home: target if heir == source else heir for home, heir in self._heirs.items()}
        self._heirs[source] = target
        self._heirs.pop(target, None)

    def not_started(self, worker: str, incarnation: int, exit_status: int, owner: str = COORDINATOR) -> WorkerExited:
        """A worker that could not be forked: an exit with pid 0, kept like every other."""
        entry = WorkerExited(worker=worker, incarnation=incarnation, pid=0, exit_status=exit_status, signal=None)
        self.exits[worker, incarnation] = entry
        self._note_order(worker, incarnation, owner)
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
        """The owner has the exit in its log."""
        key = worker, incarnation
        if key in self._said_again:
            self._said_again.discard(key)
            return
        self.exits.pop(key, None)
        if not self.is_dying(*key):  # else survivors were reported: their end is still to be told
            self._homes.pop(key, None)

    def listing(self, coordinator_restarts: int, home: str = COORDINATOR) -> WorkerList:
        """Of what `home` spawned everything alive, and every exit that was not acknowledged. The asker knows no earlier
        sayings.
        """
        ours = {key for key, spawner in self._homes.items() if spawner == home}
        self._said_again -= ours
        # A dead worker whose tree is not proven gone still counts as alive: else its tasks would be given to somebody else.
        unproven = [
            WorkerStarted(
                worker=grave.exit.worker, incarnation=grave.exit.incarnation, pid=grave.exit.pid, start_time=0
            )
            for grave in self._graves
            if (grave.exit.worker, grave.exit.incarnation) not in self.exits
        ]
        return WorkerList(
            alive=[entry for entry in (*self.alive.values(), *unproven) if (entry.worker, entry.incarnation) in ours],
            exited=[exit_ for key, exit_ in self.exits.items() if key in ours],
            coordinator_restarts=coordinator_restarts,
            owner=home,
            last={worker: last for worker, (last, orderer) in self._last.items() if orderer == home},
            incarnation=self._last[home][0] if home in self._last else 0,
        )
