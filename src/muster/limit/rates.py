"""Rates and amounts as people write them: `100/1m`, `40k/1m`, `2.5M/1h`."""

from __future__ import annotations

import re
from fractions import Fraction

import msgspec

from muster.errors import ConfigError

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)")
_FACTOR = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)?\s*(ms|s|sec|second|m|min|minute|h|hour|d|day)s?")
_UNIT_NS = {
    "ms": 10**6, "s": 10**9, "sec": 10**9, "second": 10**9, "m": 60 * 10**9, "min": 60 * 10**9, "minute": 60 * 10**9,
    "h": 3600 * 10**9, "hour": 3600 * 10**9, "d": 86_400 * 10**9, "day": 86_400 * 10**9,
}  # fmt: skip
#: Beyond this a rate is no limit, and a period no period.
AMOUNT_MAX = 10**12
PERIOD_NS_MAX = 366 * 86_400 * 10**9


class Rate(msgspec.Struct, frozen=True):
    """`amount` units in every `period_ns`, both whole numbers of at least 1."""

    amount: int
    period_ns: int

    @property
    def per_s(self) -> float:
        """Units per second."""
        return self.amount * 1e9 / self.period_ns

    def __str__(self) -> str:
        for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
            if self.period_ns % (length * 10**9) == 0:
                return f"{_short(self.amount)}/{self.period_ns // (length * 10**9)}{unit}"
        return f"{_short(self.amount)}/{self.period_ns / 10**6:g}ms"


def parse_rate(text: object, key: str = "rate") -> Rate:
    """`text` as a rate: an amount, a slash, a period (`100/1m`, `40k/min`, `5/s`).

    Raises:
        ConfigError: It is none, or one that lets nothing pass.
    """
    if isinstance(text, str) and "/" in text:
        amount_text, _, period_text = text.partition("/")
        period = _PERIOD.fullmatch(period_text.strip())
        amount = _amount(amount_text)
        if amount is not None and period is not None:
            period_ns = int(Fraction(period[1] or "1") * _UNIT_NS[period[2]])
            if amount < 1 or period_ns < 1:
                raise ConfigError(f"{key}: {text!r:.40} lets nothing pass", key=key)
            if amount > AMOUNT_MAX or period_ns > PERIOD_NS_MAX:
                raise ConfigError(f"{key}: {text!r:.40} is out of range", key=key)
            return Rate(amount, period_ns)
    raise ConfigError(f"{key}: {text!r:.40} is not a rate such as 100/1m or 40k/1m", key=key)


def parse_amount(text: object, key: str = "amount") -> int:
    """`text` as a whole number of units: `1200`, `40k`, `2.5M`.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        amount: int | None = text if text >= 0 else None
    else:
        amount = _amount(text) if isinstance(text, str) else None
    if amount is None or amount > AMOUNT_MAX:
        raise ConfigError(f"{key}: {text!r:.40} is not an amount such as 1200 or 40k", key=key)
    return amount


def _amount(text: str) -> int | None:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        return None
    exact = Fraction(found[1]) * _FACTOR[found[2].lower()]
    return int(exact) if exact.denominator == 1 else None


def _short(amount: int) -> str:
    for letter, factor in (("G", 10**9), ("M", 10**6), ("k", 1000)):
        if amount % factor == 0:
            return f"{amount // factor}{letter}"
    return str(amount)
