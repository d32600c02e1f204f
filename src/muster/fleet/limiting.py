"""Limits as people write them (`[limits.anthropic]`, `--limit anthropic --rate 100/1m`), as the fleet's specification has them."""

from __future__ import annotations

import re

import msgspec

from muster.core.names import limit_name
from muster.core.presets import PRESETS
from muster.core.spec import AdmitSpec, AgentSpec, BudgetSpec, LimitSpec, MeterSpec
from muster.errors import ConfigError, InvalidNameError
from muster.fleet.sizes import parse_bytes
from muster.fleet.tables import AdmitTable, LimitTable
from muster.limit.rates import AMOUNT_MAX, parse_amount, parse_rate

#: More grants at once than this are no bound.
CONCURRENCY_MAX = 100_000


def limit_of(name: str, table: LimitTable, place: str) -> LimitSpec:
    """The limit `name`.

    Raises:
        ConfigError: A rate, a burst or the concurrency cannot be, or the name is none.
    """
    try:
        limit_name(name)
    except InvalidNameError as error:
        raise ConfigError(f"{place}: {error.message}", key=name) from None
    if table.concurrency is not None and not 1 <= table.concurrency <= CONCURRENCY_MAX:
        raise ConfigError(f"{place} concurrency must be between 1 and {CONCURRENCY_MAX:,}", key="concurrency")
    meters = []
    for meter, rate, burst in (
        ("requests", table.requests, table.burst),
        ("tokens", table.tokens, table.tokens_burst),
    ):
        if rate is not None:
            meters.append(meter_of(meter, rate, burst, f"{place} {meter}"))
        elif burst is not None:
            raise ConfigError(f"{place}: a burst needs the rate of {meter}", key="burst")
    return LimitSpec(name=name, meters=tuple(meters), concurrency=table.concurrency)


def meter_of(name: str, rate: object, burst: object | None, place: str) -> MeterSpec:
    """One meter. Without a burst, requests may come as fast as they come in one second, tokens as many as in one period.

    Raises:
        ConfigError: The rate or the burst cannot be.
    """
    parsed = parse_rate(rate, place)
    if burst is not None:
        most = parse_amount(burst, f"{place} burst")
        if not 1 <= most <= AMOUNT_MAX:
            raise ConfigError(f"{place} burst must be at least 1", key="burst")
    elif name == "tokens":
        most = parsed.amount
    else:
        most = max(1, min(parsed.amount, round(parsed.per_s)))
    return MeterSpec(name=name, amount=parsed.amount, period_ns=parsed.period_ns, burst=most)


def with_limits(
    agents: tuple[AgentSpec, ...], limits: dict[str, LimitSpec], place: str
) -> tuple[tuple[AgentSpec, ...], tuple[LimitSpec, ...]]:
    """Kinds and limits that fit together: a preset that names no limit shares its API's, which then only knows pauses.

    Raises:
        ConfigError: A kind names a limit that there is not.
    """
    found = dict(limits)
    kinds = []
    for kind in agents:
        if kind.limit and kind.limit not in found:
            known = ", ".join(found) or "none"
            raise ConfigError(f"{place}: there is no limit {kind.limit!r:.60}; there are: {known}", key="limit")
        if kind.coding is not None and not kind.limit:
            api = PRESETS[kind.coding.preset].api
            found.setdefault(api, LimitSpec(name=api))
            kind = msgspec.structs.replace(kind, limit=api)  # noqa: PLW2901 -- the kind as it is from here on
        kinds.append(kind)
    return tuple(kinds), tuple(found.values())


def admit_of(table: AdmitTable, place: str) -> AdmitSpec:
    """What the machine must have left.

    Raises:
        ConfigError: A value cannot be.
    """
    default = AdmitSpec()
    memory = default.memory_bytes
    if table.memory is not None:
        memory = 0 if table.memory in (0, "0") else parse_bytes(table.memory, f"{place} memory")
    load = default.load if table.load is None else table.load
    fds = default.fds if table.fds is None else table.fds
    if not 0 <= load < 1e6 or not 0 <= fds < 1 << 40:
        raise ConfigError(f"{place} load and fds must not be negative", key="admit")
    return AdmitSpec(memory_bytes=memory, load=load, fds=fds)


_DOLLARS = re.compile(r"(?:\$\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(?:usd|dollars?|\$))", re.IGNORECASE)
_TOKENS = re.compile(r"(.+?)\s*(?:tokens?|tok)", re.IGNORECASE)


def budget_of(text: object, place: str) -> BudgetSpec:
    """`20USD`, `$20`, `2M tokens`; None: no bound.

    Raises:
        ConfigError: It is none, or nothing at all.
    """
    if text is None:
        return BudgetSpec()
    words = text.strip() if isinstance(text, str) else ""
    dollars, tokens = _DOLLARS.fullmatch(words), _TOKENS.fullmatch(words)
    micro_usd = amount = 0
    if dollars is not None:
        micro_usd = round(float(dollars[1] or dollars[2]) * 1e6)
    elif tokens is not None:
        amount = parse_amount(tokens[1], place)
    else:
        raise ConfigError(f"{place}: {text!r:.40} is not a budget such as 20USD or 2M tokens", key="budget")
    if not micro_usd and not amount:
        raise ConfigError(f"{place}: a budget of nothing lets nothing begin", key="budget")
    if micro_usd > 1e15:
        raise ConfigError(f"{place}: {text!r:.40} is out of range", key="budget")
    return BudgetSpec(micro_usd=micro_usd, tokens=amount)


def pattern_of(text: str, place: str) -> str:
    """A regular expression, checked. Raises ConfigError."""
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"{place} limited_pattern: {text!r:.60} is no regular expression: {error}", key="limited_pattern"
        ) from None
    return text
