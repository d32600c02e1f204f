"""The coordinator's mind: `apply(fact) -> effects`, pure and deterministic.

No I/O, no clock (time comes with the facts), no set order, no hash. The shell appends facts to the log before it carries out the effects;
after a crash the log is replayed through this same class with the effects discarded (see `events`). So of every effect it is only certain
that it *may* have been carried out, and recovery is written for both cases: assignments carry ids, records are checked against the
results file, agents are asked what they hold.

Promises (issue: reliability I6-I8): never two live attempts of a task; a task is recorded once; nothing submitted is lost; silence frees
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Any

from muster.coordinator import (
    attempts,
    budget,
    cancelling,
    dissolving,
    ending,
    entrusted,
    finishing,
    joining,
    lifecycle,
    limit_facts,
    pausing,
    recycling,
    scaling,
)
from muster.coordinator.dispatch import dispatch
from muster.coordinator.events import AdmissionChanged, AnyFact, Effect, Handlers, ResultsRebased, TimePassed
from muster.coordinator.locks import facts as locks
from muster.coordinator.state import State

#: What a due timer does, by its name (`State.timers`). Timers are never removed early: each checks whether it still holds.
TIMERS: dict[str, Callable[[State, Any, list[Effect]], None]] = {
    "task": finishing.due,
    "worker": lifecycle.restart_due,
    "kill": ending.kill_due,
    "ready": lifecycle.ready_due,
    "age": recycling.age_due,
    locks.TIMER: locks.due,
}
#: Timers that may have lost their reason long before they are due, and whether they have: nobody is woken for them.
STALE: dict[str, Callable[[State, float, Any], bool]] = {
    "ready": lifecycle.is_ready_timer_stale,
    "age": recycling.is_age_timer_stale,
    locks.TIMER: locks.is_timer_stale,
}


def _forget_stale(state: State) -> None:
    timers = state.timers
    while timers and (is_stale := STALE.get(timers[0][1])) and is_stale(state, timers[0][0], timers[0][2]):
        heappop(timers)


def _time_passed(state: State, _fact: TimePassed, out: list[Effect]) -> None:
    timers = state.timers
    while timers and timers[0][0] <= state.now_s:
        _, name, key = heappop(timers)
        TIMERS[name](state, key, out)


def _admission_changed(state: State, fact: AdmissionChanged, _out: list[Effect]) -> None:
    state.admission_open = fact.is_open


def _results_rebased(state: State, fact: ResultsRebased, _out: list[Effect]) -> None:
    state.results_base_bytes = fact.results_base_bytes


#: Fact -> what it does. Each part of the machine brings its own.
HANDLERS: Handlers = {
    **lifecycle.HANDLERS,
    **joining.HANDLERS,
    **ending.HANDLERS,
    **attempts.HANDLERS,
    **limit_facts.HANDLERS,
    **budget.HANDLERS,
    **cancelling.HANDLERS,
    **pausing.HANDLERS,
    **entrusted.HANDLERS,
    **dissolving.HANDLERS,
    **locks.HANDLERS,
    **recycling.HANDLERS,
    **scaling.HANDLERS,
    TimePassed: _time_passed,
    AdmissionChanged: _admission_changed,
    ResultsRebased: _results_rebased,
}


class Machine:
    """Decides. One instance per coordinator process; `state` is its only memory."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()

    def apply(self, fact: AnyFact) -> list[Effect]:
        """Take in one fact and say what is to be done. The fact must be in the log before any of it is done."""
        state = self.state
        state.now_s = max(state.now_s, fact.at_s)
        out: list[Effect] = []
        HANDLERS[type(fact)](state, fact, out)
        recycling.advance(state, out)
        dispatch(state, out)
        ending.check_end(state, out)
        if state.timers:
            _forget_stale(state)  # here and not in `due_s`: a replay asks for no times, and must come to the same state
        return out

    def due_s(self) -> float | None:
        """When a `TimePassed` is due next, on the clock of the facts; None if nothing waits for time."""
        timers = self.state.timers
        return timers[0][0] if timers else None
