"""Everything an identity sends: its outgoing lanes, opened as they are first used."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from muster.bus.transports.lanes import inspect, layout, locks
from muster.bus.transports.lanes.outlane import OutLane, Sender
from muster.bus.transports.lanes.words import refusal
from muster.core import limits
from muster.core.names import agent_id
from muster.errors import ForkedBusError, MusterError, OutboxFullError, StoreFullError, UnknownAgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from muster.bus.transport import BusStats
    from muster.bus.transports.lanes.bell import PeerBells
    from muster.bus.transports.lanes.durable import Pending
    from muster.core.codec import Outgoing
    from muster.core.settings import BusSettings
    from muster.security.keys import Keyring


class Outbox:
    """The holder of the agent's outbox lock has one. Its quotas hold exactly, because nobody else stores as this agent."""

    def __init__(self, store: Path, keyring: Keyring, bells: PeerBells, stats: BusStats, settings: BusSettings) -> None:
        self._store = store
        self._agent = keyring.agent
        self._directory = f"{layout.agent_dir(store, keyring.agent)}/outbox"
        self._keyring = keyring
        self._sender = Sender(store, keyring.agent, bells, settings, self._has_room)
        self._stats = stats
        self._forks = locks.forks
        self.lanes: dict[str, OutLane] = {}
        #: Lanes that were closed to spare descriptors although something in them is not finalised.
        self._asleep: set[str] = set()
        self._durable = settings.durable
        self._unflushed: set[OutLane] = set()
        self._messages_max = settings.sender_messages_max
        #: At least as many messages as are stored and unacked; counted anew when it reaches the quota.
        self._stored_at_most = -1
        #: The same for bytes of segments.
        self._held_at_most = -1

    def put(self, recipient: str, out: Outgoing) -> int:
        """Store one message for `recipient`; its number. See OutLane.put for what is raised, and what was not done then.

        In a durable store it is accepted once it has been flushed.
        """
        lane = self.lanes.get(recipient + layout.CONTROL_SUFFIX if out.control else recipient)
        if lane is None:
            lane = self._open(recipient, control=out.control)
        elif locks.forks != self._forks:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        try:
            if self._stored_at_most >= self._messages_max:
                self._count_stored()
            seq = lane.put(out, self._keyring.sign_key(recipient))
        except OutboxFullError as error:
            error.facts.update(recipient=recipient, overflow=lane.policy, control=out.control)
            raise
        except OSError as error:
            raise refusal(error, f"the message to {recipient} was not stored") from None
        self._stored_at_most += 1
        if self._durable:
            self._unflushed.add(lane)
        self._stats.sent += 1
        return seq

    def _open(self, recipient: str, *, control: bool) -> OutLane:
        if locks.forks != self._forks:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        if not self.knows(recipient):
            raise UnknownAgentError(f"there is no agent {recipient!r} in {self._store.name}", agent=recipient)
        if self._stored_at_most < 0:
            self._stored_at_most = len(os.listdir(self._directory)) * self._sender.settings.lane_messages_max
        open_max = max(1, limits.OPEN_LANES_MAX // locks.identities())
        if len(self.lanes) >= open_max:
            self._close_some(len(self.lanes) - open_max * 3 // 4)
        try:
            lane = OutLane(self._sender, recipient, control=control)
        except OSError as error:
            raise refusal(error, f"the lane to {recipient} cannot be opened, nothing was stored") from None
        self.lanes[lane.key] = lane
        self._asleep.discard(lane.key)
        return lane

    def _close_some(self, count: int) -> None:
        """Close so many lanes, the idle and longest unused first. What the others wait for is remembered: they are looked at again."""
        lanes = sorted(self.lanes.values(), key=lambda lane: (not lane.is_idle, lane.look_ns))
        for lane in lanes[:count]:
            if lane in self._unflushed:
                continue
            if not lane.is_idle:
                self._asleep.add(lane.key)
            self.lanes.pop(lane.key).close()

    # ------------------------------------------------------------------ quotas

    def _closed_lanes(self) -> Iterator[str]:
        """Names of lanes that exist and are not open here: of an earlier life, or long idle."""
        return (key for key in os.listdir(self._directory) if key not in self.lanes)

    def _count_stored(self) -> None:
        """Count what is stored and unacked. Raises OutboxFullError if that is all this sender may have."""
        stored = sum(lane.count_pending() for lane in self.lanes.values())
        for key in self._closed_lanes():
            with contextlib.suppress(MusterError, OSError):
                recipient, control = layout.parse_lane_name(key)
                view = inspect.view_lane(self._store, self._agent, recipient, control=control)
                stored += view.depth if view is not None else 0
        self._stored_at_most = stored
        if stored >= self._messages_max:
            raise OutboxFullError(
                f"{self._agent} has {stored:,} messages stored and unacked, all that it may have",
                retry_after_s=limits.INBOX_FULL_RETRY_S,
                agent=self._agent,
            )

    def _has_room(self, lane: OutLane, size: int) -> bool:
        """Whether the quotas leave `lane` another segment of `size` bytes: asked when one is about to be allocated."""
        settings = self._sender.settings
        if lane.held_bytes + size > settings.lane_bytes_max:
            return False
        if self._held_at_most < 0 or self._held_at_most + size > settings.sender_bytes_max:
            self._held_at_most = sum(open_lane.held_bytes for open_lane in {*self.lanes.values(), lane}) + sum(
                inspect.held_bytes(f"{self._directory}/{key}") for key in self._closed_lanes() if key != lane.key
            )
        if self._held_at_most + size > settings.sender_bytes_max:
            return False
        self._held_at_most += size
        return True

    # ------------------------------------------------------------------ durable stores

    def begin_flush(self) -> list[tuple[OutLane, Pending | None]]:
        """What has to reach the disk before what was put so far is accepted: wait for each, then `end_flush`."""
        lanes, self._unflushed = self._unflushed, set()
        begun = []
        for lane in lanes:
            begun.append((lane, lane.begin_flush()))
        return begun

    def end_flush(self, waited: list[tuple[OutLane, Pending | None]]) -> None:
        """Let recipients see what is on the disk. Raises StoreError for the first lane that is not, after the others were served."""
        first_error: MusterError | None = None
        for lane, pending in waited:
            try:
                lane.end_flush(pending)
            except MusterError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    def flush(self) -> None:
        """Both at once, blocking. Raises StoreError: what was put since the last flush was not accepted."""
        if self._unflushed:
            self.end_flush([(lane, pending and pending.wait()) for lane, pending in self.begin_flush()])

    def knows(self, agent: str) -> bool:
        """Whether `agent` is on the roster. Raises InvalidNameError."""
        agent_id(agent, allow_reserved=True)
        return layout.has_agent(self._store, agent)

    def _existing(self, recipient: str, *, control: bool) -> OutLane | None:
        """The lane, opened again if it was closed for being idle; None if there is none."""
        key = layout.lane_name(recipient, control=control)
        lane = self.lanes.get(key)
        if lane is None and os.path.lexists(f"{self._directory}/{key}/lane"):
            lane = self._open(recipient, control=control)
        return lane

    def state(self, recipient: str, *, control: bool, seq: int) -> str:
        lane = self._existing(recipient, control=control)
        return lane.state(seq) if lane is not None else "stored"

    def want(self, recipient: str, *, control: bool, seq: int) -> None:
        lane = self._existing(recipient, control=control)
        if lane is not None:
            lane.want(seq)

    def number_for_room(self, recipient: str, *, control: bool) -> int:
        """See OutLane.number_for_room; 1 where there is no lane yet."""
        lane = self._existing(recipient, control=control)
        return lane.number_for_room() if lane is not None else 1

    def ring_again(self) -> bool:
        """Ring for every lane with untaken messages and reclaim what is finalised. True while either work may remain."""
        remaining = bool(self._asleep)
        self._wake_some()
        for lane in list(self.lanes.values()):
            if self.lanes.get(lane.key) is not lane:  # gone to sleep for another
                continue
            try:
                rang = lane.ring_again()
            except (OSError, StoreFullError):  # no descriptor or no room just now: the next round tries again
                rang = True
            self._stats.rerings += rang
            lane.reclaim()
            remaining = remaining or rang or lane.holds_sealed
        return remaining

    def _wake_some(self) -> None:
        """Open some of the sleeping lanes, so that they are looked at; others may go to sleep for them."""
        for key in [*self._asleep][: limits.OPEN_LANES_MAX // 4]:
            self._asleep.discard(key)
            with contextlib.suppress(MusterError):
                recipient, control = layout.parse_lane_name(key)
                self._open(recipient, control=control)

    def resume(self) -> None:
        """Open the lanes that an earlier holder left with something to do: untaken messages to ring for, segments to reclaim."""
        for key in os.listdir(f"{layout.agent_dir(self._store, self._agent)}/outbox"):
            if key in self.lanes:
                continue
            # A lane that cannot be opened tells that to whoever sends on it; it must not keep the others waiting.
            with contextlib.suppress(MusterError, OSError):
                recipient, control = layout.parse_lane_name(key)
                view = inspect.view_lane(self._store, self._agent, recipient, control=control)
                if view is not None and (view.last > view.taken or view.segments > 1) and self.knows(recipient):
                    self._open(recipient, control=control)

    def acked(self, name: str) -> None:
        """A recipient's bell told of acks on this lane."""
        lane = self.lanes.get(name)
        if lane is not None:
            lane.reclaim()

    def close(self) -> None:
        for lane in self.lanes.values():
            lane.close()
        self.lanes.clear()
