"""Redriving: dead letters that go back to their recipient, by renames alone, so that each is always in exactly one place.

    inbox/dead/<lane>.<lane id>.<seq>                  the dead letter
    inbox/redrive/<lane>.<lane id>.<seq>.<attempts>    on its way: `attempts` deliveries were begun

`redrive` (anybody of this user) renames the letter and rings the bell with `r redrive`. The recipient counts an attempt by renaming, then
hands the message out, unlinks the file on ack, and renames it back when it gives up. No step needs room in the store, and a crash before
or behind any of them leaves the letter in one of the two folders.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final

from muster.bus.transport import Inbound
from muster.bus.transports.lanes.bell import PeerBells, record_of
from muster.bus.transports.lanes.deadletters import (
    REASON_CHARS_MAX,
    encode_letter,
    message_of,
    parse_letter_name,
    read_letter,
)
from muster.bus.transports.lanes.layout import parse_lane_name
from muster.core import limits
from muster.errors import MusterError
from muster.security.permissions import make_private_dir, write_private

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

REDRIVEN: Final = "r"
RECORD: Final = record_of(REDRIVEN, "redrive")


def folder_of(inbox: str) -> str:
    return f"{inbox}/redrive"


def put_back(agent_dir: Path, name: str) -> bool:
    """Start a dead letter's way back to its recipient, whether that lives or not. False if there is no such letter any more.

    Raises:
        UnsafePermissionsError: The folder is not safely ours; nothing was moved.
    """
    make_private_dir(agent_dir / "inbox" / "redrive")
    try:
        os.rename(agent_dir / "inbox" / "dead" / name, agent_dir / "inbox" / "redrive" / f"{name}.0")
    except FileNotFoundError:
        return False
    bells = PeerBells()
    bells.ring(str(agent_dir / "bell"), RECORD)  # nobody listening: the next holder looks at its start
    bells.close()
    return True


def parse_redrive_name(name: str) -> tuple[str, int] | None:
    """(letter's name, attempts begun), or None if this is no name of a letter on its way."""
    letter, _, attempts = name.rpartition(".")
    if parse_letter_name(letter) is None or not (attempts.isascii() and attempts.isdigit()):
        return None
    return letter, int(attempts)


def waiting_in(inbox: str) -> list[str]:
    """Names of the letters on their way back, oldest number first."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(folder_of(inbox)) if parse_redrive_name(name) is not None)
    return []


class RedriveSource:
    """The recipient's side: what is in its `inbox/redrive/`, handed out as messages. Only the holder of `inbox.lock` has one.

    The `Inbound`s it gives have this object as `lane`; their verdicts come back to `ack`, `kill`, `again` and `uncount`.
    """

    def __init__(self, agent_dir: str, *, attempts_max: int = limits.ATTEMPTS_MAX) -> None:
        self._inbox = f"{agent_dir}/inbox"
        self._folder = folder_of(self._inbox)
        self._attempts_max = attempts_max
        self.waiting: dict[str, int] = {}  # letter's name -> attempts, as its file's name says
        self._in_hand: dict[str, int] = {}
        self._suspect = ""
        #: Whose normal messages are given; None: everybody's.
        self.listening: Collection[str] | None = None
        self.look()

    def look(self) -> bool:
        """Note what is there; at start, on a bell, on a scan. Whether `take` may find something."""
        for name in waiting_in(self._inbox):
            letter, attempts = parse_redrive_name(name) or ("", 0)
            if letter not in self._in_hand:
                self.waiting[letter] = attempts
        return self.is_ready

    @property
    def is_ready(self) -> bool:
        """Whether `take` of one of the classes would give something."""
        return self._next(control=True) is not None or self._next(control=False) is not None

    @property
    def holds_back(self) -> bool:
        """Whether more waits than `take` gives now: it comes once a suspect is finalised."""
        return bool(self._suspect and self.waiting)

    def __len__(self) -> int:
        """How many are here and not finalised."""
        return len(self.waiting) + len(self._in_hand)

    def take(self, *, control: bool) -> Inbound | None:
        """The next message of a class; its attempt is counted before it is returned."""
        while (letter := self._next(control=control)) is not None:
            inbound = self._begin(letter, self.waiting.pop(letter))
            if inbound is not None:
                return inbound
        return None

    def _next(self, *, control: bool) -> str | None:
        """What was in flight when a process died may be what killed it: such letters go out one at a time until each is finalised."""
        for letter, begun in self.waiting.items():
            sender, is_control = _sender_of(letter)
            heard = control or self.listening is None or sender in self.listening
            if is_control == control and heard and not (begun and self._suspect):
                return letter
        return None

    def _begin(self, letter: str, begun: int) -> Inbound | None:
        if not self._rename(letter, begun, begun + 1):
            return None
        try:
            facts, raw = read_letter(f"{self._folder}/{letter}.{begun + 1}")
            message = message_of(facts or {}, raw)
        except FileNotFoundError:
            return None
        except (MusterError, OSError, ValueError):
            self._move_to_dead(letter, begun + 1)  # unreadable, as it was there: fsck names it
            return None
        inbound = Inbound(self, message, begun + 1, letter)
        self._in_hand[letter] = begun + 1
        if begun >= self._attempts_max:
            self.kill(inbound, f"redriven, then delivered {begun} times without being finalised")
            return None
        if begun:
            self._suspect = letter
        return inbound

    def _rename(self, letter: str, before: int, after: int) -> bool:
        try:
            os.rename(f"{self._folder}/{letter}.{before}", f"{self._folder}/{letter}.{after}")
        except FileNotFoundError:
            return False
        return True

    def _move_to_dead(self, letter: str, attempts: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self._folder}/{letter}.{attempts}", f"{self._inbox}/dead/{letter}")

    def again(self, inbound: Inbound) -> int:
        """Count another delivery of a message that was given back; the number of deliveries begun."""
        return self._count(inbound, 1)

    def uncount(self, inbound: Inbound) -> None:
        """A clean release: this delivery did not happen."""
        self._count(inbound, -1)

    def _count(self, inbound: Inbound, step: int) -> int:
        letter: str = inbound.place
        begun = self._in_hand.get(letter)
        if begun is not None and self._rename(letter, begun, max(0, begun + step)):
            self._in_hand[letter] = inbound.attempt = max(0, begun + step)
        return inbound.attempt

    def ack(self, inbound: Inbound) -> bool:
        """Done: the file goes, and that is the instant at which the message is finalised. False if it was before."""
        begun = self._settle(inbound)
        if begun is None:
            return False
        try:
            os.unlink(f"{self._folder}/{inbound.place}.{begun}")
        except FileNotFoundError:
            return False
        return True

    def kill(self, inbound: Inbound, reason: str) -> bool:
        """Give up again: it is a dead letter once more, with this reason if the store has room to write it down, else with its old one."""
        begun = self._settle(inbound)
        if begun is None:
            return False
        path = f"{self._folder}/{inbound.place}.{begun}"
        with contextlib.suppress(OSError, MusterError):
            facts, raw = read_letter(path)
            if facts is not None:
                self._rewrite(path, _given_up_again(facts, reason, begun), raw)
        self._move_to_dead(inbound.place, begun)
        return True

    def _rewrite(self, path: str, facts: dict[str, Any], raw: bytes) -> None:
        from pathlib import Path

        temporary = Path(f"{self._folder}/tmp-{os.getpid()}-{time.monotonic_ns()}")
        write_private(temporary, encode_letter(facts, raw))
        os.rename(temporary, path)

    def _settle(self, inbound: Inbound) -> int | None:
        if inbound.place == self._suspect:
            self._suspect = ""
        return self._in_hand.pop(inbound.place, None)


def _sender_of(letter: str) -> tuple[str, bool]:
    parsed = parse_letter_name(letter)
    try:
        return parse_lane_name(parsed[0] if parsed else "")
    except MusterError:
        return "", False


def _given_up_again(facts: dict[str, Any], reason: str, attempts: int) -> dict[str, Any]:
    return {**facts, "reason": reason[:REASON_CHARS_MAX], "attempts": attempts, "dead_ns": time.time_ns()}
