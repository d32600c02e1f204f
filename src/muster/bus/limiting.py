"""`Bus.limit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.errors import UsageError

if TYPE_CHECKING:
    from muster.bus.grant import Limited


class Limiting:
    """The part of a bus that waits for credit; what it takes is imported by the first wait."""

    def limit(self: Any, name: str, *, requests: int = 1, timeout_s: float | None = None, **amounts: int) -> Limited:
        """Credit of a limit of the whole fleet: `async with agent.limit("anthropic", tokens=1200) as grant:`.

        Waits until the limit lets it pass. In the block the request may be made once. `grant.settle(tokens=930)` says what it really
        took; `grant.refused(retry_after_s=30)` that the resource refused it, which makes everybody wait. In every window T the
        whole fleet spends at most rate·(T + 1 s) + burst.

        Args:
            name: A `[limits.NAME]` of the fleet.
            requests: Units of the meter of that name; a limit without it ignores them.
            timeout_s: Wait so long; None without end.
            amounts: Units of other meters, such as `tokens`, as far as they can be told before.

        Raises:
            UsageError: An amount is less than 0, or not a whole number. Nothing was asked for.
            RateLimitedError: There was no credit in time. UnknownLimitError, LimitImpossibleError: There never will be. Nothing was spent.
        """
        from muster.bus.grant import Limited

        asked: dict[str, Any] = {"requests": requests, **amounts}
        for meter, units in asked.items():
            if not isinstance(units, int) or units < 0:
                raise UsageError(f"{meter}={units!r:.60}: units of a limit are whole numbers of at least 0")
        return Limited(self, name, asked, timeout_s)
