"""Everything an identity sends: its outgoing lanes, opened as they are first used."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from muster.bus.transports.lanes import inspect, layout
from muster.bus.transports.lanes.outlane import OutLane
from muster.core.names import agent_id
from muster.errors import ForkedBusError, MusterError, StoreFullError, UnknownAgentError

if TYPE_CHECKING:
    from pathlib import Path

    from muster.bus.transport import BusStats
    from muster.bus.transports.lanes.bell import PeerBells
    from muster.core.codec import Outgoing
    from muster.security.keys import Keyring


class Outbox:
    """The holder of the agent's outbox lock has one."""

    def __init__(self, store: Path, agent: str, keyring: Keyring, bells: PeerBells, stats: BusStats) -> None:
        self._store = store
        self._agent = agent
        self._keyring = keyring
        self._bells = bells
        self._stats = stats
        self._pid = os.getpid()
        self.lanes: dict[str, OutLane] = {}
        self._known: set[str] = set()

    def put(self, recipient: str, out: Outgoing) -> int:
        """Store one message for `recipient`; its number. See OutLane.put for what is raised, and what was not done then."""
        lane = self.lanes.get(recipient + layout.CONTROL_SUFFIX if out.control else recipient)
        if lane is None:
            lane = self._open(recipient, control=out.control)
        elif os.getpid() != self._pid:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        seq = lane.put(out, self._keyring.sign_key(recipient))
        self._stats.sent += 1
        return seq

    def _open(self, recipient: str, *, control: bool) -> OutLane:
        if os.getpid() != self._pid:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        if not self.knows(recipient):
            raise UnknownAgentError(f"there is no agent {recipient!r} in {self._store.name}", agent=recipient)
        lane = OutLane(self._store, self._agent, recipient, control=control, bells=self._bells)
        self.lanes[lane.key] = lane
        return lane

    def knows(self, agent: str) -> bool:
        """Whether `agent` is on the roster. Raises InvalidNameError."""
        if agent in self._known:
            return True
        agent_id(agent, allow_reserved=True)
        if layout.has_agent(self._store, agent):
            self._known.add(agent)
            return True
        return False

    def state(self, recipient: str, *, control: bool, seq: int) -> str:
        lane = self.lanes.get(layout.lane_name(recipient, control=control))
        return lane.state(seq) if lane is not None else "stored"

    def want(self, recipient: str, *, control: bool, seq: int) -> None:
        lane = self.lanes.get(layout.lane_name(recipient, control=control))
        if lane is not None:
            lane.want(seq)

    def ring_again(self) -> bool:
        """Ring for every lane with untaken messages and reclaim what is finalised. True while either work may remain."""
        remaining = False
        for lane in self.lanes.values():
            try:
                rang = lane.ring_again()
            except (OSError, StoreFullError):  # no descriptor or no room just now: the next round tries again
                rang = True
            self._stats.rerings += rang
            lane.reclaim()
            remaining = remaining or rang or lane.holds_sealed
        return remaining

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
