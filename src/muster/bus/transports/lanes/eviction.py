"""Room for a sender that has used up its credit: lend it more, or evict the inbox's oldest messages if its recipient wants that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.bus.transports.lanes.inlane import DamagedLaneError
from muster.core.names import COORDINATOR
from muster.core.settings import EVICT_OLDEST

if TYPE_CHECKING:
    from muster.bus.transports.lanes.inbox import Inbox
    from muster.bus.transports.lanes.inlane import InLane


def make_room(inbox: Inbox, lane: InLane) -> bool:
    """A sender has used up its credit on `lane`. True if it has more now.

    What the pool can lend comes first. Then, if the policy says so, the inbox's oldest untaken messages go, whoever sent them: one in
    eight of what this lane may hold, so that a flood costs one ring of the bell for many messages.
    """
    cursor = lane.cursor
    if cursor is None:
        return False  # it is opened, and gets its window, when its turn comes
    if cursor.grant(hungry=True):
        return True
    if inbox.overflow != EVICT_OLDEST:
        return False
    for _ in range(max(1, cursor.window >> 3)):
        oldest = _oldest(inbox)
        if oldest is None:
            break
        inbound = inbox._take_from(oldest, alone=False)
        if inbound is not None:
            inbox.evict(inbound)
    return cursor.grant(hungry=True)


def _oldest(inbox: Inbox) -> InLane | None:
    """The normal lane whose next untaken message was created first. Control messages are never evicted, nor are the coordinator's: it
    counts on what it has assigned.
    """
    chosen, created_ns = None, 0
    for name in inbox.lookout.waiting() | {lane.name for lane in inbox.lookout.lanes.values() if lane.blocked}:
        lane = inbox.lookout.lanes[name]
        if lane.control or lane.sender == COORDINATOR or lane.cursor is None or not lane.cursor.can_take(lane.next_seq):
            continue
        try:
            message = lane.peek()
        except DamagedLaneError:
            continue  # healed when its turn comes
        if message is not None and (chosen is None or message.created_ns < created_ns):
            chosen, created_ns = lane, message.created_ns
    return chosen
