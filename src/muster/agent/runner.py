"""The task loop of one agent: takes assignments, works on them, reports.

Who knows what: the coordinator owns the truth about tasks. An assignment is acked as soon as it is noted here, in memory; if this process
dies, the coordinator sees the death and gives the task to somebody else. Assignments of another incarnation are refused, because their
task has already been given away; attempts that are held or finished are ignored. Verbs are believed from its own coordinator and from the
root alone: the bus has verified who holds the key, a name in a body counts for nothing.

Everything happens in callbacks on one event loop; there is no task, no polling and no timer while the agent is idle.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from muster.agent.attempt import Attempt
from muster.agent.mailbox import Mailbox
from muster.agent.outbox import Outbox
from muster.agent.status import boottime_ms
from muster.bus.answering import Heard
from muster.bus.envelope import Chain
from muster.bus.services import LOOPS_STOPPED
from muster.core import limits
from muster.core.names import COORDINATOR
from muster.core.protocol import (
    Assign,
    Cancel,
    Drain,
    Drained,
    Edges,
    Ping,
    Pong,
    Ready,
    Refused,
    Result,
    ResultRefused,
    RollCall,
)
from muster.errors import BodyEncodingError, BusError, MusterError
from muster.supervise.tree import start_time_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from muster.agent.attempt import AgentSetting, Executor
    from muster.agent.status import StatusWriter
    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery
    from muster.metrics.registry import Registry

#: Types that begin like this are muster's own words: from anybody but the coordinator they are refused.
VERBS = ("task.", "agent.", "fleet.", "run.")
#: Deliveries handled before the loop gets a turn.
_TURN = 64
#: Finished attempts remembered, so that a repeated assignment is not run again.
_FINISHED_MAX = 4096
#: Share of a drain's time that is kept for ending what still runs, and of that the share between stop signal and kill.
_ENDING_SHARE, _POLITE_SHARE = 0.1, 0.8
#: How much the status page may lag behind what begins and ends.
_PUBLISH_S = 0.05


class Runner:
    """One agent at work."""

    def __init__(
        self, setting: AgentSetting, bus: Bus, executor: Executor, page: StatusWriter, registry: Registry
    ) -> None:
        self.setting = setting
        self.bus = bus
        self.executor = executor
        self.page = page
        self.registry = registry
        self.mailbox = Mailbox(self._demand)
        #: Whose verbs are believed: its own coordinator's, and the root's.
        self._coordinators = tuple(dict.fromkeys((setting.coordinator, COORDINATOR)))
        self.outbox = Outbox(bus, setting.loop, setting.coordinator, emptied=self._advance)
        self.running: dict[tuple[int, int], Attempt] = {}
        #: What its commands have taken and may answer.
        self.heard = Heard()
        #: By attempt, what its command's messages are because of.
        self.causes: dict[tuple[int, int], Chain] = {}
        self.done = 0
        self.failed = 0
        #: Called before the first attempt starts; whenever the agent gets busy or idle; before its last message; after it was stored.
        self.on_first_task: Callable[[], None] = lambda: None
        self.on_activity: Callable[[], None] = lambda: None
        self.on_leaving: Callable[[Runner], None] = lambda _runner: None
        self.on_drained: Callable[[Runner], None] = lambda _runner: None
        self._queue: deque[Attempt] = deque()
        self._finished: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._is_draining = False
        self._is_closed = False
        self._is_leaving = False
        self._has_left = False
        self._has_worked = False
        self._deadline: asyncio.TimerHandle | None = None
        self._publishing: asyncio.TimerHandle | None = None
        self._verbs: dict[str, tuple[type, Callable[[Any, Delivery], None]]] = {
            "task.assign": (Assign, self._assign),
            "task.cancel": (Cancel, self._cancel),
            "agent.roll_call": (RollCall, self._roll_call),
            "agent.drain": (Drain, self._drain),
            "agent.ping": (Ping, self._ping),
            "task.result.refused": (ResultRefused, self._result_refused),
            "agent.edges": (Edges, self._edges),
        }

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Join: tell the coordinator and take what is there."""
        self._demand(False)
        self.bus.on_wake(self.pump)
        self.bus.on_loop = self._loop_stopped  # type: ignore[method-assign]
        self.page.state("ready")
        self.outbox.post(self._ready(None))
        self.pump()

    def drain(self, order: Drain) -> None:
        """Finish what runs, hand back what has not begun, say so, and call `on_drained`."""
        if not self._is_draining:
            self._is_draining = True
            self.page.state("draining")
            while self._queue:
                self._refuse(self._queue.popleft(), "drain")
        if self._deadline is not None:  # the newest order counts: the fleet's end does not wait for a rolling restart
            self._deadline.cancel()
        # The end of the time is for ending: at the deadline itself the coordinator has this whole process killed, politely or not.
        last_s = min(self.setting.kind.kill_grace_s, order.deadline_s * _ENDING_SHARE)
        self._deadline = self.setting.loop.call_later(order.deadline_s - last_s, self._stop_all, last_s * _POLITE_SHARE)
        if order.now:
            self._stop_all(min(self.setting.kind.kill_grace_s, order.deadline_s, limits.KILL_GRACE_NOW_S))
        self._advance()

    @property
    def is_busy(self) -> bool:
        return bool(self.running) or bool(self._queue)

    def close(self) -> None:
        """Stop listening; the bus is closed by the worker."""
        self._is_closed = True
        for timer in (self._deadline, self._publishing):
            if timer is not None:
                timer.cancel()
        self.outbox.close()
        self.mailbox.close()

    def _ready(self, nonce: int | None) -> Ready:
        holding = [*self.running, *(attempt.key for attempt in self._queue)]
        return Ready(
            incarnation=self.setting.incarnation,
            pid=os.getpid(),
            slots=self.setting.kind.slots,
            holding=holding,
            nonce=nonce,
        )

    # ------------------------------------------------------------------ receiving

    def _demand(self, wanted: bool) -> None:
        if self._is_closed:
            return
        self.bus.listen_to(None if wanted else self._coordinators)
        if wanted:
            self.pump()

    def pump(self) -> None:
        """Handle what has arrived. Safe to call at any time."""
        if self._is_closed:
            return
        self.outbox.flush()
        for _ in range(_TURN):
            delivery = self.bus.receive_nowait()
            if delivery is None:
                return
            self._handle(delivery)
        self.setting.loop.call_soon(self.pump)

    def _handle(self, delivery: Delivery) -> None:
        known = self._verbs.get(delivery.type)
        if known is None and not delivery.type.startswith(VERBS):
            self.mailbox.offer(delivery)
            return
        if delivery.sender not in self._coordinators:
            self._refuse_delivery(delivery, f"{delivery.type} is believed from the coordinator alone")
            return
        if known is None:
            self._refuse_delivery(delivery, f"an agent does not know {delivery.type}")
            return
        struct, handle = known
        try:
            body: Any = delivery.decode(struct)
        except BodyEncodingError as error:
            self._refuse_delivery(delivery, error.message)
            return
        handle(body, delivery)
        if delivery.is_open:
            delivery.ack()

    def _loop_stopped(self, recipient: str, hops: int) -> None:
        self.registry.count(LOOPS_STOPPED)
        print(
            f"muster: a message to {recipient} was refused: it would be number {hops} of a chain of answers", flush=True
        )

    def _refuse_delivery(self, delivery: Delivery, reason: str) -> None:
        self.registry.count("muster_messages_refused_total")
        delivery.dead_letter(reason)

    # ------------------------------------------------------------------ verbs of the coordinator

    def _assign(self, assign: Assign, delivery: Delivery) -> None:
        if assign.incarnation != self.setting.incarnation:
            self.registry.count("muster_assignments_stale_total")
            self.outbox.post(
                Refused(
                    number=assign.number, attempt=assign.attempt, incarnation=self.setting.incarnation, reason="stale"
                )
            )
            return
        attempt = Attempt.of(assign, self.setting.kind.timeout_s)
        if (
            attempt.key in self.running
            or attempt.key in self._finished
            or any(held.key == attempt.key for held in self._queue)
        ):
            self.registry.count("muster_assignments_duplicate_total")
            return
        if self._is_draining:
            self._refuse(attempt, "drain")
            return
        self._queue.append(attempt)
        delivery.ack()  # noted: from here on this process's death is what gives the task back
        self._start_next()

    def _cancel(self, cancel: Cancel, _delivery: Delivery) -> None:
        key = (cancel.number, cancel.attempt)
        attempt = self.running.get(key)
        if attempt is not None:
            self._stop(attempt, self.setting.kind.kill_grace_s)
            return
        for held in self._queue:
            if held.key == key:
                self._queue.remove(held)
                held.begin()
                self._ended_early(held)
                return

    def _result_refused(self, _refused: ResultRefused, _delivery: Delivery) -> None:
        self.registry.count("muster_results_refused_total")

    def _roll_call(self, call: RollCall, _delivery: Delivery) -> None:
        self.outbox.post(self._ready(call.nonce))

    def _drain(self, order: Drain, delivery: Delivery) -> None:
        delivery.ack()  # before the bus may be closed
        if order.incarnation in (0, self.setting.incarnation):  # else it was for one that has ended meanwhile
            self.drain(order)

    def _ping(self, ping: Ping, delivery: Delivery) -> None:
        try:
            delivery.reply(Pong(sent_ns=ping.sent_ns), type="agent.pong")
        except BusError:  # no room for the answer: the asker's timeout tells
            self.registry.count("muster_pings_unanswered_total")

    def _edges(self, edges: Edges, _delivery: Delivery) -> None:
        self.setting.learn(edges.keys)

    # ------------------------------------------------------------------ working

    def _start_next(self) -> None:
        # With results waiting for room nothing new begins: the coordinator is behind, and results must not pile up here.
        while self._queue and len(self.running) < self.setting.kind.slots and not self.outbox:
            self._start(self._queue.popleft())

    def _start(self, attempt: Attempt) -> None:
        if not self._has_worked:
            self._has_worked = True
            self.on_first_task()
        self.running[attempt.key] = attempt
        attempt.moved = self.moved
        if attempt.hops:
            self.causes[attempt.key] = Chain(attempt.hops - 1)
        self.executor.start(attempt, self._ended)
        self.moved()

    def _ended(self, attempt: Attempt, result: Result) -> None:
        """Nothing of the attempt is left. The result is stored before anything else begins."""
        self.running.pop(attempt.key, None)
        self.causes.pop(attempt.key, None)
        self._finished[attempt.key] = None
        if len(self._finished) > _FINISHED_MAX:
            self._finished.popitem(last=False)
        self.outbox.post(result)
        self._count(result)
        if self._queue:
            self._start_next()
        self.moved()
        if self._is_draining:
            self._advance()

    def moved(self) -> None:
        """Something began or ended: say so on the status page, soon. At most 20 times a second, however short the tasks are."""
        if self._publishing is None:
            self._publishing = self.setting.loop.call_later(_PUBLISH_S, self.publish)
            self.on_activity()

    def publish(self) -> None:
        """Bring the status page up to date."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        page, running = self.page, self.running
        attempt = next(reversed(running.values())) if running else None
        if not self._is_draining:
            # The state that needs a person first: one that waits is not seen behind others that work.
            states = {held.state for held in running.values()}
            page.state(next((name for name in ("waiting", "limited", "busy") if name in states), "ready"))
        page.set("task", attempt.number if attempt else 0)
        page.set("attempt", attempt.attempt if attempt else 0)
        page.set("child_pid", attempt.pid if attempt else 0)
        page.set("child_start_time", (start_time_of(attempt.pid) or 0) if attempt and attempt.pid else 0)
        page.set("running", len(running))
        page.set("done", self.done)
        page.set("failed", self.failed)
        page.set("progress_ms", boottime_ms())

    def _ended_early(self, attempt: Attempt) -> None:
        self._finished[attempt.key] = None
        result = Result(
            number=attempt.number, attempt=attempt.attempt, incarnation=self.setting.incarnation, outcome="cancelled",
            started_unix_s=attempt.started_unix_s,
        )  # fmt: skip
        self.outbox.post(result)
        self._count(result)

    def _count(self, result: Result) -> None:
        if result.outcome == "done":
            self.done += 1
        else:
            self.failed += 1
        self.registry.count(f"muster_attempts_{result.outcome}_total")
        self.registry.observe("muster_attempt_seconds", result.duration_s)

    def _refuse(self, attempt: Attempt, reason: Any) -> None:
        self.outbox.post(
            Refused(number=attempt.number, attempt=attempt.attempt, incarnation=self.setting.incarnation, reason=reason)
        )

    def _stop(self, attempt: Attempt, grace_s: float) -> None:
        if not attempt.stop:
            attempt.stop = "cancelled"
            self.executor.stop(attempt, grace_s)

    def _stop_all(self, grace_s: float) -> None:
        for attempt in list(self.running.values()):
            self._stop(attempt, grace_s)

    # ------------------------------------------------------------------ leaving

    def _advance(self) -> None:
        """Go on with what had to wait for room or for an end: queued attempts, or the last words."""
        if not self._is_draining:
            self._start_next()
            return
        if self.running or self.outbox:
            return
        if not self._is_leaving:
            self._is_leaving = True
            self.publish()
            self.page.state("stopped")
            # A turn later: this may run inside a delivery's handler, which still has the bus in its hands.
            self.setting.loop.call_soon(self._leave)
        elif self._has_left:
            self._has_left = False
            self.on_drained(self)

    def _leave(self) -> None:
        self.on_leaving(self)
        self.outbox.post(Drained(incarnation=self.setting.incarnation))
        self._has_left = True
        self._advance()

    def metrics_sent(self, snapshot: Any) -> bool:
        """Send a metrics snapshot if the way is free; snapshots are not worth waiting for."""
        if self.outbox or self.bus.closed:
            return False
        try:
            self.bus.post_struct(self.setting.coordinator, snapshot)
        except MusterError:
            return False
        return True
