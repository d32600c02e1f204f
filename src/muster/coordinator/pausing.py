"""Pause and resume: nothing new is assigned, to anybody or to some kinds, until the operator says so. Pure, like all of the machine.

It holds over restarts of the coordinator and of the fleet; what runs goes on to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import budget
from muster.coordinator.asks import Answer, Ask, Rule, Rules
from muster.coordinator.events import AnyFact, AssignmentPaused, AssignmentResumed, BudgetRaised, Effect, Handlers
from muster.core.requests import Done, Pause, Resume
from muster.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from muster.coordinator.state import State


def _paused(state: State, fact: AssignmentPaused, _out: list[Effect]) -> None:
    if fact.kinds:
        state.kinds_paused = sorted({*state.kinds_paused, *fact.kinds})
    else:
        state.is_paused = True


def _resumed(state: State, fact: AssignmentResumed, _out: list[Effect]) -> None:
    if fact.kinds:
        state.kinds_paused = [kind for kind in state.kinds_paused if kind not in fact.kinds]
    else:
        state.is_paused, state.kinds_paused = False, []


def _pause(state: State, body: Pause, ask: Ask) -> Answer:
    _check(body.kinds, state.kinds)
    return Answer([AssignmentPaused(ask.now_s, body.kinds)], _told)


def _resume(state: State, body: Resume, ask: Ask) -> Answer:
    _check(body.kinds, (*state.kinds, *state.kinds_paused))
    if body.kinds and state.is_paused:
        raise UsageError("the whole fleet is paused; resume it without naming kinds")
    facts: list[AnyFact] = [AssignmentResumed(ask.now_s, body.kinds)]
    if body.budget is not None:
        facts.insert(0, BudgetRaised(ask.now_s, budget.FLEET, *body.budget))
    return Answer(facts, _told)


def paused(state: State) -> list[str]:
    """Who gets nothing new: kinds, or "*" for everybody."""
    return ["*"] if state.is_paused else state.kinds_paused


def _told(state: State) -> msgspec.Struct:
    return Done(ok=True, facts={"paused": paused(state), "running": state.held})


def _check(kinds: list[str], known: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"there is no kind {kind!r:.80} in this fleet; kinds are {', '.join(sorted(set(known)))}")


HANDLERS: Handlers = {AssignmentPaused: _paused, AssignmentResumed: _resumed}
RULES: Rules = {Pause: Rule(_pause), Resume: Rule(_resume)}
