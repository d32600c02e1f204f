"""Which lanes an inbox has to look at: heard from the bell, found by a scan, set aside, or closed because they are long idle."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes import layout, locks
from muster.bus.transports.lanes.bell import ACKED, MESSAGES, OwnBell
from muster.bus.transports.lanes.inlane import InLane
from muster.core import limits
from muster.errors import InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from muster.bus.transport import BusStats

#: A message younger than this may be about to be rung for, and its sender has not reminded us yet; an older one that only the sweep
#: found was not heard of.
RUNG_WITHIN_NS: Final = int(limits.RERING_S * 1e9)


class Lookout:
    """One inbox's lanes by the name that their bell records have. A lane leaves a ready set only after a look that found nothing."""

    def __init__(self, store: Path, agent: str, stats: BusStats, make_lane: Callable[[str, bool], InLane]) -> None:
        """Opens the bell; the caller has `inbox.lock` already, and scans afterwards (rule B)."""
        self._store = store
        self._agent = agent
        self._stats = stats
        self._make_lane = make_lane
        self.lanes: dict[str, InLane] = {}
        self.ready: OrderedDict[str, InLane] = OrderedDict()
        self.ready_control: OrderedDict[str, InLane] = OrderedDict()
        #: Lanes that wait until the suspect is finalised.
        self.held: set[str] = set()
        self.listening: frozenset[str] | None = None  # whose normal class is taken; None: everybody's
        self.unheard: dict[str, InLane] = {}  # lanes that may hold something, of senders not listened to
        #: Records that ask for something else than a look: (kind, name), for the inbox to carry out.
        self.requests: list[tuple[str, str]] = []
        #: Lanes opened since the open ones were counted, with those; the number at which they are counted again.
        self._open_at_most = self._count_at = 0
        self.bell = OwnBell(f"{layout.agent_dir(store, agent)}/bell")

    def on_bell(self) -> tuple[list[str], bool]:
        """Drain the bell (before anything is taken) and note which lanes to look at. (Outgoing lanes with news of acks, overflow)."""
        records, overflow = self.bell.drain()
        acked: list[str] = []
        for kind, name in records:
            if kind == MESSAGES:
                if name not in self.ready and name not in self.ready_control:
                    self.note(name)
            elif kind == ACKED:
                acked.append(name)
            else:
                self.requests.append((kind, name))
        return acked, overflow

    def note(self, name: str) -> InLane | None:
        """Have a look at this lane soon. None if the name is no lane's: a record is only a hint, anybody may write anything."""
        lane = self.lanes.get(name)
        if lane is None:
            try:
                sender, control = layout.parse_lane_name(name)
            except InvalidNameError:
                self._stats.bad_hints += 1
                return None
            if not layout.has_outbox(self._store, sender):
                self._stats.bad_hints += 1
                return None
            lane = self.lanes[name] = self._make_lane(sender, control)
        self.make_ready(lane)
        return lane

    def make_ready(self, lane: InLane) -> None:
        """Put the lane where its class and sender belong."""
        if lane.control:
            self.ready_control[lane.name] = lane
        elif self.listening is None or lane.sender in self.listening:
            self.ready[lane.name] = lane
        else:
            self.unheard[lane.name] = lane

    def make_held_ready(self) -> None:
        """The suspect is finalised: lanes that waited for it go on."""
        for name in sorted(self.held):
            self.make_ready(self.lanes[name])
        self.held.clear()

    def listen_to(self, senders: Collection[str] | None) -> None:
        """Take the normal class of these senders only (None: of everybody); what others store waits in their lanes, untaken."""
        self.listening = None if senders is None else frozenset(senders)
        waiting = [*self.unheard.values(), *self.ready.values()]
        self.unheard.clear()
        self.ready.clear()
        for lane in waiting:
            self.make_ready(lane)

    def scan(self) -> int:
        """Look at every lane that exists (at start, after an overflow, and as a safety net). How many were not ready before."""
        found = 0
        for sender, control in layout.lanes_to(self._store, self._agent):
            name = layout.lane_name(sender, control=control)
            if name in self.ready or name in self.ready_control or name in self.unheard:
                continue
            self.note(name)
            found += 1
        return found

    def mark_swept(self, before: set[str]) -> None:
        """What the sweep found beyond `before`: older messages there were not rung for."""
        for name in (*self.ready, *self.ready_control):
            if name not in before and not self.lanes[name].blocked:  # a blocked lane waits for acks, not for a bell
                self.lanes[name].swept_ns = time.time_ns() - RUNG_WITHIN_NS

    def waiting(self) -> set[str]:
        """Names of lanes that may hold something untaken."""
        return {*self.ready, *self.ready_control, *self.unheard, *self.held}

    def make_room(self) -> None:
        """To be called before a lane is opened: when this identity's share is open, those are closed that have been idle for longest."""
        self._open_at_most += 1
        open_max = max(1, limits.OPEN_LANES_MAX // locks.identities())
        if self._open_at_most > max(open_max, self._count_at):
            self._close_idle(keep=open_max * 3 // 4)

    def _close_idle(self, keep: int) -> None:
        """Forget lanes in which nothing waits or is in hand until `keep` are open; their cursors stand on the store."""
        busy = self.waiting()
        idle = [lane for name, lane in self.lanes.items() if name not in busy and lane.is_idle]
        idle.sort(key=lambda lane: lane.used)
        left = sum(lane.cursor is not None for lane in self.lanes.values())
        for lane in idle:
            if lane.cursor is not None:
                if left <= keep:
                    continue
                left -= 1
            lane.close()
            del self.lanes[lane.name]
        self._open_at_most = left + 1
        # Where most are in hand there is little to close: looking for it at every opening would cost the square of their number.
        self._count_at = self._open_at_most * 5 // 4

    def close(self) -> None:
        for lane in self.lanes.values():
            lane.close()
        self.bell.close()
        for lanes in (self.lanes, self.ready, self.ready_control, self.unheard):
            lanes.clear()
