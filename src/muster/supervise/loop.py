"""The spawner's loop: one thread, one poll, nothing in it waits.

Everything it does is an answer to a signal, a socket or a deadline. It forks, reaps, kills and tells; what to do about
a death is the coordinator's decision. The order in one turn is fixed: signals, deaths, trees, sockets, deadlines.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from muster.core.names import COORDINATOR
from muster.core.orders import ExitSeen, Finished, KillWorker, ListWorkers, SpawnWorker, StopFleet, ToSpawner
from muster.core.spec import FleetSpec
from muster.supervise import child, platform, tree
from muster.supervise.child import complain
from muster.supervise.control import ControlLink
from muster.supervise.entries import Entries
from muster.supervise.ledger import Ledger
from muster.supervise.leftovers import ChildRecord
from muster.supervise.restart import RestartBudget
from muster.supervise.server import ClientServer
from muster.supervise.shutdown import Ending, StopPlan
from muster.supervise.wake import Wake

#: Control messages carried out per turn: a burst of spawns must not keep exits and clients waiting.
_RECORDS_PER_TURN = 32
#: First and longest pause before processes that do not die are looked at again. Deaths wake the loop at once.
_SWEEP_AGAIN_S = 0.05
_SWEEP_PAUSE_MAX_S = 1.0
#: Time between `Finished` and the coordinator's own exit.
_FINISH_GRACE_S = 5.0
#: Workers should have ended before `Finished`: what is left gets SIGTERM, and SIGKILL this much later.
_LEFT_OVER_GRACE_S = 1.0
#: Pause between tries when the restart budget is spent and the policy is to keep the workers.
_KEEP_RETRY_S = 30.0
#: Exit status reported for a worker that could not be forked (EX_OSERR of sysexits.h).
_EXIT_NOT_FORKED = 71


class Spawner:
    """The root of one fleet. Construct it in the process that is to become the spawner, then `run` it once."""

    def __init__(self, store: Path, spec: FleetSpec, entries: Entries) -> None:
        self.store = store
        self.spec = spec
        self.entries = entries
        self.pid = os.getpid()
        self.start_time = platform.start_time_of(self.pid) or 0
        self.ledger = Ledger()
        self.budget = RestartBudget()
        self.stop = StopPlan(grace_s=spec.grace_s)
        self.ending: Ending | None = None
        self.finished: int | None = None
        self.coordinator: int | None = None
        self.coordinators_started = 0
        self.control: ControlLink | None = None
        self.start_coordinator_at: float | None = None
        self.finish_by: float | None = None
        self.sweep_at: float | None = None
        self.sweep_pause_s = _SWEEP_AGAIN_S
        # Readable (end of stream) in every worker once this process is gone; only this process may hold the write end.
        self._lifeline_read, self._lifeline_write = os.pipe()
        self.wake = Wake()
        self.server = ClientServer(store, status=self._status, stop=self._stop_asked, holder_gone=self._holder_gone)
        self.record = ChildRecord(store)
        self.record.add(self.pid, self.start_time, self._living)

    # ------------------------------------------------------------------ the loop

    def run(self) -> int:
        """Keep the fleet until nothing of it but this process lives; returns its exit status."""
        self.wake.listen()
        self.start_coordinator_at = time.monotonic()
        while True:
            now = time.monotonic()
            self._take_signals(now)
            self._reap(now)
            self._sweep(now)
            self._meet_deadlines(time.monotonic())
            if self.ending is not None and self._is_over():
                return self.ending.exit_status
            self._poll()

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self.wake.fileno(), select.POLLIN)
        control = self.control
        if control is not None and control.is_open:
            poll.register(control.fileno(), select.POLLIN | (select.POLLOUT if control.wants_write else 0))
        for fd, events in self.server.interests().items():
            poll.register(fd, events)
        for fd, _ in poll.poll(self._wait_ms()):
            if fd == self.wake.fileno():
                self.wake.clear()
            elif control is not None and control.is_open and fd == control.fileno():
                self._serve_coordinator(control)
            else:
                self.server.serve(fd)

    def _wait_ms(self) -> float | None:
        if self.wake.signals:
            return 0
        deadlines = [self.start_coordinator_at, self.finish_by, self.sweep_at, self.stop.deadline]
        if self.ending is not None:
            deadlines = [self.sweep_at, self.ending.next_deadline()]
        due = [at for at in deadlines if at is not None]
        # Rounded up: waking just before a deadline would turn the loop for nothing.
        return None if not due else max(0.0, (min(due) - time.monotonic()) * 1000) + 0.5

    def _take_signals(self, now: float) -> None:
        while self.wake.signals:
            name = signal.Signals(self.wake.signals.pop(0)).name
            # A second signal means now.
            self._request_stop("drain" if self.stop.mode is None else "now", f"spawner received {name}", now)

    def _meet_deadlines(self, now: float) -> None:
        if self.ending is not None:
            for order in self.ending.due(now):
                self._carry_out(order, now)
            return
        if self.stop.is_overdue(now):
            late = f"the fleet {self.spec.name!r} did not stop in time and was killed"
            self._end(1, grace_s=0.0, now=now, sentence=late)
            return
        if self.finish_by is not None and now >= self.finish_by and self.coordinator is not None:
            self.finish_by = None
            tree.kill_trees([self.coordinator])
        if self.start_coordinator_at is not None and now >= self.start_coordinator_at:
            self._start_coordinator()

    # ------------------------------------------------------------------ births

    @property
    def restarts(self) -> int:
        """How often the coordinator was started again."""
        return max(0, self.coordinators_started - 1)

    def _forget(self) -> None:
        """In a forked child, before descriptors are closed by number: no object may close the same number again."""
        self.server.detach()
        if self.control is not None:
            self.control.detach()

    def _living(self) -> list[tuple[int, int]]:
        entries = [(entry.pid, entry.start_time) for entry in self.ledger.alive.values()]
        if self.coordinator is not None:
            entries.append((self.coordinator, platform.start_time_of(self.coordinator) or 0))
        return [(self.pid, self.start_time), *entries]

    def _start_coordinator(self) -> None:
        self.start_coordinator_at = None
        ours, theirs = platform.control_pair()
        fd = theirs.fileno()

        def forget() -> None:
            ours.detach()
            theirs.detach()
            self._forget()

        birth = child.Birth(
            name="coordinator",
            run=lambda: self.entries.coordinator(self.store, fd, COORDINATOR),
            keep_fds=(fd,),
            forget=forget,
            subreaper=False,
        )
        try:
            self.coordinator = child.fork_child(birth)
        except OSError as error:
            ours.close()
            theirs.close()
            complain(f"cannot start the coordinator: {error.strerror}")
            self._coordinator_lost(time.monotonic())
            return
        theirs.close()
        self.control = ControlLink(ours)
        self.coordinators_started += 1
        self.record.add(self.coordinator, platform.start_time_of(self.coordinator) or 0, self._living)
        if self.stop.mode is not None:
            self.control.send(StopFleet(mode=self.stop.mode, reason=self.stop.reason))

    def _start_worker(self, control: ControlLink, order: SpawnWorker, grant_fd: int | None) -> None:
        alive = self.ledger.find(order.worker, order.incarnation)
        exited = self.ledger.exits.get((order.worker, order.incarnation))
        if alive is not None or exited is not None:  # a repeated order gets the same answer, never a second process
            control.send(alive or exited)  # type: ignore[arg-type]
            return
        if self.ledger.is_dying(order.worker, order.incarnation):
            return  # its exit is on the way
        try:
            if grant_fd is None:
                raise OSError(0, "its grant did not arrive")
            pid = child.fork_child(self._birth_of_worker(order.worker, grant_fd))
        except OSError as error:
            complain(f"cannot start worker {order.worker!r}: {error.strerror}")
            control.send(self.ledger.not_started(order.worker, order.incarnation, _EXIT_NOT_FORKED))
            return
        # Nothing was reaped or swept since the fork: the child is known before anybody could take it for an orphan.
        entry = self.ledger.started(order.worker, order.incarnation, pid, platform.start_time_of(pid) or 0)
        self.record.add(pid, entry.start_time, self._living)
        control.send(entry)

    def _birth_of_worker(self, worker: str, grant_fd: int) -> child.Birth:
        return child.Birth(
            name=worker,
            run=lambda: self.entries.worker(grant_fd, self._lifeline_read),
            keep_fds=(grant_fd, self._lifeline_read),
            forget=self._forget,
            subreaper=True,
        )

    # ------------------------------------------------------------------ deaths

    def _reap(self, now: float) -> bool:
        """Take note of every death. True when no child is left at all, living or dead."""
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            code = os.waitstatus_to_exitcode(raw)
            status, number = (code, None) if code >= 0 else (None, -code)
            if pid == self.coordinator:
                self.coordinator = None
                self._coordinator_died(status, number, now)
            else:
                # A worker's death, or an orphan's: either way something may have been left to us.
                self.ledger.died(pid, status, number, now)
            self.sweep_at, self.sweep_pause_s = now, _SWEEP_AGAIN_S

    def _coordinator_died(self, status: int | None, number: int | None, now: float) -> None:
        if self.control is not None:
            self._serve_coordinator(self.control, last_words=True)
            self.control.close()
            self.control = None
        if self.ending is not None:
            return
        if self.finished is not None:
            self._end(self.finished, grace_s=_LEFT_OVER_GRACE_S, now=now)
            return
        how = f"was killed by {signal.Signals(number).name}" if number else f"ended with status {status}"
        complain(f"the coordinator {how}; starting it again")
        self._coordinator_lost(now)

    def _coordinator_lost(self, now: float) -> None:
        delay_s = self.budget.next_delay_s(now)
        if delay_s is not None:
            self.start_coordinator_at = now + delay_s
            return
        deaths, period = self.budget.restarts_max + 1, f"{self.budget.period_s:.0f} s"
        spent = f"the coordinator of {self.spec.name!r} died {deaths} times in {period}"
        if self.spec.orphan_policy == "keep":
            complain(f"{spent}; the workers go on, and it is tried again every {_KEEP_RETRY_S:.0f} s")
            self.start_coordinator_at = now + _KEEP_RETRY_S
            return
        self._end(1, grace_s=self.spec.orphan_grace_s, now=now, sentence=f"{spent}; the workers are stopped")

    def _sweep(self, now: float) -> None:
        """Kill what no living process of the fleet answers for; say which workers' trees are proven gone."""
        if self.sweep_at is None or now < self.sweep_at:
            return
        known = self._known()
        unknown = tree.sweep_orphans(known)
        for exit_ in self.ledger.settle(unknown, time.monotonic()):
            if self.control is not None:
                self.control.send(exit_)
        self.sweep_at = time.monotonic() + self.sweep_pause_s if unknown else None
        self.sweep_pause_s = min(_SWEEP_PAUSE_MAX_S, self.sweep_pause_s * 2) if unknown else _SWEEP_AGAIN_S

    def _known(self) -> set[int]:
        known = set(self.ledger.alive)
        if self.coordinator is not None:
            known.add(self.coordinator)
        return known

    # ------------------------------------------------------------------ the coordinator's orders

    def _serve_coordinator(self, control: ControlLink, *, last_words: bool = False) -> None:
        control.flush()
        while True:
            count = 0
            for message, fds in control.receive(_RECORDS_PER_TURN):
                count += 1
                try:
                    self._obey(control, message, fds)
                finally:
                    for fd in fds:  # the child has its own copy; keys do not stay here
                        os.close(fd)
            if not last_words or count == 0:
                return

    def _obey(self, control: ControlLink, message: ToSpawner | None, fds: list[int]) -> None:
        match message:
            case SpawnWorker():
                if self.ending is None and self.coordinator is not None:
                    self._start_worker(control, message, fds[0] if fds else None)
            case KillWorker(worker=worker, incarnation=incarnation, signal=number, tree=whole):
                alive = self.ledger.find(worker, incarnation)
                if alive is None:
                    return  # its exit is on the way
                if whole:
                    tree.kill_trees([alive.pid])
                else:
                    self._signal(alive.pid, number)
            case ListWorkers():
                control.send_list(self.ledger.listing(self.restarts))
            case ExitSeen(worker=worker, incarnation=incarnation):
                self.ledger.acknowledged(worker, incarnation)
            case Finished(exit_status=status):
                self.finished = status
                self.finish_by = time.monotonic() + _FINISH_GRACE_S
            case _:
                complain("the coordinator sent something that is no message; ignored")

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)  # our own unreaped child: the pid cannot be anybody else's
        except (OSError, ValueError) as error:
            complain(f"cannot send signal {number} to process {pid}: {error}")

    # ------------------------------------------------------------------ stopping and ending

    def _stop_asked(self, mode: str, reason: str) -> None:
        self._request_stop("now" if mode == "now" else "drain", reason, time.monotonic())

    def _holder_gone(self) -> None:
        self._request_stop("drain", "the command line that held the fleet went away", time.monotonic())

    def _request_stop(self, mode: str, reason: str, now: float) -> None:
        if self.ending is not None:
            if mode == "now":
                self.ending.hurry(now)
            return
        if not self.stop.request(mode, reason, now) or self.stop.mode is None:
            return
        if self.control is not None:
            self.control.send(StopFleet(mode=self.stop.mode, reason=self.stop.reason))
        elif self.start_coordinator_at is not None:
            self.start_coordinator_at = now  # there is something to do for it at last

    def _end(self, exit_status: int, *, grace_s: float, now: float, sentence: str = "") -> None:
        if sentence:
            complain(sentence)
        self.start_coordinator_at = self.finish_by = None
        self.ending = Ending(exit_status=exit_status, kill_at=now + grace_s, terminate=grace_s > 0)
        self.sweep_at = now

    def _carry_out(self, order: str, now: float) -> None:
        if order == "terminate":
            for pid in self.ledger.alive:
                self._signal(pid, signal.SIGTERM)
        elif order == "kill":
            tree.kill_trees(self._known())
            self.sweep_at = now

    def _is_over(self) -> bool:
        """Whether nothing is left below us: no child means no descendant, because every orphan becomes our child."""
        assert self.ending is not None
        now = time.monotonic()
        if self._reap(now):
            return True
        if now < self.ending.give_up_at:
            return False
        left = platform.children_of(self.pid)
        complain(f"processes {', '.join(map(str, left))} of {self.spec.name!r} cannot be killed")
        self.ending.exit_status = self.ending.exit_status or 1
        self.ending.survivors = left
        return True

    # ------------------------------------------------------------------ answers

    def serve_clients(self, timeout_s: float) -> None:
        """After the end: one turn for the clients only."""
        poll = select.poll()
        for fd, events in self.server.interests().items():
            poll.register(fd, events)
        for fd, _ in poll.poll(timeout_s * 1000):
            self.server.serve(fd)

    def _status(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "start_time": self.start_time,
            "fleet": self.spec.name,
            "store_id": self.spec.store_id,
            "stopping": self.stop.mode,
            "coordinator": {"pid": self.coordinator, "restarts": self.restarts},
            "workers": [msgspec.structs.asdict(entry) for entry in self.ledger.alive.values()],
        }
