"""What tokens cost: a table of prices per million tokens by model, which the user can replace, and money as exact numbers.

Prices change; the built-in table is a starting point with its date. A model that is not in the table costs an unknown amount: it is counted
in tokens and said, never taken for free.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

from muster.errors import ConfigError

#: When the built-in table was written down.
TABLE_DATE = "2026-11"
_MILLION = Decimal(1_000_000)


class Usage(msgspec.Struct):
    """Tokens of one response. `cached_tokens` were read from the vendor's cache and are not part of `input_tokens`."""

    model: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.input_tokens + self.cached_tokens + self.output_tokens


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal


class PriceTable:
    """Prices by the beginning of a model's name; the longest that fits counts."""

    def __init__(self, prices: dict[str, Price]) -> None:
        self._prices = prices
        self._found: dict[str, Price | None] = {}

    @classmethod
    def read(cls, path: Path) -> PriceTable:
        """The table of a TOML file: `[prices."claude-sonnet"] input = 3.0 output = 15.0 cached = 0.30`.

        Raises:
            ConfigError: It cannot be read, or a price is missing, negative or no number.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"the prices in {path} cannot be read: {error}", source=str(path)) from None
        tables = document.get("prices")
        if not isinstance(tables, dict) or not tables:
            raise ConfigError(f"{path}: there is no [prices.MODEL] table", source=str(path))
        return cls({model: _price(model, table, path) for model, table in tables.items()})

    def price_of(self, model: str) -> Price | None:
        """The price of `model`, or None if the table does not know it."""
        if model not in self._found:
            fits = [name for name in self._prices if model.startswith(name)]
            if len(self._found) > 1000:  # names come from responses
                self._found.clear()
            self._found[model] = self._prices[max(fits, key=len)] if fits else None
        return self._found[model]

    def cost_usd(self, usage: Usage) -> Decimal | None:
        """What `usage` cost, exactly; None for a model without a price."""
        price = self.price_of(usage.model)
        if price is None:
            return None
        return (
            usage.input_tokens * price.input + usage.cached_tokens * price.cached + usage.output_tokens * price.output
        ) / _MILLION


def _price(model: str, table: object, path: Path) -> Price:
    place = f"{path}: [prices.{model!r}]"
    if not isinstance(table, dict):
        raise ConfigError(f"{place} must be a table with input and output", source=str(path))
    for key in table:
        if key not in ("input", "output", "cached"):
            raise ConfigError(f"{place}: unknown key {key!r}; known: input, output, cached", key=key, source=str(path))
    amounts = {
        key: _amount(table.get(key, table.get("input")), f"{place} {key}", path)
        for key in ("input", "output", "cached")
    }
    if "output" not in table:
        raise ConfigError(f"{place}: output is missing", key="output", source=str(path))
    return Price(**amounts)


def _amount(value: object, place: str, path: Path) -> Decimal:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidOperation
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ConfigError(f"{place}: {value!r:.40} is not a number of dollars", source=str(path)) from None
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"{place}: a price must not be negative", source=str(path))
    return amount


@functools.cache
def built_in() -> PriceTable:
    """List prices at `TABLE_DATE`, per million tokens. Check them before money depends on them."""
    rows: dict[str, tuple[int | str, int | str, int | str]] = {
        "claude-opus": (5, 25, "0.50"),
        "claude-sonnet": (3, 15, "0.30"),
        "claude-haiku": (1, 5, "0.10"),
        "gpt-5": ("1.25", 10, "0.125"),
        "gpt-5-mini": ("0.25", 2, "0.025"),
        "gemini-2.5-pro": ("1.25", 10, "0.31"),
        "gemini-2.5-flash": ("0.30", "2.50", "0.075"),
    }
    return PriceTable({model: Price(Decimal(i), Decimal(o), Decimal(c)) for model, (i, o, c) in rows.items()})
