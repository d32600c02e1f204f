"""Every process below the spawner: how it is born, whose orders reach it, and how its death is told.

The coordinators come first: the root, which the spawner itself keeps alive, and the teams, which to their owner are
workers. Each has a control link of its own; it is heard to the end before its death is believed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from muster.core.names import COORDINATOR
from muster.core.orders import (
    ExitSeen,
    KillWorker,
    ListWorkers,
    Reown,
    SpawnWorker,
    StopFleet,
    ToSpawner,
    WorkerExited,
    WorkerStarted,
)
from muster.supervise import child, platform, tree
from muster.supervise.child import complain
from muster.supervise.control import ControlLink
from muster.supervise.entries import Entries
from muster.supervise.ledger import Ledger
from muster.supervise.leftovers import ChildRecord

#: Exit status reported for a worker that could not be forked (EX_OSERR of sysexits.h) …
_EXIT_NOT_FORKED = 71
#: … and for one that its orderer may not start (EX_NOPERM).
_EXIT_REFUSED = 77


class Family:
    """Births, orders and deaths. Nothing in it waits, and nothing in it decides what follows from a death."""

    def __init__(self, store: Path, entries: Entries, forget: Callable[[], None]) -> None:
        """`forget` is called in every child, before descriptors are closed by number."""
        self._store, self._entries, self._forget_others = store, entries, forget
        self.ledger = Ledger()
        #: The control links of living coordinators, by name, and of dead ones until they are heard to the end.
        self.links: dict[str, ControlLink] = {}
        #: The living root.
        self.root: int | None = None
        self._coordinators: dict[int, str] = {}
        self._births: Counter[str] = Counter()
        # Readable (end of stream) in every worker once this process is gone; only this process may hold the write end.
        self._lifeline_read, self._lifeline_write = os.pipe()
        self.record = ChildRecord(store)
        self.pid = os.getpid()
        self.start_time = platform.start_time_of(self.pid) or 0
        self.record.add(self.pid, self.start_time, self._living)

    # ------------------------------------------------------------------ who there is

    def known(self) -> set[int]:
        """Pids of all that live; any other child of the spawner is an orphan of somebody dead."""
        return {*self.ledger.alive, *([] if self.root is None else [self.root])}

    def _living(self) -> list[tuple[int, int]]:
        entries = [(entry.pid, entry.start_time) for entry in self.ledger.alive.values()]
        if self.root is not None:
            entries.append((self.root, platform.start_time_of(self.root) or 0))
        return [(self.pid, self.start_time), *entries]

    def restarts(self, name: str) -> int:
        """How often the coordinator of that name was started again."""
        return max(0, self._births[name] - 1)

    def status(self) -> dict[str, Any]:
        """For people: the root, the teams and the workers."""
        teams, workers = [], []
        for pid, entry in self.ledger.alive.items():
            facts = msgspec.structs.asdict(entry)
            if pid in self._coordinators:
                teams.append({"team": facts.pop("worker"), **facts})
            else:
                workers.append({**facts, "owner": self.ledger.owner_of(entry.worker, entry.incarnation)})
        root = {"pid": self.root, "restarts": self.restarts(COORDINATOR)}
        return {"coordinator": root, "teams": teams, "workers": workers}

    # ------------------------------------------------------------------ births

    def start_root(self) -> None:
        """Raises OSError if no process could be made."""
        self.root = self._fork_coordinator(COORDINATOR)
        self.record.add(self.root, platform.start_time_of(self.root) or 0, self._living)

    def _fork_coordinator(self, name: str) -> int:
        ours, theirs = platform.control_pair()
        fd = theirs.fileno()

        def forget() -> None:
            ours.detach()
            theirs.detach()
            self._forget()

        birth = child.Birth(
            name=name,
            run=lambda: self._entries.coordinator(self._store, fd, name),
            keep_fds=(fd,),
            forget=forget,
            subreaper=False,
        )
        try:
            pid = child.fork_child(birth)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.links[name] = ControlLink(ours)
        self._coordinators[pid] = name
        self._births[name] += 1
        self.ledger.reown(name, name)  # it answers for its workers again
        return pid

    def _fork_worker(self, name: str, grant_fd: int | None) -> int:
        if grant_fd is None:
            raise OSError(0, "its grant did not arrive")
        birth = child.Birth(
            name=name,
            run=lambda: self._entries.worker(grant_fd, self._lifeline_read),
            keep_fds=(grant_fd, self._lifeline_read),
            forget=self._forget,
            subreaper=True,
        )
        return child.fork_child(birth)

    def _forget(self) -> None:
        # In a forked child no object may close a number again that has been given to another file.
        self._forget_others()
        for link in self.links.values():
            link.detach()

    # ------------------------------------------------------------------ the coordinators' orders

    def obey(self, sender: str, message: ToSpawner | None, fds: list[int]) -> None:
        """Carry out one order. The descriptors that came with it stay the caller's."""
        match message:
            case SpawnWorker():
                self._start(sender, message, fds[0] if fds else None)
            case KillWorker(worker=worker, incarnation=incarnation, signal=number, tree=whole):
                alive = self.ledger.find(worker, incarnation)
                if alive is None:
                    return  # its exit is on the way
                if self.ledger.owner_of(worker, incarnation) != sender:
                    complain(f"{sender} may not signal worker {worker!r}; ignored")
                elif whole:
                    tree.kill_trees([alive.pid])
                else:
                    child.send_signal(alive.pid, number)
            case ListWorkers():
                self._list(sender, of=sender)
            case ExitSeen(worker=worker, incarnation=incarnation):
                if self.ledger.owner_of(worker, incarnation) == sender:
                    self.ledger.acknowledged(worker, incarnation)
            case Reown(source=source, target=target) if sender == COORDINATOR and source != COORDINATOR:
                self.ledger.reown(source, target)
                self._list(sender, of=source)
            case None:
                complain(f"{sender} sent something that is no message; ignored")
            case other:
                complain(f"{sender} may not send {type(other).__name__}; ignored")

    def _start(self, owner: str, order: SpawnWorker, grant_fd: int | None) -> None:
        name, incarnation = order.worker, order.incarnation
        if self.ledger.owner_of(name, incarnation) == owner:  # repeated: the same answer, never a second process
            answer = self.ledger.find(name, incarnation) or self.ledger.exits.get((name, incarnation))
            if answer is not None:  # else it is dead, and its exit is on the way
                self.tell(owner, answer)
            return
        if name in self.links or name == COORDINATOR or not self.ledger.allows(owner, name, incarnation):
            complain(f"{owner} may not start incarnation {incarnation} of worker {name!r}; refused")
            self.tell(
                owner,
                WorkerExited(worker=name, incarnation=incarnation, pid=0, exit_status=_EXIT_REFUSED, signal=None),
            )
            return
        try:
            pid = self._fork_coordinator(name) if order.is_coordinator else self._fork_worker(name, grant_fd)
        except OSError as error:
            complain(f"cannot start worker {name!r}: {error.strerror}")
            self.tell(owner, self.ledger.not_started(name, incarnation, _EXIT_NOT_FORKED, owner))
            return
        # Nothing was reaped or swept since the fork: the child is known before anybody could take it for an orphan.
        entry = self.ledger.started(name, incarnation, pid, platform.start_time_of(pid) or 0, owner)
        self.record.add(pid, entry.start_time, self._living)
        self.tell(owner, entry)

    def _list(self, asker: str, *, of: str) -> None:
        if asker in self.links:
            self.links[asker].send_list(self.ledger.listing(self.restarts(of), of))

    def tell(self, name: str | None, message: WorkerStarted | WorkerExited | StopFleet) -> None:
        """Send to a coordinator that is there to be told. Exits wait in the ledger for one that is not."""
        if name is not None and name in self.links:
            self.links[name].send(message)

    # ------------------------------------------------------------------ deaths

    def coordinator_of(self, pid: int) -> str | None:
        """The name of the coordinator that is, or was until it was reaped, process `pid`."""
        return self._coordinators.get(pid)

    def died(self, pid: int, status: int | None, number: int | None, now: float) -> None:
        """`pid` was reaped, by exit status or signal. Something below it may have been left to us: sweep."""
        name = self._coordinators.pop(pid, None)
        if name is not None:
            self.links.pop(name).close()
        if pid == self.root:
            self.root = None
        else:  # a worker, a team, or somebody's orphan
            self.ledger.died(pid, status, number, now)

    def sweep(self) -> bool:
        """Kill what no living process of the fleet answers for, and tell the owners of workers whose trees are proven gone.

        Returns whether something of the dead still lives: sweep again.
        """
        unknown = tree.sweep_orphans(self.known())
        for exit_ in self.ledger.settle(unknown, time.monotonic()):
            self.tell(self.ledger.owner_of(exit_.worker, exit_.incarnation), exit_)
        return bool(unknown)
