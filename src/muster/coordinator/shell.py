"""The shell around the machine: one loop that takes in, writes down, carries out, acks. In that order, always.

A turn: take a batch of deliveries and control messages, make facts of them, apply them, append the facts to the log, hand the records of
ended tasks to the recorder, carry out the effects, ack. A crash after any step loses nothing: what is not logged is redelivered, what is
logged but not carried out is found again by recovery (see `events`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from muster.coordinator import events as ev
from muster.coordinator.effects import Dissolve
from muster.coordinator.intake import Intake
from muster.coordinator.rejecting import reject
from muster.core.orders import ExitSeen, StopFleet, WorkerList
from muster.core.orders import KillWorker as KillOrder
from muster.core.orders import SpawnWorker as SpawnOrder
from muster.core.orders import WorkerExited as ExitMessage
from muster.core.orders import WorkerStarted as StartMessage
from muster.core.protocol import TYPE_OF, Assign
from muster.errors import BodyTooLargeError, BusError, MusterError, StoreFullError

if TYPE_CHECKING:
    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery
    from muster.coordinator.control import Control
    from muster.coordinator.grants import Grants
    from muster.coordinator.log import EventLog
    from muster.coordinator.machine import Machine
    from muster.coordinator.notes import NoteTaker
    from muster.coordinator.recording import Recorder

#: Deliveries taken in one turn: enough to share a log record, few enough to keep the spawner and the timers served.
BATCH_MAX = 256
#: And seconds: where each of them opens a lane, as after a restart, the first must not wait for the last.
BATCH_S = 0.02
#: Pause before a message that a full inbox or store refused is tried again, and before a full store is asked again for the log.
RETRY_S = 0.05
LOG_RETRY_S = 0.2


class Clock:
    """Seconds that start as wall time and go on as monotonic time, never behind what the log has seen."""

    def __init__(
        self,
        not_before_s: float,
        wall_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steady_s = steady_s
        self._offset_s = max(wall_s(), not_before_s) - steady_s()

    def now_s(self) -> float:
        """The time of a fact that happens now."""
        return self._steady_s() + self._offset_s


class Shell:
    """Everything a turn needs. `finish` is set once the machine has ended the fleet."""

    #: Where ends of tasks go; set once, before the first turn.
    recorder: Recorder

    def __init__(self, bus: Bus, machine: Machine, log: EventLog, notes: NoteTaker) -> None:
        self.bus, self.machine, self.log, self.notes = bus, machine, log, notes
        self.clock = Clock(machine.state.now_s)
        self.control: Control | None = None
        self.grants: Grants | None = None
        self.finish: ev.Finish | None = None
        self._caught_up = False
        #: The root's: how a team that was given up is brought to its end, and who else hears the spawner's words.
        self.dissolve: Callable[[str, list[str]], None] = lambda _team, _heirs: None
        self.overhear: Callable[[Any], bool] = lambda _message: False
        self.on_message: dict[str, Callable[[Delivery], None]] = {}
        #: The same for messages that stay in hand until they are decided: who takes them acks them.
        self.on_kept: dict[str, Callable[[Delivery], None]] = {}
        #: Carries out that the fleet has another number of agents.
        self.resize: Callable[[ev.FleetResized], None] = lambda _effect: None
        #: Set by the service that watches processes which hold locks.
        #: Hears which worker is dead.
        self.on_exit: Callable[[str], None] = lambda _worker: None
        self.watch_holder: Callable[[ev.WatchHolder], None] = lambda _holder: None
        #: Why the machine has no room for more; "": it has.
        self.held_back = ""
        self.wake = asyncio.Event()
        self.intake = Intake(self)
        self._pending: dict[str, deque[ev.Post]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        bus.on_wake(self.wake.set)

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Turn after turn until the fleet has ended or the spawner is gone."""
        while self.finish is None and not (self.control is not None and self.control.is_lost):
            self.wake.clear()
            if await self.turn():
                await asyncio.sleep(0)  # the control socket, timers and services get their turn
            else:
                self._arm_timer()
                await self.wake.wait()

    async def turn(self) -> bool:
        """One turn; True if there was anything to do."""
        intake = self.intake
        taken = 0
        receive = self.bus.receive_nowait
        ends_s = time.monotonic() + BATCH_S
        while taken < BATCH_MAX and (not taken or time.monotonic() < ends_s):
            delivery = receive()
            if delivery is None:
                if not self._caught_up and not self.bus.transport.holds_back:
                    # Everything that was in hand when the last coordinator died has come again.
                    self._caught_up = True
                    self.recorder.all_came_again()
                break
            intake.take(delivery)
            taken += 1
        if self.control is not None:
            while self.control.received:
                self.take_control(self.control.received.popleft())
                taken += 1
        self._retry_pending()
        due_s = self.machine.due_s()
        now_s = self.clock.now_s()
        if due_s is not None and due_s <= now_s:
            intake.facts.append(ev.TimePassed(now_s))
        recorder = self.recorder
        if recorder.waiting:
            recorder.retry()
        is_open = not recorder.is_jammed and not self.held_back
        if is_open != self.machine.state.admission_open:
            intake.facts.append(ev.AdmissionChanged(now_s, is_open))
        if taken or intake.facts:
            await self.commit()
        return bool(taken)

    async def commit(self) -> None:
        """Apply, write down, carry out and ack everything taken in."""
        intake = self.intake
        facts, results, acks, exits = intake.hand_over()
        effects: list[ev.Effect] = []
        apply = self.machine.apply
        for fact in facts:
            effects += apply(fact)
        try:
            self.log.append(facts)
        except StoreFullError:
            await self._until_logged()
        for effect in effects:
            if isinstance(effect, ev.Rejected):
                reject(self.bus, effect, results)
        records = [effect for effect in effects if isinstance(effect, ev.Record)]
        if records or results:
            self.recorder.record(records, results)
        for effect in effects:
            if isinstance(effect, ev.Post):
                self.post(effect)
            elif not isinstance(effect, ev.Record):
                self._carry_out(effect)
        for delivery in acks:
            delivery.ack()
        intake.asks.answer(self.machine.state)
        for seen in exits:
            if self.control is not None:
                self.control.send(seen)
        self.recorder.after_turn()
        if self.log.snapshot_due(len(self.machine.state.tasks) + len(self.machine.state.kept)) and self.may_snapshot:
            self.log.write_snapshot(self.machine.state)

    @property
    def may_snapshot(self) -> bool:
        """Whether nothing depends on replaying the records of the past."""
        return self._caught_up and self.recorder.is_settled

    async def _until_logged(self) -> None:
        """The store is full: free the reserve, else wait for room. Nothing is carried out or acked meanwhile, nothing is lost."""
        self.notes.write("store.full", reserve_freed=self.log.release_reserve())
        while True:
            try:
                self.log.flush()
                return
            except StoreFullError:
                if self.control is not None and self.control.is_lost:
                    raise
                await asyncio.sleep(LOG_RETRY_S)

    def _arm_timer(self) -> None:
        due_s = self.machine.due_s()
        delay_s = None if due_s is None else max(0.0, due_s - self.clock.now_s())
        if self._pending or self.recorder.waiting:
            delay_s = RETRY_S if delay_s is None else min(delay_s, RETRY_S)
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if delay_s is None else loop.call_later(delay_s, self.wake.set)

    def recording_failed(self, message: str) -> None:
        """The recorder cannot write down what ended."""
        self.intake.facts.append(ev.RecordingFailed(self.clock.now_s(), message))
        self.wake.set()

    # ------------------------------------------------------------------ effects

    def post(self, post: ev.Post) -> None:
        """Send a message, behind those that wait for the same agent."""
        queue = self._pending.get(post.to)
        if queue is not None:
            queue.append(post)
        elif not self._try(post):
            self._pending[post.to] = deque([post])
            self.wake.set()

    def _try(self, post: ev.Post) -> bool:
        body = post.body
        try:
            self.bus.post(
                post.to,
                body,
                type=TYPE_OF[body.__class__],
                priority="control" if post.is_control else "normal",
                message_id=post.message_id,
                correlation_id=post.answers,
                causation_id=post.answers,
            )
        except BodyTooLargeError as error:
            if isinstance(body, Assign):  # no agent can ever be given it
                self.intake.facts.append(
                    ev.TaskImpossible(self.clock.now_s(), body.number, body.attempt, error.message)
                )
                self.wake.set()
        except MusterError as error:  # no credit or no room: kept, and tried again in its order
            if post.answers is None and not isinstance(error, BusError):
                raise
            return post.answers is not None  # whoever got no answer asks again
        return True

    def _retry_pending(self) -> None:
        for to in list(self._pending):
            queue = self._pending[to]
            while queue and self._try(queue[0]):
                queue.popleft()
            if not queue:
                del self._pending[to]

    def forget_pending(self, agent: str) -> None:
        """Orders to an incarnation that is dead are not worth sending."""
        self._pending.pop(agent, None)

    def _carry_out(self, effect: ev.Effect) -> None:
        if isinstance(effect, ev.Finish):
            self.finish = effect
        elif isinstance(effect, ev.Noted):
            self.notes.write(effect.event, **effect.facts)
        elif isinstance(effect, ev.WatchHolder):
            self.watch_holder(effect)
        elif isinstance(effect, ev.FleetResized):
            self.resize(effect)
        elif isinstance(effect, Dissolve):
            self.dissolve(effect.team, effect.heirs)
        elif self.control is None:
            return
        elif isinstance(effect, ev.SpawnWorker):
            grants = self.grants
            assert grants is not None
            agents = self.machine.state.workers[effect.worker].agents
            worker, incarnation = effect.worker, effect.incarnation
            if self.machine.state.workers[worker].is_team:
                self.control.send(SpawnOrder(worker=worker, incarnation=incarnation, is_coordinator=True))
                return
            self.control.send(
                SpawnOrder(worker=worker, incarnation=incarnation), lambda: grants.grant(worker, incarnation, agents)
            )
        elif isinstance(effect, ev.KillWorker):
            self.control.send(
                KillOrder(worker=effect.worker, incarnation=effect.incarnation, signal=effect.signal, tree=effect.tree)
            )

    # ------------------------------------------------------------------ the spawner's words

    def take_control(self, message: Any) -> None:
        """Turn a control message into facts."""
        now_s = self.clock.now_s()
        facts = self.intake.facts
        if not isinstance(message, StopFleet) and self.overhear(message):
            return
        if isinstance(message, StartMessage):
            facts.append(ev.WorkerStarted(now_s, message.worker, message.incarnation, message.pid, message.start_time))
        elif isinstance(message, ExitMessage):
            self.take_exit(message)
        elif isinstance(message, StopFleet):
            facts.append(ev.StopRequested(now_s, message.mode, message.reason))
        elif isinstance(message, WorkerList):
            self.notes.write("spawner.listed_twice")

    def take_exit(self, message: ExitMessage) -> None:
        """A worker is dead. What its agents had stored before counts first: a stored result is never run again."""
        self.drain_worker(message.worker)
        self.on_exit(message.worker)
        self.intake.facts.append(
            ev.WorkerExited(
                self.clock.now_s(),
                message.worker,
                message.incarnation,
                message.exit_status,
                message.signal,
                len(message.survivors),
            )
        )
        self.intake.exits.append(ExitSeen(worker=message.worker, incarnation=message.incarnation))

    def drain_worker(self, name: str) -> None:
        """Take everything the agents of a dead worker have stored for us."""
        worker = self.machine.state.workers.get(name)
        for agent in worker.agents if worker is not None else ():
            if worker is not None and not worker.is_team:  # what is for a team is for its next coordinator, too
                self.forget_pending(agent)
            for delivery in self.bus.drain_sender(agent):
                self.intake.take(delivery)
