"""Room for a sender that has used up its credit: lend it more, or evict the inbox's oldest messages if its recipient wants that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.bus.transports.lanes.cursor import WINDOW
from muster.bus.transports.lanes.inlane import DamagedLaneError
from muster.core.names import is_coordinator
from muster.core.settings import EVICT_OLDEST

if TYPE_CHECKING:
    from muster.bus.transports.lanes.inbox import Inbox
    from muster.bus.transports.lanes.inlane import InLane


def make_room(inbox: Inbox, lane: InLane) -> bool:
    """A sender has used up its credit on `lane`. True if it has more now.

    What the pool can lend comes first. Then, if the policy says so, the oldest untaken messages go whose room this lane can have: its
    own, and those of lanes that have borrowed. One in eight of what the lane may hold, so that a flood costs one ring of the bell for
    many messages. A lane that keeps to its floor loses nothing to another's flood.
    """
    had = lane.cursor.credit if lane.cursor is not None else inbox.pool.floor
    cursor = lane.cursor or inbox.open_lane(lane)
    if cursor is None:
        return False
    if cursor.grant(hungry=True) or cursor.credit > had:
        return True
    if inbox.overflow != EVICT_OLDEST:
        return False
    batch = max(1, cursor.window >> 3)
    for count in range(WINDOW):
        if count >= batch and cursor.credit > had:
            break
        oldest = _oldest(inbox, lane)
        if oldest is None or oldest.cursor is None:
            break
        inbound = inbox._take_from(oldest, alone=False)
        if inbound is not None:
            if oldest is not lane:
                oldest.cursor.give_back()
            inbox.evict(inbound)
        cursor.grant(hungry=True)
    return cursor.credit > had


def _oldest(inbox: Inbox, hungry: InLane) -> InLane | None:
    """The lane whose next untaken message was created first, of those whose room `hungry` can have.

    Control messages are never evicted, nor are a coordinator's: it counts on what it has assigned.
    """
    chosen, created_ns = None, 0
    may_borrow = hungry.cursor is not None and hungry.cursor.window < inbox.pool.lane_max
    for name in inbox.lookout.waiting() | {lane.name for lane in inbox.lookout.lanes.values() if lane.blocked}:
        lane = inbox.lookout.lanes[name]
        if lane.control or is_coordinator(lane.sender):
            continue
        cursor = lane.cursor or inbox.open_lane(lane)
        if cursor is None or not cursor.can_take(lane.next_seq):
            continue
        if lane is not hungry and not (may_borrow and cursor.has_borrowed):
            continue
        try:
            message = lane.peek()
        except DamagedLaneError:
            continue  # healed when its turn comes
        if message is not None and (chosen is None or message.created_ns < created_ns):
            chosen, created_ns = lane, message.created_ns
    return chosen
