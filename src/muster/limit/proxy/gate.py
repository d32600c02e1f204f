"""What stands between a request and its API: the fleet's limits, budget and pauses, as the proxy sees them."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from muster.limit.prices import Usage


class Ticket(Protocol):
    """One admitted request."""

    def settle(self, usage: Usage, cost_usd: Decimal | None) -> None:
        """The request is over and used this much. Called once for every admitted request, also for failed ones."""

    def refused(self, resets_in_s: float | None) -> None:
        """The API said that a limit is hit, and for how long if it said so. Later admissions wait accordingly; `settle` still follows."""


class Gate(Protocol):
    """Decides when a request may go."""

    async def admit(self, agent: str, api: str, tokens: int) -> Ticket:
        """Wait until `agent` may send a request of about `tokens` to `api`.

        Raises:
            BudgetError: It never may: the budget is used up. Nothing was admitted.
        """


class OpenTicket:
    """A ticket of nobody's."""

    def settle(self, usage: Usage, cost_usd: Decimal | None) -> None:
        """Nothing to keep."""

    def refused(self, resets_in_s: float | None) -> None:
        """Nothing to do."""


class OpenGate:
    """Lets everything pass: a proxy that only counts and prices."""

    async def admit(self, agent: str, api: str, tokens: int) -> Ticket:  # noqa: ARG002 -- the protocol's
        """At once."""
        return OpenTicket()
