"""What an inbox does with bytes that stay wrong (step over them, report every number that is lost, go on: rule R) and with messages that
may kill their readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.bus.transport import Inbound
from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes.deadletters import store_letter
from muster.core.message import NO_HEAD, Message

if TYPE_CHECKING:
    from muster.bus.transports.lanes.inbox import Inbox
    from muster.bus.transports.lanes.inlane import DamagedLaneError, InLane


def heal(inbox: Inbox, lane: InLane, cursor: cursors.Cursor, damage: DamagedLaneError) -> bool:
    """Step over what `damage` found at `lane.next_seq`; False if nothing readable follows yet."""
    if damage.forged_end is not None:
        _set_aside(inbox, lane, cursor, damage)
        return True
    found = lane.resume_after_damage()
    if found is None:
        inbox.stats.bad_frames += 1
        return False
    first = reached = lane.next_seq
    while reached < found and cursor.can_take(reached):
        cursor.take(reached)
        cursor.finalise(reached, cursors.DAMAGED)
        reached += 1
    if reached > first:
        inbox.note_gap(lane.name, first, reached - 1)
    lane.next_seq = reached
    if reached < found:
        lane.blocked = True
        lane.seek_again()  # once acks have made room, the damage is met again and healed from here on
        return False
    return True


def _set_aside(inbox: Inbox, lane: InLane, cursor: cursors.Cursor, damage: DamagedLaneError) -> None:
    """A frame of the right shape with a wrong tag: kept as a dead letter, finalised as forged."""
    seq = lane.next_seq
    inbox.stats.bad_frames += 1
    letter = Message(lane.sender, inbox.agent, "forged", damage.content, (*NO_HEAD[:9], seq, *NO_HEAD[10:]))
    store_letter(
        inbox.letter_path(lane, cursor, seq), letter, reason="the tag does not fit", attempts=0, durable=inbox.durable
    )
    lane.skip_forged(damage)
    lane.next_seq = seq + 1
    cursor.take(seq)
    inbox._finalise(Inbound(lane, letter, 0, cursor), cursors.FORGED)


def is_suspect(lane: InLane, cursor: cursors.Cursor, seq: int) -> bool:
    """In flight when a process died: it may be what kills its readers. Suspects run one at a time until each is finalised.

    Fresh messages go on beside them: one that is in flight when the suspect kills again becomes a suspect itself, so its counter
    rises once and not with every death.
    """
    return not lane.control and seq <= cursor.taken_before and cursor.attempts(seq) > 0
