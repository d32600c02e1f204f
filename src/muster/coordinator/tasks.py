"""A task's life as a table, and what the machine keeps of it.

The table is data: the diagram in the docs and the tests are drawn from it, and a move that is not in it is a bug that stops the
coordinator instead of a task that is silently lost.

    queued ──assigned──▶ assigned ──done──▶ done
      ▲                    │ ├──failed_finally──▶ failed
      │◀──handed_back──────┤ ├──died_finally──▶ dead
      │◀──died─────────────┘ └──failed_again──▶ delayed ──due──▶ queued
"""

from __future__ import annotations

from typing import Any

import msgspec

QUEUED, DELAYED, ASSIGNED, DONE, FAILED, DEAD = "queued", "delayed", "assigned", "done", "failed", "dead"

#: (state, cause) -> state. `handed_back`: refused unstarted, or cancelled by us; neither counts an attempt.
TRANSITIONS: dict[tuple[str, str], str] = {
    (QUEUED, "assigned"): ASSIGNED,
    (QUEUED, "impossible"): DEAD,
    (ASSIGNED, "impossible"): DEAD,
    (DELAYED, "due"): QUEUED,
    (ASSIGNED, "done"): DONE,
    (ASSIGNED, "failed_again"): DELAYED,
    (ASSIGNED, "failed_finally"): FAILED,
    (ASSIGNED, "died"): QUEUED,
    (ASSIGNED, "died_finally"): DEAD,
    (ASSIGNED, "handed_back"): QUEUED,
}

#: What is kept of a task that is over: one byte. 0 = never submitted, 1 = open.
UNKNOWN, OPEN, CODE = 0, 1, {DONE: 2, FAILED: 3, DEAD: 4}
#: Numbers index a byte array, so they are bounded.
NUMBER_MAX = 50_000_000
#: Lines of evidence kept of attempts that failed or died.
EVIDENCE_MAX = 8


#: Messages that became tasks are remembered, so that one that is delivered again makes no second task.
SOURCES_MAX = 1024


class Task(msgspec.Struct, array_like=True):
    """A task that is not over. `attempt` is the fencing token: it grows with every assignment and is never reused."""

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

    def move(self, cause: str) -> None:
        """Change state as the table says. Raises KeyError for a move that is not in it."""
        self.state = TRANSITIONS[self.state, cause]

    def note(self, text: str) -> None:
        """Keep a line of evidence, the latest ones when there are many."""
        self.evidence = [*self.evidence, text][-EVIDENCE_MAX:]


class Outcomes:
    """One byte for every task number ever seen: 100,000 finished tasks cost 100 kB and load in no time."""

    __slots__ = ("codes",)

    def __init__(self, codes: bytes = b"") -> None:
        self.codes = bytearray(codes)

    def get(self, number: int) -> int:
        """The code of a number; `UNKNOWN` if it was never submitted."""
        return self.codes[number] if 0 <= number < len(self.codes) else UNKNOWN

    def set(self, number: int, code: int) -> None:
        """Note a code, growing by doubling."""
        if number >= len(self.codes):
            self.codes.extend(bytes(max(number + 1, 2 * len(self.codes), 1024) - len(self.codes)))
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
