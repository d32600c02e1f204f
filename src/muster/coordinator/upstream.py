"""A team's way to its root: ends of attempts go up, assignments come down, and the root is told what the team can take.

What is said goes up in one order: a `Ready` comes after every end that was decided before it. An agent's delivery is acked when its result
is stored for the root, so a team's coordinator that dies loses none; explicit message ids make saying it again harmless.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from muster.coordinator import entrusted
from muster.coordinator import events as ev
from muster.coordinator.asks import Asks
from muster.coordinator.intake import Intake
from muster.coordinator.outputs import forget_files
from muster.coordinator.supervising import named
from muster.core.names import COORDINATOR
from muster.core.protocol import (
    TYPE_OF,
    Assign,
    Cancel,
    Drain,
    Ping,
    Pong,
    Ready,
    Refused,
    Restart,
    Result,
    RollCall,
    TaskInput,
    TeamAdopt,
    TeamNoted,
)
from muster.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery
    from muster.coordinator.intake import ResultsOfTurn
    from muster.coordinator.shell import Shell
    from muster.coordinator.state import State
    from muster.core.spec import AgentSpec

#: Words that may wait for room at the root before the team assigns nothing more.
WAITING_MAX = 1000
#: Ends that no agent's result tells of.
_WITHOUT_RESULT = (entrusted.DIED, entrusted.REFUSED, entrusted.IMPOSSIBLE)


class _Word(NamedTuple):
    body: msgspec.Struct
    message_id: str | None
    delivery: Delivery | None


class Upstream:
    """A team's recorder."""

    def __init__(self, bus: Bus, state: State, incarnation: int) -> None:
        self._bus, self.state, self.incarnation = bus, state, incarnation
        self._waiting: deque[_Word] = deque()
        self._replayed: dict[int, ev.Record] = {}
        self._told: tuple[int, bool] | None = None
        #: The root's roll call that is to be answered at the end of the turn.
        self.nonce: int | None = None

    def say(self, body: msgspec.Struct, message_id: str | None = None, delivery: Delivery | None = None) -> None:
        """Store `body` for the root, now or as soon as there is room, behind everything said before; then ack `delivery`."""
        self._waiting.append(_Word(body, message_id, delivery))
        self.retry()

    def retry(self) -> None:
        while self._waiting:
            word = self._waiting[0]
            try:
                self._bus.post_struct(COORDINATOR, word.body, message_id=word.message_id)
            except BusError:  # no credit, or no room in the store
                return
            self._waiting.popleft()
            if word.delivery is not None:
                word.delivery.ack()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_jammed(self) -> bool:
        return len(self._waiting) > WAITING_MAX

    @property
    def is_settled(self) -> bool:
        return not self._waiting

    def expect(self, numbers: Iterable[int]) -> None:
        """Nothing: the root keeps the order of outputs."""

    def all_came_again(self) -> None:
        """Nothing waits for that."""

    def recover(self, records: list[ev.Record]) -> None:
        self._replayed = {record.number: record for record in records}

    def go_on(self) -> None:
        for record in self._replayed.values():
            if record.outcome in _WITHOUT_RESULT or not record.agent:
                self._say_end(record)

    def record(self, records: list[ev.Record], results: ResultsOfTurn) -> None:
        for record in records:
            result, delivery = results.pop((record.number, record.attempt, record.agent), (None, None))
            if result is None or delivery is None:
                self._say_end(record)
            else:
                self._pass_on(result, record.agent, delivery)
        for result, delivery in results.values():  # stale
            forget_files(result)
            delivery.ack()

    def again(self, result: Result, delivery: Delivery) -> bool:
        record = self._replayed.get(result.number)
        if record is None or record.attempt != result.attempt or record.agent != delivery.sender:
            return False
        self._pass_on(result, record.agent, delivery)
        return True

    def after_turn(self) -> None:
        """Tell the root what the team can take, when that has changed or was asked."""
        state = self.state
        now = entrusted.capacity(state), bool(state.kinds_out)
        if self.nonce is None and now == self._told:
            return
        slots, is_out = self._told = now
        ready = Ready(
            incarnation=self.incarnation, pid=os.getpid(), slots=slots, holding=entrusted.holding(state), nonce=self.nonce,
            is_out=is_out,
        )  # fmt: skip
        self.nonce = None
        self.say(ready)

    def _pass_on(self, result: Result, agent: str, delivery: Delivery) -> None:
        body = msgspec.structs.replace(result, incarnation=0, agent=agent)
        self.say(body, f"result-{result.number}-{result.attempt}", delivery)

    def _say_end(self, record: ev.Record) -> None:
        number, attempt, outcome = record.number, record.attempt, record.outcome
        if outcome == entrusted.REFUSED:
            self.say(
                Refused(number=number, attempt=attempt, incarnation=0, reason="drain"), f"refused-{number}-{attempt}"
            )
            return
        why = {"code": f"task.{outcome}", "message": record.evidence[-1]} if record.evidence else None
        told: Any = "failed" if outcome == entrusted.IMPOSSIBLE else outcome
        body = Result(number=number, attempt=attempt, incarnation=0, outcome=told, error=why, agent=record.agent)
        self.say(body, f"result-{number}-{attempt}")


class TeamIntake(Intake):
    """What a team's coordinator takes in: words of its agents, and orders of the root."""

    def __init__(self, shell: Shell, upstream: Upstream, kind: AgentSpec) -> None:
        super().__init__(shell)
        self._upstream, self._kind = upstream, kind
        self.asks = Asks({})
        agents = {name: self._makers[name] for name in ("task.result", "task.refused", "agent.ready", "agent.drained")}
        orders: dict[str, Callable[[Delivery], None]] = {
            "task.assign": self._assign,
            "task.cancel": self._cancel,
            "agent.drain": self._drain,
            "team.adopt": self._adopt,
            "agent.roll_call": self._roll_call,
            "fleet.restart": self._restart,
            "agent.ping": self._ping,
        }
        self._makers = {**agents, **{name: self._from_root(make) for name, make in orders.items()}}

    @staticmethod
    def _from_root(make: Callable[[Delivery], None]) -> Callable[[Delivery], None]:
        def checked(delivery: Delivery) -> None:
            if delivery.sender == COORDINATOR:
                make(delivery)
            else:
                delivery.dead_letter(f"{delivery.type} is believed from the root coordinator alone")

        return checked

    def _fact(self, fact: ev.AnyFact, delivery: Delivery) -> None:
        self.facts.append(fact)
        self.acks.append(delivery)

    def _assign(self, delivery: Delivery) -> None:
        assign: Assign = delivery.decode(Assign)
        task = TaskInput(
            assign.number,
            assign.input,
            timeout_s=assign.timeout_s,
            attempt=assign.attempt,
            session=assign.session,
            hops=assign.hops,
        )
        self._fact(ev.TasksEntrusted(self._shell.clock.now_s(), [task]), delivery)

    def _cancel(self, delivery: Delivery) -> None:
        cancel: Cancel = delivery.decode(Cancel)
        self._fact(ev.TaskRecalled(self._shell.clock.now_s(), cancel.number, cancel.attempt), delivery)

    def _drain(self, delivery: Delivery) -> None:
        drain: Drain = delivery.decode(Drain)
        if drain.incarnation in (0, self._upstream.incarnation):
            self._fact(ev.DrainOrdered(self._shell.clock.now_s(), drain.now, drain.deadline_s), delivery)
        else:  # for one that has ended meanwhile
            self.acks.append(delivery)

    def _adopt(self, delivery: Delivery) -> None:
        adopt: TeamAdopt = delivery.decode(TeamAdopt)
        entry = ev.WorkerPlan(adopt.worker, adopt.agents, self._kind.restart, self._kind.child)
        self._fact(ev.WorkersAdopted(self._shell.clock.now_s(), [(entry, adopt.incarnation)]), delivery)

    def _restart(self, delivery: Delivery) -> None:
        order: Restart = delivery.decode(Restart)
        state = self._shell.machine.state
        mine = [name for name in order.names if name in (*state.kinds, *state.agents, *state.workers)]
        if mine or not order.names:  # else it concerns other teams
            workers = named(state, mine)
            self.facts.append(ev.RestartRequested(self._shell.clock.now_s(), workers, order.grace_s))
        self.acks.append(delivery)

    def _roll_call(self, delivery: Delivery) -> None:
        self._upstream.nonce = delivery.decode(RollCall).nonce
        self.acks.append(delivery)

    def _ping(self, delivery: Delivery) -> None:
        ping: Ping = delivery.decode(Ping)
        try:
            delivery.reply(Pong(sent_ns=ping.sent_ns), type=TYPE_OF[Pong])
        except BusError:
            pass  # no room for the answer: the asker's timeout tells
        self.acks.append(delivery)


class TeamNotes:
    """Notes of a team, written down by the root: the event log has one writer. What finds no room is lost, as every note may be."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def write(self, event: str, **facts: Any) -> None:
        """Note an event with its facts."""
        try:
            self._bus.post_struct(COORDINATOR, TeamNoted(event=event, facts=msgspec.to_builtins(facts, enc_hook=repr)))
        except BusError:
            pass

    def close(self) -> None:
        """Nothing is held."""
