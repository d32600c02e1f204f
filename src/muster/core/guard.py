"""The guard against echo storms: agents that answer every message, answers included, are stopped before they fill each other's inboxes.

Only messages with a cause count: those that say "because of that one" and therefore carry a hop count above 0. A chain of causes may
have as many hops as the fleet declares, by default `HOPS_MAX`, and one agent may send another `PAIR_RATE_MAX` such messages a minute,
`PAIR_BURST_MAX` of them at once. The rate is kept by the generic cell rate algorithm (ITU-T I.371): one number per recipient, no queue and
no timer.
"""

from __future__ import annotations

from muster.core import limits
from muster.errors import EchoStormError

#: Recipients above which those that have been quiet for long are forgotten.
_REMEMBERED_MAX = 1024


class EchoGuard:
    """What one sender has sent because of other messages. Time is passed in, in seconds of any clock that does not go back."""

    __slots__ = ("_due", "_emission_s", "_tolerance_s")

    def __init__(self, *, per_minute_max: int = limits.PAIR_RATE_MAX, burst_max: int = limits.PAIR_BURST_MAX) -> None:
        self._emission_s = 60.0 / per_minute_max
        self._tolerance_s = self._emission_s * (burst_max - 1)
        #: For each recipient the time at which its whole burst is there again.
        self._due: dict[str, float] = {}

    def check_hops(self, hops: int, hops_max: int = limits.HOPS_MAX) -> None:
        """Raises EchoStormError: the chain is too long; trying again cannot help."""
        if hops > hops_max:
            raise EchoStormError(
                f"this would be answer {hops} of one chain of messages, and the fleet allows {hops_max}: it looks like an echo storm, "
                "so nothing was sent",
                hops=hops,
            )

    def check_rate(self, recipient: str, now_s: float) -> None:
        """Raises EchoStormError: `recipient` got too many caused messages; the next one fits in `retry_after_s`."""
        early_s = self._due.get(recipient, now_s) - now_s - self._tolerance_s
        if early_s > 0:
            raise EchoStormError(
                f"{recipient} got more than {60.0 / self._emission_s:,.0f} messages a minute that were answers to others: "
                "it looks like an echo storm",
                retry_after_s=early_s,
                recipient=recipient,
            )

    def count(self, recipient: str, now_s: float) -> None:
        """One caused message was stored for `recipient`."""
        due = max(now_s, self._due.get(recipient, now_s))
        if len(self._due) >= _REMEMBERED_MAX and recipient not in self._due:
            self._due = {name: until for name, until in self._due.items() if until > now_s}
        self._due[recipient] = due + self._emission_s
