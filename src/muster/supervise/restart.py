"""When to start the coordinator again: restart arithmetic without clock or processes.

The scheme is OTP's restart intensity (at most N restarts in any period of T seconds; Erlang/OTP `supervisor`), with a
delay that doubles with each restart still inside the period. The delays never add up to more than the period, so the
limit can be reached.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from muster.core import limits

DELAY_FIRST_S = 0.01
#: A fleet without its coordinator starts nothing new: two seconds from its death to the next assignment are what is promised.
DELAY_MAX_S = 0.3


@dataclass
class RestartBudget:
    """Restarts of one process: whether another one is allowed now."""

    restarts_max: int = limits.COORDINATOR_RESTARTS_MAX
    period_s: float = limits.COORDINATOR_RESTART_PERIOD_S
    _recent: deque[float] = field(default_factory=deque)

    def next_delay_s(self, now: float) -> float | None:
        """Count a restart: seconds to wait before it, or None when the budget of the period is spent (then none is
        counted).
        """
        while self._recent and self._recent[0] <= now - self.period_s:
            self._recent.popleft()
        if len(self._recent) >= self.restarts_max:
            return None
        delay_s = min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** len(self._recent))
        self._recent.append(now)
        return delay_s
