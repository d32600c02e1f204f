"""One inbox: cursors against their lanes, spares, dead letters, letters on their way back, and what does not belong there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from muster.bus.transports.lanes import layout
from muster.bus.transports.lanes.deadletters import encode_letter, letters_in, parse_letter_name, read_letter
from muster.bus.transports.lanes.fsck.cursors import CursorFacts, check_cursor, orphan, replace_cursor
from muster.bus.transports.lanes.fsck.files import check_folder
from muster.bus.transports.lanes.fsck.findings import DAMAGE, NOTICE, Finding
from muster.bus.transports.lanes.fsck.headers import page_id
from muster.bus.transports.lanes.outlane import MAGIC
from muster.bus.transports.lanes.redrive import parse_redrive_name
from muster.bus.transports.lanes.segment import list_segments
from muster.bus.transports.lanes.words import PAGE
from muster.errors import InvalidNameError, MusterError, StoreVersionError
from muster.security.permissions import open_private, write_private

_SPARE = re.compile(r"spare-[0-9]+", re.ASCII)
_CURSOR = ".cursor"


def _expect(name: str) -> str:
    if name in ("dead", "redrive"):
        return "folder"
    known = name in ("overflow", "evicted", "heard") or _SPARE.fullmatch(name) or _lane_of(name) is not None
    return "file" if known else ""


def _expect_letter(name: str) -> str:
    return "file" if parse_letter_name(name) is not None else ""


def _expect_redriven(name: str) -> str:
    return "file" if parse_redrive_name(name) is not None else ""


def _expect_sender(name: str) -> str:
    return "file" if _lane_of(f"{name}{_CURSOR}") is not None else ""


def _lane_of(name: str) -> tuple[str, bool] | None:
    if not name.endswith(_CURSOR):
        return None
    try:
        return layout.parse_lane_name(name.removesuffix(_CURSOR))
    except InvalidNameError:
        return None


class InboxCheck:
    """Checks the inbox of one agent; `incoming`: the lanes that lead to it, as (sender, whether of the control class)."""

    def __init__(self, store: Path, agent: str, incoming: Iterable[tuple[str, bool]]) -> None:
        self.store, self.agent, self.incoming = store, agent, list(incoming)
        base = layout.agent_dir(store, agent)
        self.inbox, self.lock = f"{base}/inbox", f"{base}/inbox.lock"
        self.place = f"agents/{agent}/inbox"

    def check(self) -> Iterator[Finding]:
        """Everything that is wrong in the inbox itself."""
        if not os.path.isdir(self.inbox):
            return  # the check of the agent's folder says so
        yield from check_folder(self.inbox, self.place, _expect, self.lock)
        yield from check_folder(f"{self.inbox}/dead", f"{self.place}/dead", _expect_letter, self.lock)
        yield from check_folder(f"{self.inbox}/redrive", f"{self.place}/redrive", _expect_redriven, self.lock)
        for name in sorted(os.listdir(self.inbox)):
            lane = _lane_of(name)
            if lane is not None and not os.path.islink(f"{self.inbox}/{name}"):
                yield from self._about_cursor(name, *lane)
            elif _SPARE.fullmatch(name):
                yield from self._about_spare(name)
        yield from self._about_lanes_without_cursor()
        yield from self._about_senders()
        yield from self._about_letters()

    def _about_cursor(self, name: str, sender: str, control: bool) -> Iterator[Finding]:
        path, place = f"{self.inbox}/{name}", f"{self.place}/{name}"
        lane = f"{layout.agent_dir(self.store, sender)}/outbox/{layout.lane_name(self.agent, control=control)}"
        facts = CursorFacts(path)
        lane_id, first = _lane_id(lane), (list_segments(lane) or [1])[0]
        if facts.younger:
            yield Finding(DAMAGE, place, f"was not checked: {facts.younger}")
        if not facts.exists or not facts.is_usable:
            return
        if facts.lane_id is None:
            yield Finding(
                DAMAGE, place, "is no whole cursor, so what was finalised is not known",
                remedy=f"make it anew: messages from number {first:,} on are delivered again", lock=self.lock,
                cure=lambda: replace_cursor(path, lane_id, first - 1),
            )  # fmt: skip
            return
        if lane_id is None and not os.path.isdir(lane):
            yield orphan(place, path, self.lock)
        elif lane_id is not None and facts.lane_id != lane_id:
            yield Finding(
                NOTICE, place, f"is of an earlier life of the lane; {self.agent} replaces it when it reads the new one"
            )
            return
        yield from check_cursor(facts, place, self.lock, first)

    def _about_spare(self, name: str) -> Iterator[Finding]:
        path = f"{self.inbox}/{name}"
        try:
            size = os.lstat(path).st_size
        except FileNotFoundError:  # used meanwhile
            return
        if size != PAGE:
            yield Finding(
                DAMAGE, f"{self.place}/{name}", f"is a spare cursor of {size:,} bytes instead of {PAGE:,}", remedy="remove it",
                lock=self.lock, cure=lambda: os.unlink(path),
            )  # fmt: skip

    def _about_lanes_without_cursor(self) -> Iterator[Finding]:
        """A lane whose first segments were reclaimed had a cursor: without one, its recipient would look for numbers that are gone."""
        for sender, control in self.incoming:
            lane = f"{layout.agent_dir(self.store, sender)}/outbox/{layout.lane_name(self.agent, control=control)}"
            path = f"{self.inbox}/{layout.lane_name(sender, control=control)}{_CURSOR}"
            firsts = list_segments(lane)
            if firsts and firsts[0] > 1 and not os.path.lexists(path) and (lane_id := _lane_id(lane)) is not None:
                yield Finding(
                    DAMAGE, f"{self.place}/{os.path.basename(path)}",
                    f"is missing, though numbers up to {firsts[0] - 1:,} were finalised",
                    remedy=f"make it anew: messages from number {firsts[0]:,} on are delivered again", lock=self.lock,
                    cure=partial(replace_cursor, path, lane_id, firsts[0] - 1),
                )  # fmt: skip

    def _about_senders(self) -> Iterator[Finding]:
        """A lane whose name is not among the senders is not looked for when its recipient starts."""
        folder, place = f"{os.path.dirname(self.inbox)}/senders", f"agents/{self.agent}/senders"
        yield from check_folder(folder, place, _expect_sender, None)
        for sender, control in self.incoming if os.path.isdir(folder) else ():
            name = layout.lane_name(sender, control=control)
            page = f"{layout.agent_dir(self.store, sender)}/outbox/{layout.lane_name(self.agent, control=control)}/lane"
            if os.path.lexists(page) and not os.path.lexists(f"{folder}/{name}"):
                yield Finding(
                    DAMAGE, f"{place}/{name}", "is missing, so its lane would not be found at a start", remedy="make it",
                    cure=partial(layout.mark_sender, self.store, self.agent, name),
                )  # fmt: skip

    def _about_letters(self) -> Iterator[Finding]:
        for letter in letters_in(self.inbox):
            if letter.facts is None and parse_letter_name(letter.name) is not None and os.path.isfile(letter.path):
                yield self._unreadable(f"dead/{letter.name}", letter.path, letter.name)
        folder = f"{self.inbox}/redrive"
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            parsed = parse_redrive_name(name)
            if parsed is not None and _facts(f"{folder}/{name}") is None:
                yield self._unreadable(f"redrive/{name}", f"{folder}/{name}", parsed[0])

    def _unreadable(self, where: str, path: str, name: str) -> Finding:
        lane, _lane_id_text, seq = parse_letter_name(name) or ("", "", 0)

        def cure() -> None:
            facts = {
                "id": "", "sender": lane.removesuffix(layout.CONTROL_SUFFIX), "recipient": self.agent, "type": "unreadable",
                "seq": seq, "reason": "its facts were damaged; the file is kept whole as the body", "attempts": 0, "content": 0,
                "created_ns": 0, "dead_ns": time.time_ns(), "verified": False, "raw_id": "", "extras": {},
            }  # fmt: skip
            temporary = Path(f"{os.path.dirname(path)}/tmp-fsck-{os.getpid()}")
            write_private(temporary, encode_letter(facts, Path(path).read_bytes()))
            os.rename(temporary, path)
            if where.startswith("redrive/"):
                os.rename(path, f"{self.inbox}/dead/{name}")

        return Finding(
            DAMAGE, f"{self.place}/{where}", f"the facts of the dead letter number {seq:,} of {lane} are damaged",
            remedy="write down what its name tells and keep all of its bytes as the body", lock=self.lock, cure=cure,
            lane=f"{lane} to {self.agent}", first=seq, last=seq,
        )  # fmt: skip


def _facts(path: str) -> dict[str, object] | None:
    try:
        return read_letter(path)[0]
    except FileNotFoundError:
        return {"moved": True}
    except (OSError, MusterError):
        return None


def _lane_id(lane: str) -> bytes | None:
    try:
        fd = open_private(f"{lane}/lane", os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, MusterError):
        return None
    try:
        return page_id(os.pread(fd, 32, 0), MAGIC)
    except StoreVersionError:  # the check of the lane says so
        return None
    finally:
        os.close(fd)
