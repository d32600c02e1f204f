"""Everything an identity receives: which lanes to look at, in turns, and what becomes of what was taken."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from muster.bus.transport import Inbound
from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import inspect, layout
from muster.bus.transports.lanes.bell import ACKED, OwnBell, record_of
from muster.bus.transports.lanes.deadletters import letter_path, store_letter
from muster.bus.transports.lanes.inlane import DamagedLaneError, InLane
from muster.bus.transports.lanes.words import barrier
from muster.core import limits
from muster.core.message import Message
from muster.errors import ForkedBusError, InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from muster.bus.transport import BusStats
    from muster.bus.transports.lanes.bell import PeerBells
    from muster.security.keys import Keyring

#: A message younger than this may be about to be rung for, and its sender has not reminded us yet; an older one that only the sweep
#: found was not heard of.
RUNG_WITHIN_NS: Final = int(limits.RERING_S * 1e9)


class Inbox:
    """The one consumer (holder of `inbox.lock`) has one."""

    def __init__(self, store: Path, agent: str, keyring: Keyring, bells: PeerBells, stats: BusStats) -> None:
        """Rule B: inbox lock (the caller has it), then the bell, then a look at all lanes: whoever rang too early is found by the look."""
        self.store = store
        self.agent = agent
        self.stats = stats
        self.attempts_max = limits.ATTEMPTS_MAX
        self._pid = os.getpid()
        self._keyring = keyring
        self._bells = bells
        self._base = layout.agent_dir(store, agent)
        self._in: dict[str, InLane] = {}
        self._ready: OrderedDict[str, InLane] = OrderedDict()
        self._ready_control: OrderedDict[str, InLane] = OrderedDict()
        self._held: set[str] = set()  # lanes that wait for the suspect
        self._listening: frozenset[str] | None = None  # whose normal class is taken; None: everybody's
        self._unheard: dict[str, InLane] = {}  # lanes that may hold something, of senders not listened to
        self._suspect: Inbound | None = None
        self._parked: list[tuple[Inbound, str]] = []
        self.gaps: list[tuple[str, int, int]] = []  # (lane, first, last) lost to damage, the newest 100
        self.bell = OwnBell(f"{self._base}/bell")
        try:
            self._shelf = cursors.CursorShelf(f"{self._base}/inbox")
            self.scan()
        except BaseException:
            self.close()
            raise

    def on_bell(self) -> tuple[list[str], bool]:
        """Drain the bell (before anything is taken) and note which lanes to look at. (Outgoing lanes with news of acks, overflow)."""
        records, overflow = self.bell.drain()
        acked = []
        for kind, name in records:
            if kind == ACKED:
                acked.append(name)
            elif name not in self._ready and name not in self._ready_control:
                self._note(name)
        if overflow:
            self.scan()
        return acked, overflow

    def _note(self, name: str) -> None:
        lane = self._in.get(name)
        if lane is None:
            try:  # a record is only a hint, anybody who can open the FIFO may write anything
                sender, control = layout.parse_lane_name(name)
            except InvalidNameError:
                self.stats.bad_hints += 1
                return
            if not layout.has_agent(self.store, sender):
                self.stats.bad_hints += 1
                return
            lane = InLane(
                self.store, self.agent, sender, control=control, key=self._keyring.verify_key(sender), shelf=self._shelf
            )
            self._in[name] = lane
        self._make_ready(name, lane)

    def _make_ready(self, name: str, lane: InLane) -> None:
        if lane.control:
            self._ready_control[name] = lane
        elif self._listening is None or lane.sender in self._listening:
            self._ready[name] = lane
        else:
            self._unheard[name] = lane

    def listen_to(self, senders: Collection[str] | None) -> None:
        """Take the normal class of these senders only (None: of everybody); what others store waits in their lanes, untaken."""
        self._listening = None if senders is None else frozenset(senders)
        waiting = {**self._unheard, **self._ready}
        self._unheard.clear()
        self._ready.clear()
        for name, lane in waiting.items():
            self._make_ready(name, lane)

    def scan(self) -> int:
        """Look at every lane that exists (at start, after an overflow, and as a safety net). How many were not ready before."""
        found = 0
        for sender in layout.roster(self.store):
            for control in (False, True):
                name = layout.lane_name(sender, control=control)
                if name in self._ready or name in self._ready_control or name in self._unheard:
                    continue
                if os.path.lexists(
                    f"{layout.agent_dir(self.store, sender)}/outbox/{layout.lane_name(self.agent, control=control)}/lane"
                ):
                    self._note(name)
                    found += 1
        self._retry_parked()
        return found

    def sweep(self) -> None:
        """The safety net: a scan whose finds are counted, because a working bell leaves it none."""
        before = {*self._ready, *self._ready_control, *self._held}
        self.scan()
        for name in (*self._ready, *self._ready_control):
            if name not in before and not self._in[name].blocked:  # a blocked lane waits for acks, not for a bell
                self._in[name].swept_ns = time.time_ns() - RUNG_WITHIN_NS

    def take(self, *, control_only: bool = False) -> Inbound | None:
        """The next message, control class first, lanes in turn; its attempt is counted and its number published before it is returned."""
        if os.getpid() != self._pid:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
        inbound = self._take_ready(self._ready_control)
        if inbound is None and not control_only:
            inbound = self._take_ready(self._ready)
        return inbound

    def _take_ready(self, ready: OrderedDict[str, InLane]) -> Inbound | None:
        while ready:
            name, lane = next(iter(ready.items()))
            inbound = self._take_from(lane)
            if inbound is None:
                # Only now, after the look that followed the last published `taken`, may the lane leave the ready set.
                del ready[name]
                continue
            if len(ready) > 1:
                ready.move_to_end(name)  # lanes take turns: a flooder delays others by one message each round
            return inbound
        return None

    def take_all_from(self, sender: str) -> list[Inbound]:
        """Everything `sender` has stored and this identity has not taken; final if the sender is dead. Ignores turns and suspects."""
        taken: list[Inbound] = []
        for control in (True, False):
            name = layout.lane_name(sender, control=control)
            self._note(name)
            lane = self._in.get(name)
            while lane is not None and (inbound := self._take_from(lane, alone=False)) is not None:
                taken.append(inbound)
        return taken

    def _take_from(self, lane: InLane, *, alone: bool = True) -> Inbound | None:
        while True:
            if lane.cursor is None:
                try:
                    if not lane.open():
                        return None
                except OSError:  # full store, no spare cursor: the sweep comes back to it
                    return None
                self._tell_acked(lane, 0)  # the last holder of this inbox may have died before it rang for its last ack
            cursor = lane.cursor
            assert cursor is not None
            seq = lane.next_seq
            if not cursor.can_take(seq):
                lane.blocked = True
                return None
            if alone and self._suspect is not None and self._is_suspect(lane, cursor, seq):
                self._held.add(lane.name)
                return None
            try:
                message = lane.read()
            except DamagedLaneError as damage:
                if not self._heal(lane, cursor, damage):
                    return None
                continue
            if message is None:
                if lane.fruitful:
                    lane.fruitful = False
                    return None
                # Woken for nothing: the sender may have begun anew, in files that we have not open.
                if lane.reopen_if_replaced():
                    continue
                lane.swept_ns = 0
                return None
            if message.seq != lane.next_seq or (seq <= cursor.taken_before and cursor.is_finalised(seq)):
                lane.next_seq = message.seq + 1
                continue
            inbound = self._begin(lane, cursor, message)
            if inbound is not None:
                return inbound

    @staticmethod
    def _is_suspect(lane: InLane, cursor: cursors.Cursor, seq: int) -> bool:
        """In flight when a process died: it may be what kills its readers. Suspects run one at a time until each is finalised.

        Fresh messages go on beside them: one that is in flight when the suspect kills again becomes a suspect itself, so its counter
        rises once and not with every death.
        """
        return not lane.control and seq <= cursor.taken_before and cursor.attempts(seq) > 0

    def _begin(self, lane: InLane, cursor: cursors.Cursor, message: Message) -> Inbound | None:
        seq = message.seq
        lane.next_seq = seq + 1
        suspect = self._is_suspect(lane, cursor, seq)
        attempt = cursor.count_attempt(seq)
        cursor.take(seq)
        lane.fruitful = True
        inbound = Inbound(lane, message, attempt, cursor)
        if message.expires_ns and time.time_ns() > message.expires_ns:
            self.stats.expired += 1
            self._finalise(inbound, cursors.EXPIRED)
            return None
        if attempt > self.attempts_max:
            self.kill(inbound, f"delivered {attempt - 1} times without being finalised")
            return None
        if suspect:
            self._suspect = inbound
        self.stats.received += 1
        self.stats.sweeps_found += message.created_ns < lane.swept_ns
        return inbound

    def _heal(self, lane: InLane, cursor: cursors.Cursor, damage: DamagedLaneError) -> bool:
        """Step over bytes that stay wrong; False if nothing readable follows yet."""
        seq = lane.next_seq
        if damage.forged_end is not None:
            self.stats.bad_frames += 1
            letter = Message(lane.sender, self.agent, "forged", damage.content, 0)
            letter.seq = seq
            store_letter(
                letter_path(f"{self._base}/inbox", lane.name, cursor.lane_id, seq),
                letter,
                reason="the tag does not fit",
                attempts=0,
            )
            lane.skip_forged(damage)
            lane.next_seq = seq + 1
            cursor.take(seq)
            self._finalise(Inbound(lane, letter, 0, cursor), cursors.FORGED)
            return True
        found = lane.resume_after_damage()
        if found is None:
            self.stats.bad_frames += 1
            return False
        reached = seq
        while reached < found and cursor.can_take(reached):
            cursor.take(reached)
            cursor.finalise(reached, cursors.DAMAGED)
            reached += 1
        if reached > seq:
            self.stats.gaps += reached - seq
            self.gaps = [*self.gaps[-99:], (lane.name, seq, reached - 1)]
        lane.next_seq = reached
        if reached < found:
            lane.blocked = True
            lane.seek_again()  # once acks have made room, the damage is met again and healed from here on
            return False
        return True

    def again(self, inbound: Inbound) -> int:
        """Count another delivery of a message that was given back; the number of deliveries begun."""
        current = inbound.lane.cursor is inbound.place
        inbound.attempt = inbound.place.count_attempt(inbound.message.seq) if current else inbound.attempt + 1
        return inbound.attempt

    def uncount(self, inbound: Inbound) -> None:
        """A clean release: this delivery did not happen."""
        if inbound.lane.cursor is inbound.place:
            inbound.place.uncount_attempt(inbound.message.seq)

    def ack(self, inbound: Inbound) -> bool:
        """Finalise as done. False if it was finalised before."""
        return self._finalise(inbound, cursors.DONE)

    def kill(self, inbound: Inbound, reason: str) -> bool:
        """Finalise as dead: the letter is stored first. False if there is no room for it: the message is parked and tried again."""
        cursor = inbound.place
        path = letter_path(f"{self._base}/inbox", inbound.lane.name, cursor.lane_id, inbound.message.seq)
        if not store_letter(path, inbound.message, reason=reason, attempts=inbound.attempt):
            self._parked.append((inbound, reason))
            self._settle_suspect(inbound)  # it runs nowhere now: a store that is full must go on being drained
            return False
        self.stats.dead += 1
        return self._finalise(inbound, cursors.DEAD)

    def _retry_parked(self) -> None:
        parked, self._parked = self._parked, []
        for inbound, reason in parked:
            self.kill(inbound, reason)

    def _finalise(self, inbound: Inbound, verdict: int) -> bool:
        if os.getpid() != self._pid:
            raise ForkedBusError("this bus was opened before a fork; join again in the child")
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
            self._make_ready(lane.name, lane)
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
        if want < 0 or (want and (lane.base_checked < want <= base or want == seq)):
            ring = True
        lane.base_checked = base
        if ring:
            self._bells.ring(lane.sender_bell, record_of(ACKED, layout.lane_name(self.agent, control=lane.control)))

    def _settle_suspect(self, inbound: Inbound) -> None:
        if inbound is self._suspect:
            self._suspect = None
            for name in sorted(self._held):
                self._make_ready(name, self._in[name])
            self._held.clear()

    @property
    def is_ready(self) -> bool:
        """Whether `take` may find something without another ring of the bell."""
        return bool(self._ready or self._ready_control)

    @property
    def holds_back(self) -> bool:
        """Whether more may be stored than `take` gives now: it waits until a suspect, or a full window, is finalised."""
        return self._suspect is not None or any(lane.blocked for lane in self._in.values())

    def depth(self) -> int:
        """Messages stored here and not finalised, as far as bells and looks have told; opens only lanes with something untaken."""
        depth = 0
        waiting = {*self._ready, *self._ready_control, *self._unheard, *self._held}
        for name, lane in self._in.items():
            if name in waiting or lane.blocked:
                view = inspect.view_lane(self.store, lane.sender, self.agent, control=lane.control)
                depth += view.depth if view is not None else 0
            elif lane.cursor is not None:
                depth += max(0, lane.cursor.taken - lane.cursor.acked_base)
        return depth

    def close(self) -> None:
        """What is in hand stays untouched and is delivered again to whoever comes next."""
        for lane in self._in.values():
            lane.close()
        self.bell.close()
        for lanes in (self._in, self._ready, self._ready_control, self._unheard):
            lanes.clear()
