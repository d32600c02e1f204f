"""A task's life as a table, and what the machine keeps of it.

The table is data: the diagram in the docs and the tests are drawn from it, and a move that is not in it is a bug that stops the
coordinator instead of a task that is silently lost. A submitted task is `queued` and leaves that state at once if it has to wait for
others (`blocked`) or for its time (`delayed`).
"""

from __future__ import annotations

from typing import Any

import msgspec

QUEUED, BLOCKED, DELAYED, ASSIGNED = "queued", "blocked", "delayed", "assigned"
DONE, FAILED, DEAD, CANCELLED = "done", "failed", "dead", "cancelled"

#: (state, cause) -> state. `handed_back`: refused unstarted, or ended by us so that another may do it; neither counts an attempt.
#: `fulfilled`: all it comes after are done. `impossible`: nobody can ever do it. `cancelled`: the operator does not want it any more.
TRANSITIONS: dict[tuple[str, str], str] = {
    (QUEUED, "must_wait"): BLOCKED,
    (QUEUED, "not_yet_due"): DELAYED,
    (QUEUED, "assigned"): ASSIGNED,
    (QUEUED, "impossible"): DEAD,
    (QUEUED, "cancelled"): CANCELLED,
    (BLOCKED, "fulfilled"): QUEUED,
    (BLOCKED, "impossible"): DEAD,
    (BLOCKED, "cancelled"): CANCELLED,
    (DELAYED, "due"): QUEUED,
    (DELAYED, "impossible"): DEAD,
    (DELAYED, "cancelled"): CANCELLED,
    (ASSIGNED, "done"): DONE,
    (ASSIGNED, "failed_again"): DELAYED,
    (ASSIGNED, "limited"): DELAYED,
    (ASSIGNED, "failed_finally"): FAILED,
    (ASSIGNED, "died"): QUEUED,
    (ASSIGNED, "died_finally"): DEAD,
    (ASSIGNED, "handed_back"): QUEUED,
    (ASSIGNED, "impossible"): DEAD,
    (ASSIGNED, "cancelled"): CANCELLED,
    (FAILED, "retried"): QUEUED,
    (DEAD, "retried"): QUEUED,
    (CANCELLED, "retried"): QUEUED,
}

#: What is kept of a task that is over: one byte. 0 = never submitted, 1 = open.
UNKNOWN, OPEN, CODE = 0, 1, {DONE: 2, FAILED: 3, DEAD: 4, CANCELLED: 5}
STATE_OF_CODE = {code: state for state, code in CODE.items()}
#: Numbers index a byte array, so they are bounded.
NUMBER_MAX = 50_000_000
#: A place in a line is the priority above the number, so that the smallest place is next: `place & NUMBER_MASK` is the number.
NUMBER_BITS = 26
NUMBER_MASK = (1 << NUMBER_BITS) - 1
#: Lines of evidence kept of attempts that failed or died.
EVIDENCE_MAX = 8
#: Earlier holders of a task that are remembered, to tell a stale result from a forged one.
PAST_MAX = 64
#: Messages that became tasks are remembered, so that one that is delivered again makes no second task.
SOURCES_MAX = 1024


class Task(msgspec.Struct, array_like=True):
    """A task that is not over, or is kept to be retried. `attempt` is the fencing token: it grows with every assignment, never reused."""

    number: int
    input: Any
    kind: str
    timeout_s: float | None
    state: str = QUEUED
    attempt: int = 0
    failures: int = 0
    deaths: int = 0
    agent: str = ""
    incarnation: int = 0
    assigned_s: float = 0.0
    evidence: list[str] = []
    source: str = ""
    asker: str = ""
    #: The line it waits in: its kind and tags (see `routing`).
    route: str = ""
    tags: tuple[str, ...] = ()
    priority: int = 0
    #: It may not begin before these are done; how many of them are not; and not before this time.
    after: tuple[int, ...] = ()
    waits: int = 0
    due_s: float = 0.0
    #: Its own policy; None: the plan's.
    attempts_max: int | None = None
    backoff_s: float | None = None
    #: The operator wants it ended, and its attempt has been told so.
    is_cancelling: bool = False
    #: Earlier (attempt, agent), the latest ones when there are many.
    past: tuple[tuple[int, str], ...] = ()
    #: When it was over, while it is kept.
    ended_s: float = 0.0
    #: How long the chain of messages is that led to it.
    hops: int = 0
    #: What the next attempt goes on with, if the one before left something.
    session: str = ""

    @property
    def place(self) -> int:
        """Where it stands in its line: higher priorities first, then by number."""
        return self.number - (self.priority << NUMBER_BITS)

    def move(self, cause: str) -> None:
        """Change state as the table says. Raises KeyError for a move that is not in it."""
        self.state = TRANSITIONS[self.state, cause]

    def note(self, text: str) -> None:
        """Keep a line of evidence, the latest ones when there are many."""
        self.evidence = [*self.evidence, text][-EVIDENCE_MAX:]


class Outcomes:
    """One byte for every task number ever seen: 100,000 finished tasks cost 100 kB and load in no time."""

    __slots__ = ("codes", "highest")

    def __init__(self, codes: bytes = b"") -> None:
        self.codes = bytearray(codes)
        self.highest = len(self.codes.rstrip(b"\0")) - 1 if codes else 0

    def get(self, number: int) -> int:
        """The code of a number; `UNKNOWN` if it was never submitted."""
        return self.codes[number] if 0 <= number < len(self.codes) else UNKNOWN

    def set(self, number: int, code: int) -> None:
        """Note a code, growing by doubling."""
        if number >= len(self.codes):
            self.codes.extend(bytes(max(number + 1, 2 * len(self.codes), 1024) - len(self.codes)))
        if number > self.highest:  # noqa: PLR1730 -- once per task: a call costs three times as much
            self.highest = number
        self.codes[number] = code


def backoff_s(number: int, failures: int, base_s: float, max_s: float) -> float:
    """Wait before a failed task is tried again: exponential with "equal jitter" (M. Brooker, AWS Architecture Blog, 2015).

    Half of the wait is fixed, half is drawn from the task's number and its count of failures, so that a replay waits alike.
    """
    wait = min(max_s, base_s * float(1 << min(failures - 1, 40)))
    return wait * (0.5 + 0.5 * _fraction(number * 1_000_003 + failures))


def _fraction(seed: int) -> float:
    # SplitMix64 (Steele, Lea, Flood, 2014), one step: evenly spread and the same on every machine, which hash() is not.
    mixed = (seed + 0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB) & 0xFFFF_FFFF_FFFF_FFFF
    return float(((mixed ^ mixed >> 31) >> 11) / (1 << 53))
