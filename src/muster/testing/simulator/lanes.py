"""The bus of a simulated fleet: a transport below the real `Bus`, with seeded delays on each lane.

As on the real lanes: a message is stored when `put` returns and survives every death; a lane keeps its order; control overtakes; what was
taken and not acked is delivered again to the next holder of the identity; an explicit id adds no second copy; a full lane refuses.
Not as there: signatures (nobody here forges), frames, bells. Whoever reads a dead sender's lane to its end gets what was on its way, too.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from random import Random
from typing import Any, Final

from muster.bus.transport import BusStats, Capabilities, Inbound
from muster.core import limits
from muster.core.codec import Outgoing
from muster.core.ids import show_id
from muster.core.message import Message
from muster.errors import IdentityBusyError, InboxFullError, UnknownAgentError
from muster.testing.simulator.timeline import START_S, Process, Timeline

#: Explicit ids that a lane remembers, as the real one.
IDS_MAX: Final = 1024


class Lane:
    """What one sender stored for one recipient, in one class."""

    def __init__(self, sender: str, recipient: str, *, control: bool) -> None:
        self.sender, self.recipient, self.control = sender, recipient, control
        self.open: OrderedDict[int, Message] = OrderedDict()  # not finalised, by number
        self.waiting: deque[int] = deque()  # not taken by the present holder
        self.arrived = 0  # numbers up to this one can be seen
        self.last_arrival_s = 0.0
        self.next_seq = 1
        self.attempts: dict[int, int] = {}
        self.ids: OrderedDict[bytes, int] = OrderedDict()

    def __str__(self) -> str:
        return f"{self.sender} -> {self.recipient}{' (control)' if self.control else ''}"


class Lanes:
    """All of them. `delay_s` draws how long a message is on its way; `room` how many a lane holds."""

    def __init__(self, timeline: Timeline, rng: Random, delay_s: Callable[[Random], float], room: int) -> None:
        self.timeline, self.rng, self.delay_s, self.room = timeline, rng, delay_s, room
        self.lanes: dict[tuple[str, str, bool], Lane] = {}
        self.holders: dict[str, LaneTransport] = {}
        self.roster: dict[str, None] = {}
        self.dead: list[tuple[Message, str]] = []
        #: Senders whose messages can be seen as soon as they are stored, though the recipient is told later.
        self.prompt: set[str] = set()
        #: Called with every message once it is stored.
        self.on_store: Callable[[Message], None] = lambda _message: None
        self._made = 0

    def lane(self, sender: str, recipient: str, *, control: bool) -> Lane:
        """The lane, made when it is first used."""
        key = sender, recipient, control
        if key not in self.lanes:
            self.lanes[key] = Lane(sender, recipient, control=control)
        return self.lanes[key]

    def new_id(self) -> bytes:
        """The next message id: a number, so that a history has the same ones every time."""
        self._made += 1
        return self._made.to_bytes(16, "big")

    def store(self, lane: Lane, out: Outgoing) -> int:
        """Put a message on its way."""
        seq = lane.next_seq
        lane.next_seq += 1
        message_id = out.message_id if out.explicit else self.new_id()
        created_ns = int((START_S + self.timeline.now_s) * 1e9)
        flags = lane.control | out.explicit << 1
        head = (1, flags, out.content, out.hops, 1, 0, 0, 0, bytes(16), seq, message_id, created_ns, 0)
        message = Message(lane.sender, lane.recipient, out.type.decode(), out.raw, head, out.extras)
        lane.open[seq] = message
        self.on_store(message)
        lane.waiting.append(seq)
        if out.explicit:
            lane.ids[out.message_id] = seq
            if len(lane.ids) > IDS_MAX:
                lane.ids.popitem(last=False)
        if lane.sender in self.prompt:
            lane.arrived = seq
        lane.last_arrival_s = max(lane.last_arrival_s, self.timeline.now_s + self.delay_s(self.rng))
        self.timeline.later(lane.last_arrival_s - self.timeline.now_s, self._arrive, lane, seq)
        return seq

    def _arrive(self, lane: Lane, seq: int) -> None:
        lane.arrived = max(lane.arrived, seq)
        holder = self.holders.get(lane.recipient)
        if holder is not None:
            holder.ring()

    @property
    def open_messages(self) -> int:
        """Messages that were stored and not finalised."""
        return sum(len(lane.open) for lane in self.lanes.values())


class LaneTransport:
    """One identity's view, in the hands of one process."""

    capabilities = Capabilities(name="simulated", durable=False, many_processes=False, many_machines=False)
    attempts_max = limits.ATTEMPTS_MAX
    holds_back = False

    def __init__(self, lanes: Lanes, agent: str, process: Process) -> None:
        """Take the identity. Raises IdentityBusyError while a living process holds it."""
        held = lanes.holders.get(agent)
        if held is not None and held.process.is_alive:
            raise IdentityBusyError(f"{agent} is already in use", retry_after_s=1.0, agent=agent, pid=held.process.pid)
        self.process: Process = process
        self._lanes, self.agent = lanes, agent
        lanes.holders[agent] = self
        lanes.roster.setdefault(agent)
        self.stats = BusStats()
        self.on_ready: Callable[[], None] = lambda: None
        #: Called in the process when something has arrived.
        self.on_arrival: Callable[[], None] = lambda: None
        self.gaps: list[tuple[str, int, int]] = []
        self._listening: frozenset[str] | None = None
        self._rung = False
        for lane in lanes.lanes.values():  # what was in hand when the last holder went is delivered again
            if lane.recipient == agent:
                lane.waiting = deque(lane.open)
        self.ring()

    def ring(self) -> None:
        """Something arrived."""
        if not self._rung:
            self._rung = True
            self.process.call_soon(self._heard)

    def _heard(self) -> None:
        self._rung = False
        self.on_arrival()

    # ------------------------------------------------------------------ sending

    def put(self, recipient: str, out: Outgoing) -> int:
        """Store one message, if there is room."""
        if recipient not in self._lanes.roster:
            raise UnknownAgentError(f"there is no agent {recipient!r} in this fleet", agent=recipient)
        self.process.io(f"send {out.type.decode()}")
        lane = self._lanes.lane(self.agent, recipient, control=out.control)
        if out.explicit and out.message_id in lane.ids:
            return lane.ids[out.message_id]
        if len(lane.open) >= self._lanes.room:
            raise InboxFullError(
                f"{recipient} grants no more messages", retry_after_s=limits.INBOX_FULL_RETRY_S, recipient=recipient
            )
        seq = self._lanes.store(lane, out)
        self.stats.sent += 1
        self.process.io(f"sent {out.type.decode()}")
        return seq

    # ------------------------------------------------------------------ receiving

    def _heard_lanes(self) -> list[Lane]:
        lanes = [
            lane
            for lane in self._lanes.lanes.values()
            if lane.recipient == self.agent
            and lane.waiting
            and lane.waiting[0] <= lane.arrived
            and (lane.control or self._listening is None or lane.sender in self._listening)
        ]
        if len(lanes) > 1:
            self._lanes.rng.shuffle(lanes)
            lanes.sort(key=lambda lane: not lane.control)
        return lanes

    def take(self, *, control_only: bool = False) -> Inbound | None:
        """The next message of some lane."""
        for lane in self._heard_lanes():
            if control_only and not lane.control:
                continue
            self.process.io("take")
            return self._take_from(lane)
        return None

    def _take_from(self, lane: Lane) -> Inbound:
        seq = lane.waiting.popleft()
        lane.attempts[seq] = lane.attempts.get(seq, 0) + 1
        self.stats.received += 1
        return Inbound(lane, lane.open[seq], lane.attempts[seq])

    def take_all_from(self, sender: str) -> list[Inbound]:
        """Everything the sender has stored: it is on its lane, whether it has been seen or not."""
        taken: list[Inbound] = []
        for control in (True, False):
            lane = self._lanes.lanes.get((sender, self.agent, control))
            while lane is not None and lane.waiting:
                taken.append(self._take_from(lane))
        return taken

    def listen_to(self, senders: Collection[str] | None) -> None:
        """Whose normal messages are wanted."""
        self._listening = None if senders is None else frozenset(senders)
        self.ring()

    def _finalise(self, inbound: Inbound) -> bool:
        self.process.io("ack")
        lane: Lane = inbound.lane
        return lane.open.pop(inbound.message.seq, None) is not None

    def ack(self, inbound: Inbound) -> bool:
        """Never deliver it again."""
        return self._finalise(inbound)

    def kill(self, inbound: Inbound, reason: str) -> bool:
        """Make it a dead letter."""
        self._lanes.dead.append((inbound.message, reason))
        self.stats.dead += 1
        return self._finalise(inbound)

    def again(self, inbound: Inbound) -> int:
        """Count another delivery."""
        inbound.lane.attempts[inbound.message.seq] += 1
        inbound.attempt = inbound.lane.attempts[inbound.message.seq]
        return inbound.attempt

    def uncount(self, inbound: Inbound) -> None:
        """This delivery counts for nothing."""
        inbound.lane.attempts[inbound.message.seq] -= 1

    # ------------------------------------------------------------------ looking

    def state(self, recipient: str, *, control: bool, seq: int) -> str:
        """What became of a message."""
        lane = self._lanes.lane(self.agent, recipient, control=control)
        if seq not in lane.open:
            return "acked"
        return "stored" if seq in lane.waiting else "taken"

    def knows(self, agent: str) -> bool:
        """Whether it is on the roster."""
        return agent in self._lanes.roster

    def roster(self) -> list[str]:
        """Everybody."""
        return list(self._lanes.roster)

    def depth(self, agent: str) -> int:
        """Messages that wait for an agent."""
        return sum(len(lane.open) for lane in self._lanes.lanes.values() if lane.recipient == agent)

    @property
    def is_ready(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._heard_lanes())

    def close(self) -> None:
        """Give the identity back."""
        if self._lanes.holders.get(self.agent) is self:
            del self._lanes.holders[self.agent]

    # ------------------------------------------------------------------ what only files and other processes need

    def fileno(self) -> int:
        """No bell: the timeline calls `on_arrival`."""
        return -1

    def on_bell(self) -> bool:
        return False

    def begin_flush(self) -> list[tuple[Any, Any]]:
        return []

    def end_flush(self, waited: list[tuple[Any, Any]]) -> None: ...
    def flush(self) -> None: ...
    def set_overflow(self, policy: str) -> None: ...
    def want(self, recipient: str, *, control: bool, seq: int) -> None: ...
    def number_for_room(self, recipient: str, *, control: bool) -> int:
        del recipient, control
        return 1

    def ring_again(self) -> bool:
        return False

    def resume(self) -> None: ...
    def scan(self) -> int:
        return 0

    def sweep(self) -> None: ...


def id_of(message: Message) -> str:
    """The id of a message as text."""
    return show_id(message.raw_id)
