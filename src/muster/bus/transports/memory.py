"""A bus inside one process, for tests and examples: the same port and promises as lanes, without files or other processes."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Any

from muster.bus.transport import BusStats, Capabilities, Inbound
from muster.bus.transports.lanes.ids import SLOTS as EXPLICIT_IDS_MAX
from muster.bus.transports.lanes.tombstones import Tombstone
from muster.core import limits
from muster.core.codec import HEADER, Outgoing, decode_frame, encode_frame
from muster.core.ids import show_id
from muster.core.message import Message
from muster.core.names import agent_id, is_coordinator
from muster.core.settings import DEFAULTS, EVICT_OLDEST, REFUSE, BusSettings, check_overflow
from muster.errors import IdentityBusyError, InboxFullError, OutboxFullError, RosterFullError, UnknownAgentError
from muster.security.keys import Keyring


class _Lane:
    """One sender's messages to one recipient: frames by number, verdicts, attempts."""

    def __init__(self, sender: str, recipient: str, *, control: bool) -> None:
        self.sender, self.recipient, self.control = sender, recipient, control
        self.lane_id = os.urandom(16)
        self.frames: OrderedDict[int, bytes] = OrderedDict()
        self.frame_bytes = 0
        self.verdicts: dict[int, str] = {}
        self.attempts: dict[int, int] = {}
        self.explicit: OrderedDict[bytes, int] = OrderedDict()
        self.next_seq = 1
        self.taken = 0
        self.redeliver: deque[int] = deque()

    def append(self, seq: int, frame: bytes) -> None:
        self.frames[seq] = frame
        self.frame_bytes += len(frame)
        self.next_seq = seq + 1

    def finalise(self, seq: int, verdict: str) -> None:
        self.verdicts[seq] = verdict
        self.frame_bytes -= len(self.frames.pop(seq))

    @property
    def oldest_untaken(self) -> int | None:
        """The number that would go first, were messages to be evicted. Never a control message, nor one of the coordinator's."""
        if self.control or is_coordinator(self.sender):
            return None
        return next((seq for seq in self.frames if seq > self.taken), None)


class MemoryHub:
    """The shared middle: one per fleet. Keep it while its buses come and go; what was stored stays until it is finalised."""

    def __init__(self, master: bytes | None = None, settings: BusSettings = DEFAULTS) -> None:
        self.master = master or os.urandom(32)
        self.settings = settings
        self.agents: dict[str, MemoryTransport | None] = {}
        self.lanes: dict[tuple[str, str, bool], _Lane] = {}
        self.overflow: dict[str, str] = {}
        self.dead: list[tuple[Message, str]] = []
        #: What was evicted from each inbox, oldest first.
        self.tombstones: dict[str, list[Tombstone]] = {}

    def add_agent(self, agent: str) -> None:
        """Put `agent` on the roster. Raises InvalidNameError, RosterFullError."""
        agent_id(agent, allow_reserved=True)
        if agent not in self.agents and len(self.agents) >= self.settings.agents_max:
            raise RosterFullError(
                f"the hub has {self.settings.agents_max:,} agents, as many as bus.agents_max allows", agent=agent
            )
        self.agents.setdefault(agent, None)

    def lanes_to(self, recipient: str) -> list[_Lane]:
        return [lane for lane in self.lanes.values() if lane.recipient == recipient]

    def has_credit(self, lane: _Lane) -> bool:
        """What the cursors of `lanes` say: a floor for every lane, and of the inbox's pool as much as is left."""
        settings = self.settings
        if len(lane.frames) >= settings.lane_messages_max:
            return False
        lent = sum(max(0, len(other.frames) - settings.credit_floor) for other in self.lanes_to(lane.recipient))
        return len(lane.frames) < settings.credit_floor or lent < settings.inbox_messages_max - settings.credit_reserved

    def check_quota(self, lane: _Lane, frame_bytes: int) -> None:
        """Raises OutboxFullError: the sender has all that it may have."""
        lanes = [other for other in self.lanes.values() if other.sender == lane.sender]
        stored = sum(len(other.frames) for other in lanes)
        held = sum(other.frame_bytes for other in lanes) + frame_bytes
        settings = self.settings
        if (
            stored >= settings.sender_messages_max
            or held > settings.sender_bytes_max
            or lane.frame_bytes + frame_bytes > settings.lane_bytes_max
        ):
            raise OutboxFullError(
                f"{lane.sender} has {stored:,} messages stored and unacked, all that it may have",
                retry_after_s=limits.INBOX_FULL_RETRY_S,
                agent=lane.sender,
                recipient=lane.recipient,
                overflow=self.overflow.get(lane.recipient, REFUSE),
                control=lane.control,
            )

    def evict_for(self, lane: _Lane) -> bool:
        """Make room on `lane` as its recipient wishes: by its own oldest, and by those of lanes that borrowed what this one can have.
        Whoever is away has only the sender's own messages evicted.
        """
        if self.overflow.get(lane.recipient) != EVICT_OLDEST:
            return False
        peer = self.agents[lane.recipient]
        while not self.has_credit(lane):
            lanes = [lane]
            if peer is not None and len(lane.frames) < self.settings.lane_messages_max:
                floor = self.settings.credit_floor
                lanes += [other for other in self.lanes_to(lane.recipient) if len(other.frames) > floor]
            found = [(other, seq) for other in lanes if (seq := other.oldest_untaken) is not None]
            if not found:
                return False
            oldest, seq = min(found, key=lambda entry: HEADER.unpack_from(entry[0].frames[entry[1]])[11])
            self._evict(oldest, seq, peer)
        return True

    def _evict(self, lane: _Lane, seq: int, peer: MemoryTransport | None) -> None:
        head = HEADER.unpack_from(lane.frames[seq])
        stone = Tombstone(lane.sender, seq, show_id(head[10]), head[7], time.time_ns())
        self.tombstones.setdefault(lane.recipient, []).append(stone)
        lane.taken = max(lane.taken, seq)
        lane.finalise(seq, "evicted")
        if peer is not None:
            peer.stats.evicted += 1
            peer.stats.gaps += 1
            peer.gaps = [*peer.gaps[-99:], (lane.sender, seq, seq)]
        self.tell_acked(lane)

    def tell_acked(self, lane: _Lane) -> None:
        """Ring a sender: something of it was finalised."""
        sender = self.agents.get(lane.sender)
        if sender is not None:
            sender.hear_ack()

    def transport(self, agent: str) -> MemoryTransport:
        """Take the identity. Raises UnknownAgentError, IdentityBusyError."""
        return MemoryTransport(self, agent, Keyring.from_master(self.master, agent))


class MemoryTransport:
    """One identity's view of a hub."""

    capabilities = Capabilities(name="memory", durable=False, many_processes=False, many_machines=False)

    def __init__(self, hub: MemoryHub, agent: str, keyring: Keyring) -> None:
        if agent not in hub.agents:
            raise UnknownAgentError(f"there is no agent {agent!r} in this hub", agent=agent)
        if hub.agents[agent] is not None:
            raise IdentityBusyError(f"{agent} is already in use", retry_after_s=1.0, agent=agent, pid=os.getpid())
        hub.agents[agent] = self
        self._hub = hub
        self.agent = agent
        self.stats = BusStats()
        self.attempts_max = limits.ATTEMPTS_MAX
        self._keyring = keyring
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._acked = False
        self._turn = 0
        self.on_ready: Callable[[], None] = lambda: None
        self._listening: frozenset[str] | None = None
        self.gaps: list[tuple[str, int, int]] = []
        for lane in hub.lanes.values():  # what was in hand when the last holder went is delivered again
            if lane.recipient == agent:
                lane.redeliver = deque(seq for seq in range(1, lane.taken + 1) if seq not in lane.verdicts)
        self.ring()

    def ring(self) -> None:
        try:
            os.write(self._writer, b".")
        except BlockingIOError:
            pass

    def hear_ack(self) -> None:
        self._acked = True
        self.ring()

    def set_overflow(self, policy: str) -> None:
        """What senders meet when this inbox is full. Raises ConfigError."""
        self._hub.overflow[self.agent] = check_overflow(policy)

    def put(self, recipient: str, out: Outgoing) -> int:
        if not self.knows(recipient):
            raise UnknownAgentError(f"there is no agent {recipient!r} in this hub", agent=recipient)
        lane = self._hub.lanes.get((self.agent, recipient, out.control))
        if lane is None:
            lane = _Lane(self.agent, recipient, control=out.control)
            self._hub.lanes[self.agent, recipient, out.control] = lane
        if out.explicit and out.message_id in lane.explicit:
            return lane.explicit[out.message_id]
        seq = lane.next_seq
        frame = encode_frame(out, lane.lane_id, seq, self._keyring.sign_key(recipient))
        self._hub.check_quota(lane, len(frame))
        if not self._hub.has_credit(lane) and not self._hub.evict_for(lane):
            raise InboxFullError(
                f"{recipient} grants no more messages",
                retry_after_s=limits.INBOX_FULL_RETRY_S,
                recipient=recipient,
                overflow=self._hub.overflow.get(recipient, REFUSE),
                control=out.control,
            )
        lane.append(seq, frame)
        if out.explicit:
            lane.explicit[out.message_id] = seq
            if len(lane.explicit) > EXPLICIT_IDS_MAX:
                lane.explicit.popitem(last=False)
        self.stats.sent += 1
        peer = self._hub.agents[recipient]
        if peer is not None:
            peer.ring()
        return seq

    def listen_to(self, senders: Collection[str] | None) -> None:
        self._listening = None if senders is None else frozenset(senders)
        self.ring()

    def _is_heard(self, lane: _Lane) -> bool:
        return lane.control or self._listening is None or lane.sender in self._listening

    def _my_lanes(self) -> list[_Lane]:
        lanes = [lane for lane in self._hub.lanes.values() if lane.recipient == self.agent and self._is_heard(lane)]
        self._turn += 1
        cut = self._turn % len(lanes) if lanes else 0
        return sorted(lanes[cut:] + lanes[:cut], key=lambda lane: not lane.control)

    def take(self, *, control_only: bool = False) -> Inbound | None:
        for lane in self._my_lanes():
            if control_only and not lane.control:
                continue
            inbound = self._take_from(lane)
            if inbound is not None:
                return inbound
        return None

    def _take_from(self, lane: _Lane) -> Inbound | None:
        while True:
            if lane.redeliver:
                seq = lane.redeliver.popleft()
            elif lane.taken + 1 < lane.next_seq:
                seq = lane.taken = lane.taken + 1
                if seq in lane.verdicts:
                    continue
            else:
                return None
            key = self._keyring.verify_key(lane.sender)
            message = decode_frame(lane.frames[seq], lane.lane_id, seq, key, (lane.sender, self.agent))
            lane.attempts[seq] = lane.attempts.get(seq, 0) + 1
            inbound = Inbound(lane, message, lane.attempts[seq])
            if inbound.attempt > self.attempts_max:
                self.kill(inbound, f"delivered {inbound.attempt - 1} times without being finalised")
                continue
            if message.expires_ns and time.time_ns() > message.expires_ns:
                self.stats.expired += 1
                self._finalise(inbound, "expired")
                continue
            self.stats.received += 1
            return inbound

    def take_all_from(self, sender: str) -> list[Inbound]:
        taken: list[Inbound] = []
        for control in (True, False):
            lane = self._hub.lanes.get((sender, self.agent, control))
            while lane is not None and (inbound := self._take_from(lane)) is not None:
                taken.append(inbound)
        return taken

    def _finalise(self, inbound: Inbound, verdict: str) -> bool:
        lane: Any = inbound.lane
        if inbound.message.seq in lane.verdicts:
            return False
        lane.finalise(inbound.message.seq, verdict)
        self._hub.tell_acked(lane)
        return True

    def ack(self, inbound: Inbound) -> bool:
        return self._finalise(inbound, "acked")

    def kill(self, inbound: Inbound, reason: str) -> bool:
        self._hub.dead.append((inbound.message, reason))
        self.stats.dead += 1
        return self._finalise(inbound, "dead")

    def again(self, inbound: Inbound) -> int:
        inbound.lane.attempts[inbound.message.seq] += 1
        inbound.attempt = inbound.lane.attempts[inbound.message.seq]
        return inbound.attempt

    def uncount(self, inbound: Inbound) -> None:
        inbound.lane.attempts[inbound.message.seq] -= 1

    def state(self, recipient: str, *, control: bool, seq: int) -> str:
        lane = self._hub.lanes.get((self.agent, recipient, control))
        if lane is None:
            return "stored"
        return lane.verdicts.get(seq) or ("taken" if seq <= lane.taken else "stored")

    def want(self, recipient: str, *, control: bool, seq: int) -> None:
        """Every ack rings here."""

    def number_for_room(self, recipient: str, *, control: bool) -> int:
        """Every ack rings here, whatever number is asked for."""
        del recipient, control
        return 1

    def begin_flush(self) -> list[Any]:
        return []

    def end_flush(self, waited: list[Any]) -> None:
        """Nothing survives this process anyway."""

    def flush(self) -> None:
        """Nothing survives this process anyway."""

    def ring_again(self) -> bool:
        return False

    def resume(self) -> None:
        """Nothing is left over in one process."""

    def scan(self) -> int:
        return 0

    def sweep(self) -> None:
        """Nothing to find."""

    def on_bell(self) -> bool:
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        acked, self._acked = self._acked, False
        return acked

    def fileno(self) -> int:
        return self._reader

    def knows(self, agent: str) -> bool:
        agent_id(agent, allow_reserved=True)
        return agent in self._hub.agents

    def roster(self) -> list[str]:
        return sorted(self._hub.agents)

    def depth(self, agent: str) -> int:
        return sum(len(lane.frames) for lane in self._hub.lanes_to(agent))

    @property
    def is_ready(self) -> bool:
        lanes = (lane for lane in self._hub.lanes.values() if lane.recipient == self.agent and self._is_heard(lane))
        return any(lane.redeliver or lane.taken + 1 < lane.next_seq for lane in lanes)

    @property
    def holds_back(self) -> bool:
        return False

    def close(self) -> None:
        if self._hub.agents.get(self.agent) is self:
            self._hub.agents[self.agent] = None
            os.close(self._reader)
            os.close(self._writer)
