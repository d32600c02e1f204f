"""When a refused API may be asked again: status, headers and texts of the vendors as a number of seconds."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime

from muster.core.limits import LIMITED_S_MAX
from muster.core.units import UNIT_S
from muster.limit.proxy.wire import Headers

#: 429 Too Many Requests; 529 is Anthropic's "overloaded".
LIMITED = frozenset({429, 529})
#: Headers that name a wait or a moment, the most exact first.
_SECONDS = (b"retry-after-ms", b"retry-after")
_RESETS = (
    b"anthropic-ratelimit-unified-reset", b"anthropic-ratelimit-requests-reset", b"anthropic-ratelimit-tokens-reset",
    b"anthropic-ratelimit-input-tokens-reset", b"anthropic-ratelimit-output-tokens-reset", b"x-ratelimit-reset-requests",
    b"x-ratelimit-reset-tokens",
)  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_RESETS_IN = re.compile(rb'"resets_in_seconds"\s*:\s*(\d{1,9}(?:\.\d+)?)')


def is_limited(status: int) -> bool:
    """Whether a response says that a limit is hit."""
    return status in LIMITED


def resets_in_s(headers: Headers, body: bytes, now_unix_s: float) -> float | None:
    """Seconds until the API may be asked again, 0 or more; None if it does not say. A figure that cannot be true is none."""
    found = {key.lower(): value.decode("ascii", "replace").strip() for key, value in headers}
    for name in _SECONDS:
        if name in found:
            wait = _wait_s(found[name], now_unix_s, unit_s=0.001 if name.endswith(b"-ms") else 1.0)
            if wait is not None:
                return wait
    # Several windows may be shut; the one that opens last counts, among those that are used up (remaining: 0) if that is told.
    waits = [
        wait
        for name in _RESETS
        if name in found
        and found.get(name.replace(b"-reset", b"-remaining"), "0") == "0"
        and (wait := _wait_s(found[name], now_unix_s)) is not None
    ]
    if waits:
        return max(waits)
    inside = _RESETS_IN.search(body)
    return _bounded(float(inside[1])) if inside is not None else None


def _wait_s(text: str, now_unix_s: float, unit_s: float = 1.0) -> float | None:
    """A number of seconds, a Unix time, a duration such as 1m30s, an HTTP date or an ISO moment."""
    try:
        value = float(text)
    except ValueError:
        pass
    else:
        return _bounded(value - now_unix_s if value > 1e9 else value * unit_s)
    parts = _DURATION.findall(text)
    if parts and "".join(n + unit for n, unit in parts) == text:
        return _bounded(sum(float(n) * UNIT_S[unit] for n, unit in parts))
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return _bounded(parse(text).timestamp() - now_unix_s)
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _bounded(seconds: float) -> float | None:
    return min(max(0.0, seconds), LIMITED_S_MAX) if seconds == seconds and seconds < float("inf") else None  # noqa: PLR0124 -- NaN
