"""Credit of a limited resource, as whoever spends it sees it. The coordinator grants it (`coordinator.limiting`)."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from muster.core.names import COORDINATOR
from muster.core.protocol import TYPE_OF, Done, LimitAsk, LimitGrant, LimitSettle
from muster.errors import AskTimeoutError, MusterError, RateLimitedError, error_of

if TYPE_CHECKING:
    from types import TracebackType

    from muster.bus.bus import Bus

#: An ask that was not answered for so long is sent again; the coordinator knows it by its id.
ASK_AGAIN_S = 30.0


class Grant:
    """Credit that is held: to be spent now, and settled when it is known what it took.

    `amounts`: units by meter. Leaving the block settles what was not settled: as spent, because it may have been.
    """

    def __init__(self, bus: Bus, name: str, amounts: dict[str, int], ask_id: str, granted: LimitGrant) -> None:
        self.name, self.amounts = name, amounts
        self.is_probe = granted.is_probe
        self.spend_by_ns = granted.spend_by_ns
        self._bus, self._ask_id = bus, ask_id
        self._is_settled = False

    def settle(self, **used: int) -> None:
        """It is over and went well; `used` is what it really took, by meter (as asked, if nothing is said). Only the first time counts."""
        self._say("ok", used=used or None)

    def settle_for(self, agent: str, tokens: int, cost_usd: float | None) -> None:
        """The same, told by the proxy: what it took, for whom, and what that cost."""
        self._say("ok", used={"requests": 1, "tokens": tokens}, agent=agent, tokens=tokens, cost_usd=cost_usd)

    def refused(self, retry_after_s: float | None = None, why: str = "") -> None:
        """The resource itself said that its limit is hit, and for how long if it said so. Everybody waits accordingly."""
        self._say("refused", resets_in_s=retry_after_s, why=why)

    def give_back(self) -> None:
        """It was not spent, and will not be."""
        self._say("unspent")

    def _say(self, outcome: Literal["ok", "refused", "unspent"], **more: Any) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        with contextlib.suppress(MusterError):  # unsettled credit counts as spent
            self._bus.post_struct(
                COORDINATOR,
                LimitSettle(name=self.name, ask_id=self._ask_id, outcome=outcome, **more),
                priority="control",
            )


class Limited:
    """An `async with` block that waits for credit."""

    def __init__(self, bus: Bus, name: str, amounts: dict[str, int], timeout_s: float | None) -> None:
        self._bus, self._name, self._amounts, self._timeout_s = bus, name, amounts, timeout_s
        self._grant: Grant | None = None

    async def __aenter__(self) -> Grant:
        self._grant = await acquire(self._bus, self._name, self._amounts, timeout_s=self._timeout_s)
        return self._grant

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._grant is not None:
            self._grant.settle()


async def acquire(
    bus: Bus,
    name: str,
    amounts: dict[str, int],
    *,
    timeout_s: float | None = None,
    incarnation: int = 0,
    agent: str = "",
) -> Grant:
    """Wait for credit, and return it within its time. `agent`: for whom, if the proxy asks.

    Raises:
        RateLimitedError: None came within `timeout_s`; nothing was granted.
        UnknownLimitError, LimitImpossibleError, BudgetError: None ever will; nothing was granted.
        What `Bus.ask` raises but its timeout.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ask_id = uuid.uuid4().hex
    while True:
        left_s = ASK_AGAIN_S if deadline is None else min(ASK_AGAIN_S, deadline - time.monotonic())
        if left_s <= 0:
            _withdraw(bus, name, ask_id)
            raise RateLimitedError(f"{name} had no credit within {timeout_s:g} s", retry_after_s=1.0)
        ask = LimitAsk(name=name, ask_id=ask_id, amounts=amounts, incarnation=incarnation, agent=agent)
        try:
            reply = await bus.ask(COORDINATOR, ask, type=TYPE_OF[LimitAsk], timeout_s=left_s)
        except AskTimeoutError:
            continue
        except BaseException:
            _withdraw(bus, name, ask_id)
            raise
        if reply.type != TYPE_OF[LimitGrant]:
            done = reply.decode(Done)
            raise error_of({"code": done.code, "message": done.message})
        grant = Grant(bus, name, amounts, ask_id, reply.decode(LimitGrant))
        if time.monotonic_ns() <= grant.spend_by_ns:
            return grant
        grant.give_back()  # it came too late to be spent
        ask_id = uuid.uuid4().hex


def _withdraw(bus: Bus, name: str, ask_id: str) -> None:
    with contextlib.suppress(MusterError):
        bus.post_struct(COORDINATOR, LimitSettle(name=name, ask_id=ask_id, outcome="unspent"), priority="control")
