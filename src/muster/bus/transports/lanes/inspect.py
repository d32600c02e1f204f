"""Looking at lanes from outside, without taking part: depths and what is unread. Reads files only, changes nothing."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, NamedTuple

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import layout, outlane
from muster.bus.transports.lanes.segment import (
    DATA,
    HEADER_BYTES,
    commit_word,
    list_segments,
    padded,
    parse_header,
    segment_name,
)
from muster.bus.transports.lanes.words import lane_id_of
from muster.core.codec import HEADER
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LaneView(NamedTuple):
    """One lane at one moment: numbers up to `acked_base` are finalised, up to `taken` taken, up to `last` stored."""

    sender: str
    recipient: str
    control: bool
    lane_id: bytes
    last: int
    taken: int
    acked_base: int
    segments: int

    @property
    def depth(self) -> int:
        return max(0, self.last - self.acked_base)


def _read(path: str) -> bytes:
    fd = open_private(path, os.O_RDONLY)
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def frames_of(directory: str, lane_id: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    """(number, unverified content) of one segment's committed frames."""
    data = _read(f"{directory}/{segment_name(first)}")
    parsed = parse_header(data)
    if parsed is None or parsed[0] != lane_id:
        return
    at, seq, crc = HEADER_BYTES, first, zlib.crc32(lane_id)
    while at + 8 <= len(data):
        stored = int.from_bytes(data[at : at + 8], "little")
        length = stored & 0xFFFFFFFF
        if stored == 0 or stored != commit_word(crc, seq, length, DATA):
            return
        yield seq, data[at + 8 : at + 8 + length]
        at += 8 + padded(length)
        seq += 1


def held_bytes(directory: str) -> int:
    """Bytes of a lane's segments, as allocated."""
    total = 0
    for first in list_segments(directory):
        try:
            total += os.stat(f"{directory}/{segment_name(first)}", follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def view_lane(store: Path, sender: str, recipient: str, *, control: bool) -> LaneView | None:
    """The lane as it is now, or None if there is none."""
    directory = f"{layout.agent_dir(store, sender)}/outbox/{layout.lane_name(recipient, control=control)}"
    try:
        lane_id = lane_id_of(_read(f"{directory}/lane")[:32], outlane.MAGIC)
    except FileNotFoundError:
        return None
    if lane_id is None:
        return None
    last = 0
    firsts = list_segments(directory)
    for first in reversed(firsts):
        last = first - 1
        try:
            for seq, _content in frames_of(directory, lane_id, first):
                last = seq
        except FileNotFoundError:
            continue
        break
    peer = cursors.PeerCursor(
        f"{layout.agent_dir(store, recipient)}/inbox/{layout.lane_name(sender, control=control)}.cursor", lane_id, 0
    )
    try:
        peer.refresh()
        return LaneView(sender, recipient, control, lane_id, last, peer.taken, peer.acked_base, len(firsts))
    finally:
        peer.close()


def lanes_to(store: Path, recipient: str) -> Iterator[LaneView]:
    """Every lane that ends in `recipient`'s inbox."""
    for sender, control in layout.lanes_to(store, recipient):
        view = view_lane(store, sender, recipient, control=control)
        if view is not None:
            yield view


def inbox_depth(store: Path, agent: str) -> int:
    """Messages stored for `agent` and not finalised."""
    return sum(view.depth for view in lanes_to(store, agent))


def unfinalised_types(store: Path, view: LaneView) -> Iterator[str]:
    """The (unverified) types of a lane's messages above `acked_base`."""
    directory = (
        f"{layout.agent_dir(store, view.sender)}/outbox/{layout.lane_name(view.recipient, control=view.control)}"
    )
    for first in list_segments(directory):
        try:
            for seq, content in frames_of(directory, view.lane_id, first):
                if seq > view.acked_base:
                    type_bytes = HEADER.unpack_from(content)[5]
                    yield content[HEADER.size : HEADER.size + type_bytes].decode("utf-8", "replace")
        except FileNotFoundError:
            continue
