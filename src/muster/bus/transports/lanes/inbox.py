"""Everything an identity receives: what is taken in turns, and what becomes of it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from muster.bus.transport import Inbound
from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import eviction, inspect, layout, locks, overflow
from muster.bus.transports.lanes.bell import ACKED, FULL, REDRIVE, record_of
from muster.bus.transports.lanes.credit import CreditPool
from muster.bus.transports.lanes.deadletters import clear_torn, letter_path, store_letter
from muster.bus.transports.lanes.healing import heal, is_suspect
from muster.bus.transports.lanes.inlane import DamagedLaneError, InLane, Recipient
from muster.bus.transports.lanes.lookout import Lookout
from muster.bus.transports.lanes.redrive import RedriveSource
from muster.bus.transports.lanes.tombstones import Tombstones
from muster.bus.transports.lanes.words import barrier
from muster.core import limits
from muster.core.message import Message
from muster.core.settings import EVICT_OLDEST
from muster.errors import ForkedBusError, MusterError

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Collection
    from pathlib import Path

    from muster.bus.transport import BusStats
    from muster.bus.transports.lanes.bell import PeerBells
    from muster.core.settings import BusSettings
    from muster.security.keys import Keyring


class Inbox:
    """The one consumer (holder of `inbox.lock`) has one."""

    def __init__(self, store: Path, keyring: Keyring, bells: PeerBells, stats: BusStats, settings: BusSettings) -> None:
        """Rule B: inbox lock (the caller has it), then the bell, then a look at all lanes: whoever rang too early is found by the look."""
        self.store = store
        self.agent = keyring.agent
        self.stats = stats
        self.attempts_max = limits.ATTEMPTS_MAX
        self.durable = settings.durable
        #: Called when an ack has made something ready that nobody will ring for.
        self.on_ready: Callable[[], None] = _nothing
        self._forks = locks.forks
        self._bells = bells
        self._base = layout.agent_dir(store, self.agent)
        self._turn = 0
        self._suspect: Inbound | None = None
        self._parked: list[tuple[Inbound, str]] = []
        self.gaps: list[tuple[str, int, int]] = []  # (lane, first, last) lost to damage or evicted, the newest 100
        #: Lanes that could not be read when they were last looked at, and why: damage that only `muster fsck` mends, another format.
        self.unreadable: dict[str, Exception] = {}
        self.tombstones: Tombstones | None = None
        self.lookout = Lookout(store, self.agent, stats, self._make_lane)
        self._redriven = RedriveSource(self._base, attempts_max=self.attempts_max)
        try:
            self.pool = CreditPool(settings)
            shelf = cursors.CursorShelf(f"{self._base}/inbox", self.pool)
            self._recipient = Recipient(store, self.agent, keyring, shelf, settings.durable)
            self.set_overflow(overflow.read_policy(self._base))
            clear_torn(f"{self._base}/inbox")
            self.lookout.scan()
        except BaseException:
            self.close()
            raise

    def _make_lane(self, sender: str, control: bool) -> InLane:
        return InLane(self._recipient, sender, control=control)

    def set_overflow(self, policy: str) -> None:
        """What becomes of a sender that has used up its credit. Raises ConfigError for an unknown policy."""
        overflow.write_policy(self._base, policy)
        self.overflow = policy
        if policy == EVICT_OLDEST and self.tombstones is None:
            self.tombstones = Tombstones(f"{self._base}/inbox")

    # ------------------------------------------------------------------ hearing

    def on_bell(self) -> tuple[list[str], bool]:
        """Drain the bell (before anything is taken) and note which lanes to look at. (Outgoing lanes with news of acks, overflow)."""
        acked, lost = self.lookout.on_bell()
        if lost:
            self.scan()
        if self.lookout.requests:
            self._carry_out()
        return acked, lost

    def _carry_out(self) -> None:
        """What bells asked for: room for senders that have no credit left, a look at letters that came back."""
        requests, self.lookout.requests = dict.fromkeys(self.lookout.requests), []
        for kind, name in requests:
            if kind == REDRIVE:
                self._redriven.look()
            elif kind == FULL and (lane := self.lookout.note(name)) is not None and eviction.make_room(self, lane):
                self._bells.ring(lane.sender_bell, record_of(ACKED, layout.lane_name(self.agent, control=lane.control)))

    def scan(self) -> int:
        """Look at every lane that exists (after an overflow, and as a safety net). How many were not ready before."""
        found = self.lookout.scan()
        self._redriven.look()
        self._retry_parked()
        return found

    def sweep(self) -> None:
        """The safety net: a scan whose finds are counted, because a working bell leaves it none."""
        before = self.lookout.waiting()
        self.scan()
        self.lookout.mark_swept(before)

    def listen_to(self, senders: Collection[str] | None) -> None:
        """Take the normal class of these senders only (None: of everybody); what others store waits in their lanes, untaken."""
        self.lookout.listen_to(senders)
        self._redriven.listening = self.lookout.listening

    # ------------------------------------------------------------------ taking

    def take(self, *, control_only: bool = False) -> Inbound | None:
        """The next message, control class first, lanes in turn; its attempt is counted and its number published before it is returned."""
        if locks.forks != self._forks:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        lookout = self.lookout
        if lookout.ready_control:
            inbound = self._take_ready(lookout.ready_control)
            if inbound is not None:
                return inbound
        if lookout.ready and not control_only:
            inbound = self._take_ready(lookout.ready)
            if inbound is not None:
                return inbound
        return self._take_redriven(control_only=control_only) if self._redriven.waiting else None

    def _take_redriven(self, *, control_only: bool) -> Inbound | None:
        """Dead letters that came back, behind everything else."""
        inbound = self._redriven.take(control=True)
        if inbound is None and not control_only:
            inbound = self._redriven.take(control=False)
        if inbound is not None:
            self.stats.received += 1
        return inbound

    def _take_ready(self, ready: OrderedDict[str, InLane]) -> Inbound | None:
        while ready:
            name, lane = next(iter(ready.items()))
            inbound = self._take_from(lane)
            if inbound is None:
                # Only now, after the look that followed the last published `taken`, may the lane leave the ready set.
                del ready[name]
                lane.used = self._turn = self._turn + 1
                continue
            if len(ready) > 1:
                ready.move_to_end(name)  # lanes take turns: a flooder delays others by one message each round
            return inbound
        return None

    def take_all_from(self, sender: str) -> list[Inbound]:
        """Everything `sender` has stored and this identity has not taken; final if the sender is dead. Ignores turns and suspects."""
        taken: list[Inbound] = []
        for control in (True, False):
            lane = self.lookout.note(layout.lane_name(sender, control=control))
            while lane is not None and (inbound := self._take_from(lane, alone=False)) is not None:
                taken.append(inbound)
        return taken

    def _take_from(self, lane: InLane, *, alone: bool = True) -> Inbound | None:
        while True:
            cursor = lane.cursor or self.open_lane(lane)
            if cursor is None:
                return None
            seq = lane.next_seq
            if seq > cursor.acked_base + cursors.WINDOW:
                lane.blocked = True
                return None
            if self._suspect is not None and alone and is_suspect(lane, cursor, seq):
                self.lookout.held.add(lane.name)
                return None
            try:
                message = lane.read()
            except DamagedLaneError as damage:
                if not heal(self, lane, cursor, damage):
                    return None
                continue
            except (OSError, MusterError) as error:
                self._set_aside(lane, error)
                return None
            if message is None:
                if lane.fruitful:
                    lane.fruitful = False
                    return None
                # Woken for nothing: the sender may have begun anew, in files that we have not open.
                if lane.reopen_if_replaced():
                    continue
                lane.swept_ns = 0
                return None
            if message.seq != seq or (seq <= cursor.taken_before and cursor.is_finalised(seq)):
                lane.next_seq = message.seq + 1
                continue
            inbound = self._begin(lane, cursor, message)
            if inbound is not None:
                return inbound

    def open_lane(self, lane: InLane) -> cursors.Cursor | None:
        """Its cursor, now open; None if there is nothing to read yet, or it cannot be read (`unreadable`)."""
        self.lookout.make_room()
        try:
            if not lane.open():
                return None
        except (OSError, MusterError, ValueError) as error:  # also a full store without a spare cursor
            self._set_aside(lane, error)
            return None
        self.unreadable.pop(lane.name, None)
        self._tell_acked(lane, 0)  # the last holder of this inbox may have died before it rang for its last ack
        return lane.cursor

    def _set_aside(self, lane: InLane, error: Exception) -> None:
        """A lane that cannot be read hurts nobody else; a bell or the sweep comes back to it, `unreadable` tells why meanwhile."""
        lane.close()
        self.stats.unreadable += lane.name not in self.unreadable
        self.unreadable[lane.name] = error.with_traceback(None)  # its frames hold what was being opened

    def _begin(self, lane: InLane, cursor: cursors.Cursor, message: Message) -> Inbound | None:
        seq = message.seq
        lane.next_seq = seq + 1
        suspect = seq <= cursor.taken_before and is_suspect(lane, cursor, seq)
        has_letter = seq <= cursor.taken_before and os.path.lexists(self.letter_path(lane, cursor, seq))
        attempt = cursor.count_attempt(seq)
        cursor.take(seq)
        lane.fruitful = True
        inbound = Inbound(lane, message, attempt, cursor)
        if has_letter:  # a process died between its letter and its verdict: it gave up on it already
            self._finalise(inbound, cursors.DEAD)
            return None
        expires_ns = message.expires_ns
        if expires_ns and time.time_ns() > expires_ns:
            self.stats.expired += 1
            self._finalise(inbound, cursors.EXPIRED)
            return None
        if attempt > self.attempts_max:
            self.kill(inbound, f"delivered {attempt - 1} times without being finalised")
            return None
        if suspect:
            self._suspect = inbound
        self.stats.received += 1
        if lane.swept_ns:
            self.stats.sweeps_found += message.created_ns < lane.swept_ns
        return inbound

    def letter_path(self, lane: InLane, cursor: cursors.Cursor, seq: int) -> Path:
        return letter_path(f"{self._base}/inbox", lane.name, cursor.lane_id, seq)

    def note_gap(self, lane: str, first: int, last: int) -> None:
        """Numbers that this identity will never see delivered: lost to damage, or evicted."""
        self.stats.gaps += last - first + 1
        self.gaps = [*self.gaps[-99:], (lane, first, last)]

    # ------------------------------------------------------------------ finishing

    def again(self, inbound: Inbound) -> int:
        """Count another delivery of a message that was given back; the number of deliveries begun."""
        if isinstance(inbound.place, str):  # a dead letter that came back
            return self._redriven.again(inbound)
        current = inbound.lane.cursor is inbound.place
        inbound.attempt = inbound.place.count_attempt(inbound.message.seq) if current else inbound.attempt + 1
        return inbound.attempt

    def uncount(self, inbound: Inbound) -> None:
        """A clean release: this delivery did not happen."""
        if isinstance(inbound.place, str):  # a dead letter that came back
            self._redriven.uncount(inbound)
        elif inbound.lane.cursor is inbound.place:
            inbound.place.uncount_attempt(inbound.message.seq)

    def ack(self, inbound: Inbound) -> bool:
        """Finalise as done. False if it was finalised before."""
        return self._finalise(inbound, cursors.DONE)

    def kill(self, inbound: Inbound, reason: str) -> bool:
        """Finalise as dead: the letter is stored first. False if there is no room for it: the message is parked and tried again."""
        cursor = inbound.place
        if isinstance(inbound.place, str):  # a dead letter that came back
            self.stats.dead += 1
            return self._redriven.kill(inbound, reason)
        path = self.letter_path(inbound.lane, cursor, inbound.message.seq)
        if not store_letter(path, inbound.message, reason=reason, attempts=inbound.attempt, durable=self.durable):
            self._parked.append((inbound, reason))
            self._settle_suspect(inbound)  # it runs nowhere now: a store that is full must go on being drained
            return False
        self.stats.dead += 1
        return self._finalise(inbound, cursors.DEAD)

    def evict(self, inbound: Inbound) -> None:
        """Finalise as evicted: it leaves a tombstone and a gap, and is not delivered."""
        if self.tombstones is not None:
            message = inbound.message
            self.tombstones.add(inbound.lane.name, message.seq, message.raw_id, len(message.raw))
        self.stats.evicted += 1
        self.note_gap(inbound.lane.name, inbound.message.seq, inbound.message.seq)
        self._finalise(inbound, cursors.EVICTED)

    def _retry_parked(self) -> None:
        parked, self._parked = self._parked, []
        for inbound, reason in parked:
            self.kill(inbound, reason)

    def _finalise(self, inbound: Inbound, verdict: int) -> bool:
        if locks.forks != self._forks:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        if isinstance(inbound.place, str):  # a dead letter that came back
            return self._redriven.ack(inbound)
        lane: InLane = inbound.lane
        cursor = lane.cursor
        # A lane that began anew has another cursor: a verdict of the old one must not fall on its equal number.
        if cursor is None or cursor is not inbound.place:
            self._settle_suspect(inbound)
            return False
        seq = inbound.message.seq
        first = cursor.finalise(seq, verdict)
        self._tell_acked(lane, seq)
        if lane.blocked and cursor.can_take(lane.next_seq):
            lane.blocked = False
            self.lookout.make_ready(lane)
            self.on_ready()
        if inbound is self._suspect:
            self._settle_suspect(inbound)
        return first

    def _tell_acked(self, lane: InLane, seq: int) -> None:
        """The bell in the other direction: ring iff `base_checked < want <= acked_base`, or `seq` is wanted, or a segment is free."""
        assert lane.cursor is not None
        base = lane.cursor.acked_base
        ring = False
        while lane.segment_ends and base >= lane.segment_ends[0]:
            lane.segment_ends.popleft()
            ring = True
        barrier()  # mirrors the sender: it stores `want`, barrier, looks at the verdict
        want = lane.sender_wants()
        if want and (want < 0 or lane.base_checked < want <= base or want == seq):
            ring = True
        lane.base_checked = base
        if ring:
            self._bells.ring(lane.sender_bell, record_of(ACKED, layout.lane_name(self.agent, control=lane.control)))

    def _settle_suspect(self, inbound: Inbound) -> None:
        if inbound is self._suspect:
            self._suspect = None
            if self.lookout.held:
                self.lookout.make_held_ready()
                self.on_ready()

    # ------------------------------------------------------------------ state

    @property
    def is_ready(self) -> bool:
        """Whether `take` may find something without another ring of the bell."""
        return bool(
            self.lookout.ready or self.lookout.ready_control or (self._redriven.waiting and self._redriven.is_ready)
        )

    @property
    def holds_back(self) -> bool:
        """Whether more may be stored than `take` gives now: it waits until a suspect, or a full window, is finalised."""
        return (
            self._suspect is not None
            or self._redriven.holds_back
            or any(lane.blocked for lane in self.lookout.lanes.values())
        )

    def depth(self) -> int:
        """Messages stored here and not finalised, as far as bells and looks have told; opens only lanes with something untaken."""
        depth = len(self._redriven)
        waiting = self.lookout.waiting()
        for name, lane in self.lookout.lanes.items():
            if name in waiting or lane.blocked:
                view = inspect.view_lane(self.store, lane.sender, self.agent, control=lane.control)
                depth += view.depth if view is not None else 0
            elif lane.cursor is not None:
                depth += max(0, lane.cursor.taken - lane.cursor.acked_base)
        return depth

    def close(self) -> None:
        """What is in hand stays untouched and is delivered again to whoever comes next."""
        self.lookout.close()
        if self.tombstones is not None:
            self.tombstones.close()


def _nothing() -> None:
    """Nobody waits."""
