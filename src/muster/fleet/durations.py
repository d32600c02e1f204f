"""Durations as people write them: `30s`, `5m`, `1h30m`, `250ms`, or a bare number of seconds."""

from __future__ import annotations

import re

from muster.core.units import UNIT_S
from muster.errors import ConfigError

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+", re.ASCII)
_BARE = re.compile(r"\d+(?:\.\d+)?", re.ASCII)

#: A longer duration is a slip of the keyboard; timers would accept it and never fire.
DURATION_S_MAX = 10 * 365 * 86_400.0


def parse_duration(text: object, what: str) -> float:
    """`text` in seconds; `what` names the option or key in the error.

    Raises:
        ConfigError: Not a duration, negative, or beyond `DURATION_S_MAX`.
    """
    seconds = _seconds(text)
    if seconds is None:
        raise ConfigError(f"{what}: {text!r:.60} is not a duration such as 250ms, 30s, 5m or 1h30m", key=what)
    if seconds > DURATION_S_MAX:
        raise ConfigError(f"{what}: {text!r:.60} is longer than ten years", key=what)
    return seconds


def _seconds(text: object) -> float | None:
    if isinstance(text, bool):
        return None
    if isinstance(text, int | float):
        return float(text) if 0 <= text < float("inf") else None
    if not isinstance(text, str):
        return None
    compact = text.strip().replace(" ", "")
    if _BARE.fullmatch(compact):
        return float(compact)
    if _WHOLE.fullmatch(compact) is None:
        return None
    return sum(float(number) * UNIT_S[unit] for number, unit in _PART.findall(compact))


def format_duration(seconds: float) -> str:
    """`seconds` for a person: `250ms`, `4.2s`, `3m 20s`, `1h 05m`, `2d 3h`."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"
