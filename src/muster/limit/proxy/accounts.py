"""What each agent has used, in a file that outlives the proxy: its next life goes on counting where the last one stopped."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from muster.limit.prices import Usage
from muster.limit.proxy import life

FILE = "proxy-accounts"
#: What is kept of an account beside its tokens, and which totals are metrics.
_NUMBERS = ("requests", "retried", "failed", "held_s", "cost_usd", "unpriced")
_COUNTED = ("requests", "retried", "failed", "held_s", "tokens", "cost_usd")


@dataclass
class Account:
    """What one agent has used. Requests that were tried again count each time."""

    agent: str
    requests: int = 0
    retried: int = 0
    failed: int = 0
    held_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0
    #: Requests to models without a price.
    unpriced: int = 0

    def book(self, usage: Usage, cost_usd: float | None) -> None:
        """Add what one request has used."""
        total = self.usage
        total.input_tokens += usage.input_tokens
        total.cached_tokens += usage.cached_tokens
        total.output_tokens += usage.output_tokens
        total.model = usage.model or total.model
        if cost_usd is not None:
            self.cost_usd += cost_usd
        elif usage.tokens:
            self.unpriced += 1

    def row(self) -> dict[str, Any]:
        """It as status shows it."""
        row = {name: getattr(self, name) for name in ("agent", *_NUMBERS)}
        row.update(msgspec.to_builtins(self.usage), tokens=self.usage.tokens)
        row["held_s"], row["cost_usd"] = round(self.held_s, 3), round(self.cost_usd, 6)
        return row


class Ledger:
    """The accounts of all agents. Without a file they live as long as the process."""

    def __init__(self, store: Path | None = None) -> None:
        self._file = None if store is None else store / FILE
        self.accounts: dict[str, Account] = {}
        self._written = b""
        if store is not None:
            for row in read(store):
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    self._take(row)
        self._told = self._totals()

    def _take(self, row: dict[str, Any]) -> None:
        usage = Usage(**{name: row[name] for name in ("input_tokens", "cached_tokens", "output_tokens", "model")})
        rest = {name: row[name] for name in _NUMBERS}
        self.accounts[row["agent"]] = Account(row["agent"], usage=usage, **rest)

    def of(self, agent: str) -> Account:
        """The account of `agent`."""
        account = self.accounts.get(agent)
        if account is None:
            account = self.accounts[agent] = Account(agent)
        return account

    def rows(self) -> list[dict[str, Any]]:
        """All of them, by agent."""
        return [self.accounts[agent].row() for agent in sorted(self.accounts)]

    def save(self) -> None:
        """Write down what has changed. A store without room keeps the older figures."""
        data = msgspec.json.encode(self.rows())
        if self._file is not None and data != self._written:
            with contextlib.suppress(OSError):
                life.replace(self._file, data)
                self._written = data

    def news(self) -> dict[str, float]:
        """What the totals have grown by since this was asked last, under the names of metrics."""
        now, before = self._totals(), self._told
        self._told = now
        grown = {name: now[name] - before[name] for name in now}
        return {f"muster_proxy_{name}_total": value for name, value in grown.items() if value}

    def _totals(self) -> dict[str, float]:
        rows = self.rows()
        return {name: sum(row[name] for row in rows) for name in _COUNTED}


def read(store: Path) -> list[dict[str, Any]]:
    """The rows that were written down last."""
    try:
        rows = msgspec.json.decode((store / FILE).read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return []
    return rows
