"""Amounts of memory as people write them: `512MB`, `2GB`, `1.5GiB`, or a bare number of bytes."""

from __future__ import annotations

import re

from muster.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(i?)b?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

#: More is a slip of the keyboard: no machine has that much.
BYTES_MAX = 1 << 50


def parse_bytes(text: object, what: str) -> int:
    """`text` in bytes; `what` names the option or key in the error. `2GB` is 2·10⁹, `2GiB` is 2·2³⁰; `2G` means `2GB`.

    Raises:
        ConfigError: Not an amount, less than one byte, or beyond `BYTES_MAX`.
    """
    amount = _bytes(text)
    if amount is None:
        raise ConfigError(f"{what}: {text!r:.60} is not an amount of memory such as 512MB or 2GiB", key=what)
    if not 1 <= amount <= BYTES_MAX:
        raise ConfigError(f"{what}: {text!r:.60} is not between one byte and 1024 TiB", key=what)
    return int(amount)


def _bytes(text: object) -> float | None:
    if isinstance(text, bool):
        return None
    if isinstance(text, int | float):
        return float(text) if 0 <= text < float("inf") else None
    found = _SIZE.fullmatch(text.strip().replace(" ", "")) if isinstance(text, str) else None
    if found is None:
        return None
    number, unit, binary = found.groups()
    if binary and not unit:
        return None
    return float(number) * (1024.0 if binary else 1000.0) ** _POWERS[unit.lower()]


def format_bytes(count: float) -> str:
    """`count` for a person: `812 B`, `4.2 MB`, `1.3 GB`."""
    for unit, power in (("TB", 4), ("GB", 3), ("MB", 2), ("kB", 1)):
        if count >= 0.9995 * 1000.0**power:
            scaled = count / 1000.0**power
            return f"{scaled:.0f} {unit}" if scaled >= 99.95 else f"{scaled:.1f} {unit}"
    return f"{count:.0f} B"
