"""What waits in inboxes, seen from outside: depth, age and the messages themselves. Takes nothing, holds no lock, changes nothing."""

from __future__ import annotations

import heapq
import os
from typing import TYPE_CHECKING, NamedTuple

from muster.bus.transports.lanes import layout
from muster.bus.transports.lanes.deadletters import message_of, read_letter
from muster.bus.transports.lanes.fsck.cursors import CursorFacts
from muster.bus.transports.lanes.inspect import LaneView, frames_of, view_lane
from muster.bus.transports.lanes.redrive import folder_of, waiting_in
from muster.bus.transports.lanes.segment import list_segments
from muster.core.codec import HEADER, decode_frame
from muster.core.message import FrameError, Message
from muster.errors import MusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CREATED_NS = 11  # its place in a frame's header


class InboxView(NamedTuple):
    """One inbox at one moment. `depth`: stored for it and not finalised; `oldest_created_ns`: when the oldest of these was sent, or 0."""

    depth: int
    oldest_created_ns: int
    dead: int


class Waiting(NamedTuple):
    """A message that waits; `taken`: somebody has it in hand, or had when it died."""

    message: Message
    taken: bool


def inbox_views(store: Path) -> dict[str, InboxView]:
    """Every inbox that is there, with one look at each lane."""
    lanes = layout.all_lanes(store)
    return {agent: _view(store, agent, lanes.get(agent, [])) for agent in layout.roster(store)}


def _view(store: Path, agent: str, lanes: list[tuple[str, bool]]) -> InboxView:
    depth, oldest = 0, 0
    for sender, control in lanes:
        view = view_lane(store, sender, agent, control=control)
        if view is None or view.last <= view.acked_base:
            continue
        finalised = _finalised_above(store, view)
        depth += view.last - view.acked_base - len(finalised)
        for seq, content in _frames_above(store, view):
            if seq not in finalised:
                created = HEADER.unpack_from(content)[_CREATED_NS]
                oldest = min(oldest or created, created)
                break
    inbox = f"{layout.agent_dir(store, agent)}/inbox"
    return InboxView(depth + len(waiting_in(inbox)), oldest, _count(f"{inbox}/dead"))


def _count(folder: str) -> int:
    try:
        return sum(not name.startswith("tmp-") for name in os.listdir(folder))
    except FileNotFoundError:
        return 0


def _directory(store: Path, view: LaneView) -> str:
    return f"{layout.agent_dir(store, view.sender)}/outbox/{layout.lane_name(view.recipient, control=view.control)}"


def _finalised_above(store: Path, view: LaneView) -> set[int]:
    """Numbers above the base that have their verdict already."""
    if view.taken <= view.acked_base:
        return set()
    inbox = f"{layout.agent_dir(store, view.recipient)}/inbox"
    facts = CursorFacts(f"{inbox}/{layout.lane_name(view.sender, control=view.control)}.cursor")
    return (
        {seq for seq in facts.acked if view.acked_base < seq <= view.last} if facts.lane_id == view.lane_id else set()
    )


def _frames_above(store: Path, view: LaneView) -> Iterator[tuple[int, bytes]]:
    """(number, unverified content) of the frames above the base."""
    directory = _directory(store, view)
    firsts = list_segments(directory)
    for at, first in enumerate(firsts):
        if at + 1 < len(firsts) and firsts[at + 1] <= view.acked_base + 1:
            continue
        try:
            for seq, content in frames_of(directory, view.lane_id, first):
                if seq > view.acked_base and len(content) >= HEADER.size:
                    yield seq, content
        except FileNotFoundError:  # finalised and reclaimed meanwhile
            continue


def waiting(store: Path, agent: str, key_of: Callable[[str], bytes]) -> Iterator[Waiting]:
    """What waits for `agent`, each message verified with `key_of(sender)`: control class first, then by the time of sending.

    What cannot be verified is not shown: it will never be delivered.
    """
    lanes = [
        _of_lane(store, view, key_of(sender))
        for sender, control in layout.lanes_to(store, agent)
        if (view := view_lane(store, sender, agent, control=control)) is not None
    ]
    lanes.append(_redriven(f"{layout.agent_dir(store, agent)}/inbox"))
    return heapq.merge(*lanes, key=lambda one: (not one.message.control, one.message.created_ns))


def _of_lane(store: Path, view: LaneView, key: bytes) -> Iterator[Waiting]:
    finalised = _finalised_above(store, view)
    for seq, content in _frames_above(store, view):
        if seq in finalised:
            continue
        try:
            message = decode_frame(content, view.lane_id, seq, key, (view.sender, view.recipient))
        except FrameError:
            continue
        yield Waiting(message, seq <= view.taken)


def _redriven(inbox: str) -> Iterator[Waiting]:
    found = []
    for name in waiting_in(inbox):
        try:
            facts, raw = read_letter(f"{folder_of(inbox)}/{name}")
            found.append(Waiting(message_of(facts or {}, raw), not name.endswith(".0")))
        except (MusterError, OSError, ValueError):
            continue
    yield from sorted(found, key=lambda one: (not one.message.control, one.message.created_ns))
