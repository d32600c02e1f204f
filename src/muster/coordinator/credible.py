"""Numbers that agents tell, taken for what they can be.

A result is never refused for a number in it, or its task would never end: what is beyond all reason is taken for the nearest number
within it, and what is no number for 0.
"""

from __future__ import annotations

import msgspec

from muster.core import limits
from muster.core.protocol import LimitSettle, Result


def within(value: float, most: float) -> float:
    """`value`, at least 0 and at most `most`; 0 if it is no number."""
    return min(max(0.0, value), most)


def micro_usd(cost_usd: float | None) -> int:
    """Millionths of a dollar."""
    return round(within(cost_usd or 0.0, limits.COST_USD_MAX) * 1e6)


def wait_s(resets_in_s: float | None) -> float | None:
    """How long a vendor refuses."""
    return None if resets_in_s is None else within(resets_in_s, limits.LIMITED_S_MAX)


def credible_result(result: Result) -> Result:
    """The result with numbers that can be reckoned with."""
    return msgspec.structs.replace(
        result,
        started_unix_s=within(result.started_unix_s, limits.UNIX_S_MAX),
        duration_s=within(result.duration_s, limits.UNIX_S_MAX),
        session=result.session if len(result.session) <= limits.SESSION_CHARS_MAX else "",
        tokens=int(within(result.tokens, limits.TOKENS_MAX)),
        cost_usd=None if result.cost_usd is None else within(result.cost_usd, limits.COST_USD_MAX),
        resets_in_s=wait_s(result.resets_in_s),
    )


def credible_settlement(said: LimitSettle) -> LimitSettle:
    """The settlement with numbers that can be reckoned with."""
    return msgspec.structs.replace(
        said,
        tokens=int(within(said.tokens, limits.TOKENS_MAX)),
        cost_usd=None if said.cost_usd is None else within(said.cost_usd, limits.COST_USD_MAX),
        resets_in_s=wait_s(said.resets_in_s),
    )
