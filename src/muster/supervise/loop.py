"""The spawner's loop: one thread, one poll, nothing in it waits.

Everything it does is an answer to a signal, a socket or a deadline. It forks, reaps, kills and tells; what to do about
a death is the owner's decision, except that the root is started again here. The order in one turn is fixed: signals,
deaths, trees, sockets, deadlines.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from muster.core.names import COORDINATOR
from muster.core.orders import Finished, SpawnWorker, StopFleet, ToSpawner
from muster.core.spec import FleetSpec
from muster.supervise import child, platform, spare, tree
from muster.supervise.child import complain
from muster.supervise.entries import Entries
from muster.supervise.family import Family
from muster.supervise.restart import RestartBudget
from muster.supervise.server import ClientServer
from muster.supervise.shutdown import Ending, StopPlan
from muster.supervise.wake import Wake

#: Control messages of one coordinator carried out per turn: its burst of spawns must not keep exits, clients and the others waiting.
_RECORDS_PER_TURN = 8
#: First and longest pause before processes that do not die are looked at again. Deaths wake the loop at once.
_SWEEP_AGAIN_S = 0.05
_SWEEP_PAUSE_MAX_S = 1.0
#: Time between `Finished` and the coordinator's own exit.
_FINISH_GRACE_S = 5.0
#: Workers should have ended before `Finished`: what is left gets SIGTERM, and SIGKILL this much later.
_LEFT_OVER_GRACE_S = 1.0
#: Pause between tries when the restart budget is spent and the policy is to keep the workers.
_KEEP_RETRY_S = 30.0


class Spawner:
    """The root of one fleet. Construct it in the process that is to become the spawner, then `run` it once."""

    def __init__(self, store: Path, spec: FleetSpec, entries: Entries) -> None:
        self.store = store
        self.spec = spec
        self.budget = RestartBudget()
        self.stop = StopPlan(grace_s=spec.grace_s)
        self.ending: Ending | None = None
        self.finished: int | None = None
        self.start_root_at: float | None = None
        self.finish_by: float | None = None
        self.sweep_at: float | None = None
        self.sweep_pause_s = _SWEEP_AGAIN_S
        spare.hold()
        self.wake = Wake()
        self.server = ClientServer(store, status=self._status, stop=self._stop_asked, holder_gone=self._holder_gone)
        self.family = Family(store, entries, self.server.detach)

    # ------------------------------------------------------------------ the loop

    def run(self) -> int:
        """Keep the fleet until nothing of it but this process lives; returns its exit status."""
        self.wake.listen()
        self.start_root_at = time.monotonic()
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
        links = {link.fileno(): name for name, link in self.family.links.items() if link.is_open}
        for fd, name in links.items():
            wants_write = self.family.links[name].wants_write
            poll.register(fd, select.POLLIN | (select.POLLOUT if wants_write else 0))
        for fd, events in self.server.interests().items():
            poll.register(fd, events)
        for fd, _ in poll.poll(self._wait_ms()):
            if fd == self.wake.fileno():
                self.wake.clear()
            elif fd in links:
                self._serve_coordinator(links[fd])
            else:
                self.server.serve(fd)

    def _wait_ms(self) -> float | None:
        if self.wake.signals:
            return 0
        deadlines = [self.start_root_at, self.finish_by, self.sweep_at, self.stop.deadline]
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
        if self.finish_by is not None and now >= self.finish_by and self.family.root is not None:
            self.finish_by = None
            tree.kill_trees([self.family.root])
        if self.start_root_at is not None and now >= self.start_root_at:
            self._start_root(now)

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
            coordinator = self.family.coordinator_of(pid)
            if coordinator is not None:
                self._serve_coordinator(coordinator, last_words=True)
            self.family.died(pid, status, number, now)
            self.sweep_at, self.sweep_pause_s = now, _SWEEP_AGAIN_S
            if coordinator == COORDINATOR:
                self._root_died(status, number, now)

    def _sweep(self, now: float) -> None:
        if self.sweep_at is None or now < self.sweep_at:
            return
        try:
            is_left = self.family.sweep()
        except OSError:  # no descriptor to look with, not even a spare one: nothing is proven, and it is looked again
            is_left = True
        self.sweep_at = time.monotonic() + self.sweep_pause_s if is_left else None
        self.sweep_pause_s = min(_SWEEP_PAUSE_MAX_S, self.sweep_pause_s * 2) if is_left else _SWEEP_AGAIN_S

    # ------------------------------------------------------------------ the root

    def _start_root(self, now: float) -> None:
        self.start_root_at = None
        try:
            self.family.start_root()
        except OSError as error:
            complain(f"cannot start the coordinator: {error.strerror}")
            self._root_lost(now)
            return
        if self.stop.mode is not None:
            self.family.tell(COORDINATOR, StopFleet(mode=self.stop.mode, reason=self.stop.reason))

    def _root_died(self, status: int | None, number: int | None, now: float) -> None:
        if self.ending is not None:
            return
        if self.finished is not None:
            self._end(self.finished, grace_s=_LEFT_OVER_GRACE_S, now=now)
            return
        how = f"was killed by {signal.Signals(number).name}" if number else f"ended with status {status}"
        complain(f"the coordinator {how}; starting it again")
        self._root_lost(now)

    def _root_lost(self, now: float) -> None:
        delay_s = self.budget.next_delay_s(now)
        if delay_s is not None:
            self.start_root_at = now + delay_s
            return
        deaths, period = self.budget.restarts_max + 1, f"{self.budget.period_s:.0f} s"
        spent = f"the coordinator of {self.spec.name!r} died {deaths} times in {period}"
        if self.spec.orphan_policy == "keep":
            complain(f"{spent}; the workers go on, and it is tried again every {_KEEP_RETRY_S:.0f} s")
            self.start_root_at = now + _KEEP_RETRY_S
            return
        self._end(1, grace_s=self.spec.orphan_grace_s, now=now, sentence=f"{spent}; the workers are stopped")

    # ------------------------------------------------------------------ the coordinators' orders

    def _serve_coordinator(self, name: str, *, last_words: bool = False) -> None:
        link = self.family.links[name]
        link.flush()
        while True:
            count = 0
            for message, fds in link.receive(_RECORDS_PER_TURN):
                count += 1
                try:
                    self._obey(name, message, fds, is_dead=last_words)
                finally:
                    for fd in fds:  # the child has its own copy; keys do not stay here
                        os.close(fd)
            if not last_words or count == 0:
                return

    def _obey(self, name: str, message: ToSpawner | None, fds: list[int], *, is_dead: bool) -> None:
        match message:
            case SpawnWorker() if is_dead or self.ending is not None:
                pass  # the next one orders it again, or nobody does
            case Finished(exit_status=status) if name == COORDINATOR:
                self.finished = status
                self.finish_by = time.monotonic() + _FINISH_GRACE_S
            case _:
                self.family.obey(name, message, fds)

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
        if self.family.root is not None:
            self.family.tell(COORDINATOR, StopFleet(mode=self.stop.mode, reason=self.stop.reason))
        elif self.start_root_at is not None:
            self.start_root_at = now  # there is something to do for it at last

    def _end(self, exit_status: int, *, grace_s: float, now: float, sentence: str = "") -> None:
        if sentence:
            complain(sentence)
        self.start_root_at = self.finish_by = None
        self.ending = Ending(exit_status=exit_status, kill_at=now + grace_s, terminate=grace_s > 0)
        self.sweep_at = now

    def _carry_out(self, order: str, now: float) -> None:
        if order == "terminate":
            for pid in self.family.ledger.alive:
                child.send_signal(pid, signal.SIGTERM)
        elif order == "kill":
            tree.kill_trees(self.family.known())
            self.sweep_at = now

    def _is_over(self) -> bool:
        """Whether nothing is left below us: no child means no descendant, because every orphan becomes our child."""
        assert self.ending is not None
        now = time.monotonic()
        if self._reap(now):
            return True
        if now < self.ending.give_up_at:
            return False
        with spare.released():
            left = platform.children_of(os.getpid())
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
            "pid": self.family.pid,
            "start_time": self.family.start_time,
            "fleet": self.spec.name,
            "store_id": self.spec.store_id,
            "stopping": self.stop.mode,
            **self.family.status(),
        }
