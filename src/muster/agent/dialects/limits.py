"""Limits in a vendor's prose: whether a sentence says that a limit was hit, and when it says that it ends.

Vendors write these sentences for people and change them; so only clear ones are believed, and one that names no time gives none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from muster.agent.dialects.reading import Limited
from muster.core.units import UNIT_S

_HIT = re.compile(
    r"\b429\b|\b529\b|rate.?limit|usage.?limit|too many requests|overloaded|quota exceeded|exceeded your current quota"
    r"|resource.?exhausted|hit your (?:session |weekly |usage )?limit|limit (?:was|has been) reached|out of (?:extra )?usage",
    re.IGNORECASE,
)
#: "try again in 2 days 17 hours 14 minutes", "retry after 30s", "resets in 3h 20m", "Please try again in 1.5s".
_IN = re.compile(
    r"(?:again|retry|retrying|resets?|reset|wait)\s+(?:in|after)[:\s]+((?:\d+(?:\.\d+)?\s*(?:days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|ms|s)\b[,\s]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[dhms])", re.IGNORECASE)
#: "try again at 12:16 PM", "resets 1pm (Europe/Lisbon)", "resets at 15:00".
_AT = re.compile(
    r"(?:again at|resets?(?: at)?)\s+(\d{1,2})(?::(\d{2}))?\s*([ap]m)?\b(?:\s*\(([A-Za-z_/+-]+)\))?", re.IGNORECASE
)
#: Machine words inside prose: resets_at 1777936568, "usage limit reached|1777936568", resets_in_seconds 13872.
_UNIX = re.compile(r"(?:resets?_?at|\|)\D{0,4}(1[6-9]\d{8}|2\d{9})\b", re.IGNORECASE)
_SECONDS = re.compile(
    r"(?:resets_in_seconds|retry.?after(?:.?seconds)?)\D{0,4}(\d+(?:\.\d+)?)\b(?!\s*m)", re.IGNORECASE
)


def limit_in(message: str, now_unix_s: float, local: tzinfo | None = None) -> Limited | None:
    """The limit that `message` tells of, or None if it tells of none.

    Args:
        message: A sentence of a program, of any length.
        now_unix_s: Wall time; a time of day is the next one after it.
        local: The zone of a time of day that names none; the machine's own by default.
    """
    message = message[:4096]
    if _HIT.search(message) is None:
        return None
    shown = " ".join(message.split())[:200]
    if (found := _UNIX.search(message)) is not None:
        return Limited(shown, resets_unix_s=float(found[1]))
    if (found := _SECONDS.search(message)) is not None:
        return Limited(shown, retry_after_s=float(found[1]))
    if (found := _IN.search(message)) is not None:
        return Limited(shown, retry_after_s=sum(float(n) * UNIT_S[unit.lower()] for n, unit in _PART.findall(found[1])))
    if (found := _AT.search(message)) is not None and (found[2] or found[3]):
        at = _next_time_of_day(found, now_unix_s, local)
        if at is not None:
            return Limited(shown, resets_unix_s=at)
    return Limited(shown)


def _next_time_of_day(found: re.Match[str], now_unix_s: float, local: tzinfo | None) -> float | None:
    hour, minute = int(found[1]), int(found[2] or 0)
    half = (found[3] or "").lower()
    if half and not 1 <= hour <= 12:
        return None
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0)
    if hour > 23 or minute > 59:
        return None
    zone = _zone(found[4]) if found[4] else local
    now = datetime.fromtimestamp(now_unix_s, zone or UTC)
    if zone is None:
        now = now.astimezone()
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if at <= now:
        at += timedelta(days=1)
    return at.timestamp()


def _zone(name: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # a zone that this machine does not know: taken as its own
        return None
