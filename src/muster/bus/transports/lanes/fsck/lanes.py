"""One lane, its sender's side: page, segments, the chain of numbers, every frame; and how a broken chain is mended.

Mending never writes to the recipient's side and never makes bytes up. Where accepted messages are gone for good, the word that should
introduce the first of them becomes `LOST_MARK`: readers step over it by the rule for damage, and report the gap. Where the sender could
not walk over a damaged end, the chain goes on in a new segment, behind every number that may have been given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from muster.bus.transports.lanes import layout, outlane
from muster.bus.transports.lanes.fsck.cursors import CursorFacts
from muster.bus.transports.lanes.fsck.findings import DAMAGE, LOSS, NOTICE, Finding
from muster.bus.transports.lanes.fsck.headers import page_id, segment_facts
from muster.bus.transports.lanes.fsck.mending import (
    keep_as_letter,
    mark_lost,
    new_page,
    new_segment,
    set_word,
    write_header,
    write_seal,
)
from muster.bus.transports.lanes.fsck.walk import End, Frame, Gap, id_at, walk
from muster.bus.transports.lanes.segment import list_segments, segment_name
from muster.bus.transports.lanes.words import PAGE, value_of
from muster.core.codec import decode_frame
from muster.core.message import FrameError
from muster.errors import MusterError, StoreVersionError
from muster.security.permissions import open_private

BYTES_DAMAGED: Final = "their bytes are damaged"
PAGE_WORDS: Final = {4: "floor", 5: "released", 6: "durable", 7: "want"}


class Lost(NamedTuple):
    """Numbers whose frames are gone; `and_more`: and whatever was behind them."""

    first: int
    last: int
    why: str
    message_id: str | None = None
    and_more: bool = False


class LaneCheck:
    """Checks one lane. `key` verifies tags, or None if the fleet's master key is not at hand."""

    def __init__(self, store: Path, sender: str, recipient: str, *, control: bool, key: bytes | None) -> None:
        self.store, self.sender, self.recipient, self.control, self.key = store, sender, recipient, control, key
        base = layout.agent_dir(store, sender)
        self.directory = f"{base}/outbox/{layout.lane_name(recipient, control=control)}"
        self.lock = f"{base}/outbox.lock"
        self.name = f"{sender} to {recipient}{', control class' if control else ''}"
        self.inbox = f"{layout.agent_dir(store, recipient)}/inbox"
        self.cursor_path = f"{self.inbox}/{layout.lane_name(sender, control=control)}.cursor"

    def check(self) -> Iterator[Finding]:
        """Everything that is wrong with the lane, in the order of its numbers. A younger format is told and left alone."""
        try:
            yield from self._check()
        except StoreVersionError as error:
            yield Finding(DAMAGE, f"lane {self.name}", f"was not checked: {error.message}")

    def _check(self) -> Iterator[Finding]:
        # In a living store: a `taken` read first is never beyond the segments read next, a base read last never behind them.
        before = CursorFacts(self.cursor_path)
        self.is_usable = True
        self.durable = 0  # durable stores: the highest number that was accepted for certain
        self.lane_id, page = self._page()
        self.segments = self._segments()
        after = CursorFacts(self.cursor_path)
        known = self.lane_id or self._id_in_segments()
        if not self.is_usable:
            return
        if self.lane_id is None:
            yield from self._about_page(known, exists=page is not None)
        elif page is not None:
            self.durable = value_of(int.from_bytes(page[48:56], "little")) or 0
            yield from self._about_words(page)
        if known is None:
            return
        self.known = known
        self.cursor = before if before.lane_id == known else None
        yield from self._about_headers()
        if after.lane_id == known and not after.bad_words:
            yield from self._about_start(after)
        own = [(first, data) for first, data in self.segments if self._is_own(data)]
        for at, (first, data) in enumerate(own):
            following = own[at + 1][0] if at + 1 < len(own) else None
            yield from self._about_segment(first, data, following)

    # ------------------------------------------------------------------ reading

    def _page(self) -> tuple[bytes | None, bytes | None]:
        try:
            page = _read(f"{self.directory}/lane", PAGE + 1)
        except FileNotFoundError:
            return None, None
        except (OSError, MusterError):
            self.is_usable = False
            return None, None
        return (page_id(page, outlane.MAGIC) if len(page) == PAGE else None), page

    def _segments(self) -> list[tuple[int, bytes]]:
        found = []
        for first in list_segments(self.directory):
            try:
                found.append((first, _read(f"{self.directory}/{segment_name(first)}", 1 << 26)))
            except FileNotFoundError:  # reclaimed meanwhile
                continue
            except (OSError, MusterError):  # a link, or open to others: the check of files says so
                self.is_usable = False
        return found

    def _id_in_segments(self) -> bytes | None:
        ids = {parsed[0] for _first, data in self.segments if (parsed := segment_facts(data)) is not None}
        return ids.pop() if len(ids) == 1 else None

    def _is_own(self, data: bytes) -> bool:
        parsed = segment_facts(data)
        return parsed is None or parsed[0] == self.known

    # ------------------------------------------------------------------ page and headers

    def _finding(self, severity: str, text: str, **more: object) -> Finding:
        return Finding(severity, f"lane {self.name}", text, lock=self.lock, **more)  # type: ignore[arg-type]

    def _about_page(self, known: bytes | None, *, exists: bool) -> Iterator[Finding]:
        what = "the lane page is damaged" if exists else "the lane page is missing"
        if known is not None:
            yield self._finding(
                DAMAGE, what, remedy="make it anew with the lane id of its segments",
                cure=lambda: self._make_page(known),
            )  # fmt: skip
        elif self.segments:
            yield self._finding(
                LOSS, f"{what} and no segment tells the lane's id: what {len(self.segments)} files hold is lost"
            )
        elif exists:
            yield self._finding(
                DAMAGE, f"{what}; it has no segments", remedy="remove it: the lane begins anew",
                cure=lambda: os.unlink(f"{self.directory}/lane"),
            )  # fmt: skip

    def _make_page(self, lane_id: bytes) -> None:
        self.known = lane_id
        durable = layout.read_settings(self.store).durable
        new_page(self.directory, lane_id, durable=self._last_number() if durable else 0)

    def _about_words(self, page: bytes) -> Iterator[Finding]:
        for index, name in PAGE_WORDS.items():
            if value_of(int.from_bytes(page[index * 8 : index * 8 + 8], "little")) is None:
                yield self._finding(
                    DAMAGE, f"the word {name} of the lane page is damaged", remedy="set it to what the segments prove",
                    cure=lambda index=index: set_word(self.directory, index, self._last_number() if index == 6 else 0),
                )  # fmt: skip

    def _last_number(self) -> int:
        """The last number of the last segment, once it is synced: what `durable` may say."""
        if not self.segments:
            return 0
        first, data = self.segments[-1]
        fd = open_private(f"{self.directory}/{segment_name(first)}", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return next(span for span in walk(data, self.known, first) if isinstance(span, End)).seq - 1

    def _about_headers(self) -> Iterator[Finding]:
        for first, data in self.segments:
            parsed = segment_facts(data)
            name = segment_name(first)
            if parsed is not None and parsed[0] != self.known:
                yield self._finding(
                    NOTICE, f"segment {name} belongs to an earlier life of the lane", remedy="remove it",
                    cure=lambda name=name: os.unlink(f"{self.directory}/{name}"),
                )  # fmt: skip
            elif parsed is None or parsed[1:] != (first, len(data)):
                cut = parsed is not None and parsed[1] == first
                why = (
                    f"has {len(data):,} bytes where its header says {parsed[2]:,}"
                    if cut and parsed
                    else "has a damaged header"
                )
                yield self._finding(
                    DAMAGE, f"segment {name} {why}", remedy="write its header anew",
                    cure=lambda first=first: write_header(self.directory, self.known, first),
                )  # fmt: skip

    # ------------------------------------------------------------------ the chain of numbers

    def _about_start(self, cursor: CursorFacts) -> Iterator[Finding]:
        """From `acked_base` to the first segment. Without a cursor nothing can be said: what is not there was reclaimed or never was."""
        base, given = cursor.base, max(cursor.taken, self.durable)
        if self.segments and self.segments[0][0] > base + 1:
            yield from self._lost(
                Lost(base + 1, self.segments[0][0] - 1, "their segment is missing"), "put a mark in its place",
                lambda: new_segment(self.directory, self.known, base + 1, lost=True),
            )  # fmt: skip
        elif not self.segments and given > base:
            yield from self._lost(
                Lost(base + 1, given, "all segments are missing"), "let the lane begin anew",
                lambda: os.unlink(f"{self.directory}/lane"),
            )  # fmt: skip
        elif not self.segments and self.lane_id is not None:
            yield self._finding(NOTICE, "there are no segments; the sender begins the lane anew")

    def _about_segment(self, first: int, data: bytes, following: int | None) -> Iterator[Finding]:
        broken = False  # whether the sender, opening its last segment, could not walk to the end
        for span in walk(data, self.known, first):
            if isinstance(span, Frame):
                why = self._wrong(span)
                if why:
                    broken = True
                    yield from self._about_frame(first, span, why, data)
            elif isinstance(span, Gap):
                broken = True
                yield from self._about_gap(first, span)
            elif following is not None:
                yield from self._about_inner_end(first, span, following)
            else:
                yield from self._about_tail(first, span, broken=broken)

    def _wrong(self, frame: Frame) -> str:
        """Why a frame whose commit word is right cannot be delivered, or ""."""
        if self.key is None:
            return "" if id_at(bytes(8) + frame.content, 0, self.known, frame.seq) else "its header is damaged"
        try:
            decode_frame(frame.content, self.known, frame.seq, self.key, (self.sender, self.recipient))
        except FrameError:
            return "its signature does not fit its bytes"
        return ""

    def _about_frame(self, first: int, frame: Frame, why: str, data: bytes) -> Iterator[Finding]:
        def cure() -> None:
            if not self._finalised(frame.seq):
                keep_as_letter(self.inbox, self.cursor_path, self.known, (self.sender, self.recipient), frame)
            mark_lost(self.directory, first, frame.at)

        yield from self._lost(
            Lost(frame.seq, frame.seq, why, id_at(data, frame.at, self.known, frame.seq)),
            "keep its bytes as a dead letter and put a mark in its place", cure,
        )  # fmt: skip

    def _about_gap(self, first: int, gap: Gap) -> Iterator[Finding]:
        if gap.marked:
            yield from self._told(gap.first, gap.last)
            return
        yield from self._lost(
            Lost(gap.first, gap.last, BYTES_DAMAGED, gap.message_id), "put a mark in their place",
            lambda: mark_lost(self.directory, first, gap.at),
        )  # fmt: skip

    def _about_inner_end(self, first: int, end: End, following: int) -> Iterator[Finding]:
        missing = end.seq < following
        if end.how == "marked":
            yield from self._told(end.seq, following - 1)
        elif end.how == "seal" and missing:
            yield from self._lost(
                Lost(end.seq, following - 1, "their segment is missing"), "put a mark in its place",
                lambda: new_segment(self.directory, self.known, end.seq, lost=True),
            )  # fmt: skip
        elif end.how != "seal" and missing:
            yield from self._lost(
                Lost(end.seq, following - 1, BYTES_DAMAGED, end.message_id), "put a mark in their place",
                lambda: mark_lost(self.directory, first, end.at),
            )  # fmt: skip
        elif end.how != "seal":
            yield self._finding(
                DAMAGE, f"the seal of segment {segment_name(first)} is damaged; no message is", remedy="seal it again",
                cure=lambda: write_seal(self.directory, self.known, first, end.at, following),
            )  # fmt: skip

    def _about_tail(self, first: int, end: End, *, broken: bool) -> Iterator[Finding]:
        """The last segment: numbers go on behind every one that may have been given."""
        taken = self.cursor.taken if self.cursor is not None and not self.cursor.bad_words else 0
        given = max(taken, self.durable)
        if end.how in ("open", "seal") and given >= end.seq:
            last, why = given, "they were accepted, but their bytes are not there any more"
        elif end.how in ("damaged", "cut"):
            last, why = max(end.seq, given), f"{BYTES_DAMAGED}, and any behind them"
        else:
            if end.how == "seal":
                yield self._finding(
                    NOTICE,
                    f"the segment behind number {end.seq - 1:,} is not there: its sender ended before it was made",
                )
            if broken and end.how == "open":
                yield self._finding(
                    DAMAGE, "the sender cannot open its last segment", remedy="seal it and go on in a new one",
                    cure=lambda: self._go_on(first, end, end.seq - 1, sealed=True),
                )  # fmt: skip
            return
        yield from self._lost(
            Lost(end.seq, last, why, end.message_id, and_more=end.how in ("damaged", "cut")),
            "put a mark in their place and go on in a new segment", lambda: self._go_on(first, end, last, sealed=False),
        )  # fmt: skip

    def _go_on(self, first: int, end: End, last: int, *, sealed: bool) -> None:
        """The successor comes first: a crash before the mark leaves a chain that the next check mends."""
        new_segment(self.directory, self.known, last + 1)
        if end.how == "seal":
            new_segment(self.directory, self.known, end.seq, lost=True)
        elif sealed:
            write_seal(self.directory, self.known, first, end.at, end.seq)
        else:
            mark_lost(self.directory, first, end.at)

    # ------------------------------------------------------------------ losses

    def _finalised(self, seq: int) -> bool:
        return self.cursor is not None and self.cursor.is_finalised(seq)

    def _open_numbers(self, first: int, last: int) -> tuple[int, int] | None:
        numbers = [seq for seq in (first, last) if not self._finalised(seq)] if last - first > 1000 else [
            seq for seq in range(first, last + 1) if not self._finalised(seq)
        ]  # fmt: skip
        return (numbers[0], numbers[-1]) if numbers else None

    def _lost(self, lost: Lost, remedy: str, cure: Callable[[], None]) -> Iterator[Finding]:
        """A loss as far as its numbers are not finalised; else only damage."""
        numbers = self._open_numbers(lost.first, lost.last)
        first, last = numbers or (lost.first, lost.last)
        shown = _numbers(first, last)
        text = f"lost {shown}: {lost.why}" if numbers else f"{shown}: {lost.why}; finalised already, nothing is lost"
        yield self._finding(
            LOSS if numbers else DAMAGE, text, remedy=remedy, cure=cure, lane=self.name, first=first,
            last=None if lost.and_more else last, message_id=lost.message_id,
        )  # fmt: skip

    def _told(self, first: int, last: int) -> Iterator[Finding]:
        numbers = self._open_numbers(first, last)
        if numbers is not None:
            shown = _numbers(*numbers)
            yield self._finding(NOTICE, f"{shown}: told as lost before; {self.recipient} has not stepped over it yet")


def _numbers(first: int, last: int) -> str:
    return f"number {first:,}" if first == last else f"numbers {first:,} to {last:,}"


def _read(path: str, size: int) -> bytes:
    fd = open_private(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
