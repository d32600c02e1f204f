"""What a check says: findings, each with its place, one sentence, and what can be done about it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from muster.bus.transports.lanes import locks
from muster.errors import MusterError

#: Worth knowing, normal in a store that is used; wrong, but no message is lost; a message that was accepted is gone.
NOTICE, DAMAGE, LOSS = "notice", "damage", "loss"
#: A living store moves while it is read: what is wrong twice, this far apart, is wrong.
CONFIRM_S: Final = 0.005
#: A cure may bring to light what was hidden; so deep it goes at most.
ROUNDS_MAX: Final = 5
REPAIRED: Final = "repaired"


@dataclass(slots=True)
class Finding:
    """One thing found. `cure` carries out `remedy`, may raise OSError, and needs `lock` (a path): that of the side that owns the file."""

    severity: str
    place: str
    text: str
    remedy: str = ""
    cure: Callable[[], object] | None = None
    lock: str | None = None
    #: Of a loss: the lane, its numbers (no `last`: and whatever was behind), and the message's id where it can still be read.
    lane: str | None = None
    first: int | None = None
    last: int | None = None
    message_id: str | None = None
    #: What became of the remedy: "" (not tried), "repaired", or why not.
    outcome: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.place, self.text

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("severity", "place", "text", "remedy", "outcome", "lane", "first", "last", "message_id")
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, "")}


def examine(check: Callable[[], Iterator[Finding]], *, repair: bool) -> list[Finding]:
    """Run a check, keep what is confirmed, and with `repair` cure what nobody living owns.

    Cures run under the lock of the side they repair, on findings made anew under that lock: nothing moves then.
    """
    found = list(check())
    if found:
        time.sleep(CONFIRM_S)
        again = {finding.key for finding in check()}
        found = [finding for finding in found if finding.key in again]
    if not repair:
        return found
    for lock in dict.fromkeys(finding.lock for finding in found if finding.cure is not None):
        with _held(lock) as refusal:
            mine = [finding for finding in found if finding.cure is not None and finding.lock == lock]
            for finding in mine:
                finding.outcome = refusal
            if not refusal:
                found += _cure_all(check, lock, {finding.key: finding for finding in mine})
    return found


def _cure_all(
    check: Callable[[], Iterator[Finding]], lock: str | None, told: dict[tuple[str, str], Finding]
) -> list[Finding]:
    """Cure until nothing new is found: what was unreadable before may have more to it. Returns what was not told yet."""
    more: list[Finding] = []
    tried: set[tuple[str, str]] = set()
    for _ in range(ROUNDS_MAX):
        todo = [one for one in check() if one.cure is not None and one.lock == lock and one.key not in tried]
        for finding in todo:
            tried.add(finding.key)
            if finding.key not in told:
                told[finding.key] = finding
                more.append(finding)
            told[finding.key].outcome = _carry_out(finding)
        if not todo:
            break
    for finding in told.values():
        finding.outcome = finding.outcome or REPAIRED  # it went with another one's cure
    return more


def _carry_out(finding: Finding) -> str:
    assert finding.cure is not None
    try:
        finding.cure()
    except (OSError, MusterError) as error:
        return f"not repaired: {error}"
    return REPAIRED


@contextlib.contextmanager
def _held(lock: str | None) -> Iterator[str]:
    """Hold `lock` while the block runs; gives "" or why it cannot be had."""
    if lock is None:
        yield ""
        return
    try:
        got = locks.acquire(lock)
    except (OSError, MusterError) as error:
        yield f"left alone: {error}"
        return
    if not got:
        yield f"left alone: process {locks.holder(lock)} holds {os.path.basename(lock)}"
        return
    try:
        yield ""
    finally:
        locks.release(lock)
