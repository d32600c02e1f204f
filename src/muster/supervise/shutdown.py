"""The two ways down, as arithmetic: a stop that was asked for (the coordinator does the work), and the end (the spawner
does it).

No clock, no system call: the loop asks what is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

#: Beyond the fleet's own grace: time for the coordinator to write its report.
_DRAIN_EXTRA_S = 1.0
#: From a `now` to the kill: longer than the coordinator needs to end what resists, and to record and report that.
_NOW_S = 5.0
#: From the kill to giving up on processes in uninterruptible sleep.
_GIVE_UP_S = 5.0


@dataclass
class StopPlan:
    """Whether a stop was asked for, how, and until when the fleet may take."""

    grace_s: float
    mode: Literal["drain", "now"] | None = None
    reason: str = ""
    deadline: float | None = None

    def request(self, mode: str, reason: str, now: float) -> bool:
        """Ask for `mode`; False when that changes nothing. `now` shortens a drain, a drain never lengthens anything."""
        if mode == "drain" and self.mode is None:
            self.mode, self.reason, self.deadline = "drain", reason, now + self.grace_s + _DRAIN_EXTRA_S
            return True
        if mode == "now" and self.mode != "now":
            deadline = now + _NOW_S
            self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)
            self.mode, self.reason = "now", reason
            return True
        return False

    def is_overdue(self, now: float) -> bool:
        """Whether everything is to be killed."""
        return self.deadline is not None and now >= self.deadline


@dataclass
class Ending:
    """The last phase: no coordinator is started any more; the workers are told to end at once and killed at `kill_at`."""

    exit_status: int
    kill_at: float
    terminate: bool
    survivors: list[int] = field(default_factory=list)
    _killed: bool = False

    @property
    def give_up_at(self) -> float:
        """When processes that resist SIGKILL are left behind, and named."""
        return self.kill_at + _GIVE_UP_S

    def due(self, now: float) -> Iterator[Literal["terminate", "kill"]]:
        """What is to be done now; each order once."""
        if self.terminate:
            self.terminate = False
            yield "terminate"
        if now >= self.kill_at and not self._killed:
            self._killed = True
            yield "kill"

    def next_deadline(self) -> float:
        """When to look again."""
        return self.give_up_at if self._killed else self.kill_at

    def hurry(self, now: float) -> None:
        """Do not wait for anybody any more."""
        self.kill_at = min(self.kill_at, now)
