"""The budget breaker: what was spent is added up, and at the bound nothing new begins. Pure, like all of the machine.

What runs goes on to its end: it has cost most of its money already. So a fleet may spend more than its budget by what was in progress.
Money is whole micro-dollars, so that a replay comes to the same sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from muster.coordinator.effects import Effect, Handlers, Noted
from muster.coordinator.fact import Fact

if TYPE_CHECKING:
    from muster.coordinator.state import Agent, State

#: The whole fleet's account, beside one for each kind. A kind cannot have this name.
FLEET = "*"
#: In front of a kind: what each of its agents may spend; in front of an agent: its own account.
EACH, AGENT = "each ", "agent "


class Budget(msgspec.Struct, array_like=True, frozen=True):
    """What may be spent. 0: no bound."""

    micro_usd: int = 0
    tokens: int = 0


class Account(msgspec.Struct, array_like=True):
    """What was spent."""

    micro_usd: int = 0
    tokens: int = 0


class Spent(Fact, frozen=True, tag=60, gc=False):
    """Something was spent for an agent beside what its attempts report, such as through the proxy."""

    agent: str
    micro_usd: int
    tokens: int


class BudgetRaised(Fact, frozen=True, tag=61):
    """The operator lets the fleet, or a kind, spend that much in all."""

    account: str
    micro_usd: int
    tokens: int


def book(state: State, agent: Agent | None, micro_usd: int, tokens: int, out: list[Effect]) -> None:
    """Add something up, and shut the door of whoever has reached its bound."""
    if not micro_usd and not tokens:
        return
    names = [FLEET]
    if agent is not None:
        names.append(agent.kind)
        if EACH + agent.kind in state.plan.budgets:
            names.append(AGENT + agent.name)
    for name in names:
        account = state.spent.setdefault(name, Account())
        was_open = not over(state, name)
        account.micro_usd += micro_usd
        account.tokens += tokens
        if was_open and over(state, name):
            out.append(Noted("budget.spent", {"account": name, "why": sentence(state, name)}))


def over(state: State, name: str) -> bool:
    """Whether an account has reached its bound."""
    budget, account = _budget(state, name), state.spent.get(name)
    if budget is None or account is None:
        return False
    return bool(
        (budget.micro_usd and account.micro_usd >= budget.micro_usd)
        or (budget.tokens and account.tokens >= budget.tokens)
    )


def is_over(state: State) -> bool:
    """Whether the whole fleet may begin nothing more."""
    return bool(state.spent) and over(state, FLEET)


def kinds_over(state: State) -> list[str]:
    """Kinds that may begin nothing more."""
    return [kind for kind in state.kinds if over(state, kind)] if state.spent else []


def agent_over(state: State, agent: Agent) -> bool:
    """Whether this agent may begin nothing more."""
    return bool(state.spent) and EACH + agent.kind in state.plan.budgets and over(state, AGENT + agent.name)


def _budget(state: State, name: str) -> Budget | None:
    if name.startswith(AGENT):
        agent = state.agents.get(name.removeprefix(AGENT))
        name = EACH + agent.kind if agent is not None else name
    return state.budgets.get(name) or state.plan.budgets.get(name)


def sentence(state: State, name: str) -> str:
    """What there was and what was spent, for a person."""
    budget, account = _budget(state, name), state.spent[name]
    assert budget is not None
    whose = "the budget" if name == FLEET else f"the budget of {name.removeprefix(AGENT)}"
    if budget.micro_usd and account.micro_usd >= budget.micro_usd:
        return f"{whose} of {budget.micro_usd / 1e6:.2f} USD is used up: {account.micro_usd / 1e6:.2f} USD are spent"
    return f"{whose} of {budget.tokens:,} tokens is used up: {account.tokens:,} are spent"


def rows(state: State) -> list[dict[str, Any]]:
    """Every account as status shows it: what was spent and what may be, in US dollars and tokens."""
    told = []
    for name, account in state.spent.items():
        budget = _budget(state, name)
        told.append(
            {
                "account": "fleet" if name == FLEET else name.removeprefix(AGENT),
                "usd": account.micro_usd / 1e6,
                "tokens": account.tokens,
                "budget_usd": budget.micro_usd / 1e6 if budget is not None and budget.micro_usd else None,
                "budget_tokens": budget.tokens if budget is not None and budget.tokens else None,
                "is_over": over(state, name),
            }
        )
    return told


def _spent(state: State, fact: Spent, out: list[Effect]) -> None:
    book(state, state.agents.get(fact.agent), fact.micro_usd, fact.tokens, out)


def _raised(state: State, fact: BudgetRaised, _out: list[Effect]) -> None:
    state.budgets[fact.account] = Budget(fact.micro_usd, fact.tokens)


HANDLERS: Handlers = {Spent: _spent, BudgetRaised: _raised}
