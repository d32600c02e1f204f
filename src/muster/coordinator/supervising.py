"""What the operator may ask about workers, and what is told of them. Asks are judged as `asks` says."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from muster.coordinator import state as st
from muster.coordinator.asks import Answer, Ask, Rule, Rules
from muster.coordinator.events import RestartRequested
from muster.core.protocol import Done, Restart
from muster.errors import FleetNotRunningError, UnknownAgentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from muster.coordinator.state import State

#: Names that an answer lists; it must fit into a message.
LISTED_MAX = 2000


def check_running(state: State) -> None:
    """Raises FleetNotRunningError while the fleet is coming to its end."""
    if state.phase != st.RUNNING:
        raise FleetNotRunningError("the fleet is coming to its end; nothing was changed")


def has_teams(state: State) -> bool:
    """Whether this is the root of a fleet of teams."""
    return any(worker.is_team for worker in state.workers.values())


def unknown(name: str, known: Iterable[str]) -> UnknownAgentError:
    """The error for a name that is no kind, agent or worker."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return UnknownAgentError(f"no kind, agent or worker of this fleet is called {name!r:.80}{hint}", agent=name[:80])


def named(state: State, names: list[str]) -> list[str]:
    """The workers that kinds, agents and workers' names mean, in the order of the plan. Raises UnknownAgentError."""
    if not names:
        return [worker.name for worker in state.workers.values() if worker.state != st.GONE]
    chosen: set[str] = set()
    for name in names:
        hosts = {
            worker.name
            for worker in state.workers.values()
            if name == worker.name or any(name in (agent, state.agents[agent].kind) for agent in worker.agents)
        }
        if not hosts:
            raise unknown(name, (*state.kinds, *state.agents, *state.workers))
        chosen |= hosts
    return [name for name in state.workers if name in chosen]


def _restart(state: State, body: Restart, ask: Ask) -> Answer:
    check_running(state)
    if body.grace_s is not None and body.grace_s < 0:
        raise UsageError(f"a grace cannot be {body.grace_s:g} s")
    # A team knows its own agents: a root passes names on as they are.
    workers = named(state, [] if has_teams(state) else body.names)

    def reply(_after: State) -> msgspec.Struct:
        return Done(ok=True, facts={"workers": workers[:LISTED_MAX], "total": len(workers)})

    return Answer([RestartRequested(ask.now_s, workers, body.grace_s, body.names)], reply)


RULES: Rules = {Restart: Rule(_restart)}


def supervision_of(state: State, now_s: float) -> dict[str, Any]:
    """What `status` tells of workers beyond their agents' rows; parts with nothing to tell are left out."""
    supervision = state.supervision
    told: dict[str, Any] = {
        "recycled": supervision.recycled,
        "away": supervision.away,
        "to_recycle": {name: wanted.reason for name, wanted in supervision.waiting.items()},
        "quarantined": [worker.name for worker in state.workers.values() if worker.state == st.QUARANTINED],
        "retiring": [agent.name for agent in state.agents.values() if agent.is_retiring],
        "scaled": supervision.scaled,
        "hooks": {
            name: {
                "outcome": run.outcome,
                "detail": run.detail,
                "runs": run.runs,
                "ago_s": round(max(0.0, now_s - run.at_s), 3),
            }
            for name, run in supervision.hooks.items()
        },
    }
    return {name: value for name, value in told.items() if value}


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What several coordinators tell of their workers, as one: lists one behind the other, counts added up."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            before = whole.get(name)
            whole[name] = (
                value if before is None else {**before, **value} if isinstance(value, dict) else before + value
            )
    return whole
