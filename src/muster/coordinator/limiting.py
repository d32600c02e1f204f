"""The fleet's limits: one limiter for each named resource, fed by the agents' asks. A service of the root coordinator.

An ask stays in hand until it is decided: a coordinator that dies gets it again, so nobody has to ask twice; and no more of them are in
hand than a lane's window lets through. What was granted before a crash is not known afterwards, so every limiter of a later life begins
spent. Pauses are facts in the log: silence until the reset is kept whoever dies meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from muster.coordinator import budget
from muster.coordinator.credible import credible_settlement, micro_usd
from muster.coordinator.events import LimitPaused, LimitResumed, Spent
from muster.core.names import PROXY
from muster.core.protocol import Done, LimitAsk, LimitGrant, LimitSettle
from muster.errors import BudgetError, BusError, LimitImpossibleError, UnknownLimitError, UsageError
from muster.limit.limiter import Ask, Limiter, Meter
from muster.limit.rates import Rate

if TYPE_CHECKING:
    from muster.bus.delivery import Delivery
    from muster.coordinator.shell import Shell
    from muster.core.spec import FleetSpec, LimitSpec
    from muster.errors import MusterError


class LimitDesk:
    """Takes asks and settlements, grants what the limiters let pass."""

    def __init__(self, shell: Shell, spec: FleetSpec) -> None:
        state = shell.machine.state
        now_ns = time.monotonic_ns()
        is_spent = state.life > 0  # of an earlier life, or an earlier coordinator of this one
        self._shell = shell
        self._limiters = {limit.name: _limiter(limit, now_ns, is_spent=is_spent) for limit in spec.limits}
        self._groups = {agent: kind.name for kind in spec.agents for agent in kind.agent_ids()}
        self._tellers = {agent for kind in spec.agents if kind.coding is not None for agent in kind.agent_ids()}
        for kind in spec.agents:
            if kind.limit in self._limiters:
                self._limiters[kind.limit].weigh(kind.name, kind.weight)
        self._open: dict[str, Delivery] = {}
        self._incarnations: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Go on with the pauses that are not over."""
        now_ns, now_unix_s = time.monotonic_ns(), time.time()
        for name, pause in self._shell.machine.state.limit_pauses.items():
            limiter = self._limiters.get(name)
            if limiter is not None:
                left_ns = max(0, int((pause.until_unix_s - now_unix_s) * 1e9))
                limiter.pause(now_ns + left_ns, now_ns, pause.why)
        self.turn()

    async def stop(self) -> None:
        """Decide nothing more; what is asked stays asked."""
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------ what agents say

    def take_ask(self, delivery: Delivery) -> None:
        """An agent wants credit. The delivery is acked once the ask is decided."""
        ask: LimitAsk = delivery.decode(LimitAsk)
        sender = delivery.sender
        limiter = self._limiters.get(ask.name)
        if limiter is None:
            known = ", ".join(self._limiters) or "none"
            self._deny(delivery, UnknownLimitError(f"the fleet has no limit {ask.name!r:.60}; there are: {known}"))
            return
        spent = self._spent(ask.agent) if sender == PROXY else ""
        if spent:
            self._deny(delivery, BudgetError(spent))
            return
        if any(units < 0 for units in ask.amounts.values()):
            self._deny(delivery, UsageError(f"{ask.name}: what is asked for cannot be less than 0"))
            return
        impossible = limiter.never_fits(ask.amounts)
        if impossible is not None:
            self._deny(
                delivery,
                LimitImpossibleError(f"{ask.amounts[impossible]:,} {impossible} can never pass {ask.name} at once"),
            )
            return
        if ask.incarnation > self._incarnations.get(sender, 0):
            if sender in self._incarnations:
                self.forget(sender)
            self._incarnations[sender] = ask.incarnation
        key = f"{sender}:{ask.ask_id}"
        before = self._open.pop(key, None)
        if before is not None:
            before.ack()  # asked again: the newer one is answered
        self._open[key] = delivery
        whose = ask.agent if sender == PROXY else sender
        limiter.ask(Ask(key, sender, ask.amounts, self._groups.get(whose, "")))
        self.turn()

    def take_settlement(self, delivery: Delivery) -> None:
        """An agent says what became of a grant, or that it waits no more."""
        said = credible_settlement(delivery.decode(LimitSettle))
        limiter = self._limiters.get(said.name)
        if limiter is None:
            return
        if delivery.sender == PROXY:
            self._book(said)
        key, now_ns = f"{delivery.sender}:{said.ask_id}", time.monotonic_ns()
        waiting = self._open.pop(key, None)
        if waiting is not None:
            waiting.ack()
            limiter.withdraw(key)
        was = limiter.phase
        if said.outcome == "ok":
            limiter.settle(key, said.used, now_ns)
        elif said.outcome == "unspent":
            limiter.give_back(key, now_ns)
        else:
            resets_ns = None if said.resets_in_s is None else int(said.resets_in_s * 1e9)
            limiter.refuse(key, now_ns, resets_ns, said.why)
        self._note_phase(said.name, limiter, was, now_ns)
        self.turn()

    def _spent(self, name: str) -> str:
        """Why the proxy may send nothing more for this agent; "": it may."""
        state = self._shell.machine.state
        agent = state.agents.get(name)
        if budget.is_over(state):
            return budget.sentence(state, budget.FLEET)
        if agent is None or not state.spent:
            return ""
        if budget.over(state, agent.kind):
            return budget.sentence(state, agent.kind)
        return budget.sentence(state, budget.AGENT + name) if budget.agent_over(state, agent) else ""

    def _book(self, said: LimitSettle) -> None:
        # A coding command line tells by itself what its attempt has used: it must not count twice.
        if (said.tokens or said.cost_usd) and said.agent not in self._tellers:
            shell = self._shell
            spent = Spent(shell.clock.now_s(), said.agent, micro_usd(said.cost_usd), said.tokens)
            shell.intake.facts.append(spent)
            shell.wake.set()

    def forget(self, agent: str) -> None:
        """The agent is dead, or was born again: what it asked for is void, what it was granted is spent."""
        for limiter in self._limiters.values():
            limiter.forget(agent)
        prefix = f"{agent}:"
        for key in [key for key in self._open if key.startswith(prefix)]:
            self._open.pop(key).ack()

    # ------------------------------------------------------------------ deciding

    def turn(self) -> None:
        """Grant what can be granted now, and wake up when more can be."""
        now_ns = time.monotonic_ns()
        due: list[int] = []
        for name, limiter in self._limiters.items():
            was = limiter.phase
            for grant in limiter.grants(now_ns):
                delivery = self._open.pop(grant.ask.ask_id, None)
                if delivery is None or not self._reply(delivery, LimitGrant(grant.spend_by_ns, grant.is_probe)):
                    limiter.give_back(grant.ask.ask_id, now_ns)
            self._note_phase(name, limiter, was, now_ns)
            next_ns = limiter.due_ns()
            if next_ns is not None:
                due.append(next_ns)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due:
            delay_s = max(0.0005, (min(due) - time.monotonic_ns()) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.turn)

    def _note_phase(self, name: str, limiter: Limiter, was: str, now_ns: int) -> None:
        shell = self._shell
        known = shell.machine.state.limit_pauses.get(name)
        if limiter.phase == "paused":
            until_unix_s = time.time() + (limiter.until_ns - now_ns) / 1e9
            if known is None or until_unix_s > known.until_unix_s + 0.5:
                since_unix_s = known.since_unix_s if known is not None else time.time()
                shell.intake.facts.append(
                    LimitPaused(shell.clock.now_s(), name, since_unix_s, until_unix_s, limiter.why)
                )
                shell.notes.write("limit.paused", limit=name, until_unix_s=round(until_unix_s, 3), why=limiter.why)
                shell.wake.set()
        elif limiter.phase == "open" and was != "open":
            shell.intake.facts.append(LimitResumed(shell.clock.now_s(), name))
            shell.notes.write("limit.resumed", limit=name)
            shell.wake.set()

    def _deny(self, delivery: Delivery, error: MusterError) -> None:
        self._reply(delivery, Done(ok=False, code=error.code, message=error.message))

    def _reply(self, delivery: Delivery, body: Any) -> bool:
        """Answer and ack. False: there was no room for the answer; the asker asks again."""
        try:
            delivery.reply(body, type="limit.grant" if isinstance(body, LimitGrant) else "fleet.done")
        except BusError:
            return False
        finally:
            delivery.ack()
        return True

    # ------------------------------------------------------------------ for people

    def rows(self) -> list[dict[str, Any]]:
        """Every limit as status shows it."""
        now_ns = time.monotonic_ns()
        pauses = self._shell.machine.state.limit_pauses
        return [
            {
                "limit": name,
                "phase": limiter.phase,
                "waiting": limiter.waiting,
                "in_flight": limiter.in_flight,
                "granted": limiter.granted,
                "refused": limiter.refused,
                "available": limiter.available(now_ns),
                "window": None if limiter.window == float("inf") else round(limiter.window, 1),
                "since_unix_s": pauses[name].since_unix_s if name in pauses else None,
                "until_unix_s": pauses[name].until_unix_s if name in pauses else None,
                "why": pauses[name].why if name in pauses else "",
            }
            for name, limiter in self._limiters.items()
        ]


def _limiter(limit: LimitSpec, now_ns: int, *, is_spent: bool) -> Limiter:
    meters = [Meter(meter.name, Rate(meter.amount, meter.period_ns), meter.burst) for meter in limit.meters]
    return Limiter(meters, now_ns, is_spent=is_spent, in_flight_max=limit.concurrency)
