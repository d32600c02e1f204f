"""More agents of a kind, or fewer, while the fleet runs. Pure, like all of the machine.

Agents of a kind are numbered from 1 without gaps: the highest numbers come and go. A new agent gets a worker; one that goes is drained,
hands back what it has not begun, and is forgotten once it has ended (its inbox stays on the store). One that is wanted again before it has
ended is let end, and then started anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import recycling
from muster.coordinator import state as st
from muster.coordinator.asks import Answer, Ask, Rule, Rules
from muster.coordinator.ending import NO_DEADLINE_S, tell_to_drain
from muster.coordinator.events import Effect, FleetResized, FleetScaled, Handlers, WorkerPlan
from muster.coordinator.lifecycle import admit, spawn
from muster.coordinator.lives import Wish
from muster.coordinator.retiring import forget_agent, forget_worker, is_retiring
from muster.coordinator.state import Agent, State
from muster.coordinator.supervising import check_running, has_teams, unknown
from muster.core import limits
from muster.core.protocol import Done, Scale
from muster.errors import UsageError

if TYPE_CHECKING:
    import msgspec

#: Why a worker is leaving that the fleet has too many of, or that is wanted again before it has left.
SCALED = "scale"


def members(state: State, kind: str) -> list[str]:
    """The agents of a kind that are to stay, by their numbers."""
    staying = [agent.name for agent in state.agents.values() if agent.kind == kind and not agent.is_retiring]
    return sorted(staying, key=lambda name: _number(kind, name))


def _number(kind: str, agent: str) -> int:
    return 1 if agent == kind else int(agent.removeprefix(f"{kind}-"))


def change(state: State, kind: str, count: int, now_s: float) -> FleetScaled:
    """What it takes to have `count` agents of `kind`."""
    there = members(state, kind)
    wanted = [*there[:count], *(f"{kind}-{n}" for n in range(len(there) + 1, count + 1))]
    fresh = [name for name in wanted if name not in state.agents]
    host = state.workers[state.agents[there[0]].worker]
    size = max(1, state.plan.agents_per_worker)
    plans: list[WorkerPlan] = []
    for at in range(0, len(fresh), size):
        hosted = [(name, kind) for name in fresh[at : at + size]]
        worker = hosted[0][0] if size == 1 else f"worker-{_last_worker(state) + 1 + len(plans)}"
        plans.append(WorkerPlan(worker, hosted, host.restart, host.child))
    return FleetScaled(now_s, kind, count, plans, wanted)


def _last_worker(state: State) -> int:
    names = (*state.workers, *state.supervision.past_workers)
    return max((int(name[7:]) for name in names if name.startswith("worker-") and name[7:].isdecimal()), default=0)


def _scale(state: State, body: Scale, ask: Ask) -> Answer:
    check_running(state)
    if has_teams(state):
        raise UsageError("a fleet of teams has a fixed size")
    if not body.counts:
        raise UsageError("which kind, and how many of it? as in reviewer=20")
    for kind, count in body.counts.items():
        if kind not in state.kinds:
            raise unknown(kind, state.kinds)
        if not 1 <= count <= limits.AGENTS_PER_KIND_MAX:
            raise UsageError(f"{kind}={count}: a kind has 1 to {limits.AGENTS_PER_KIND_MAX:,} agents")
    facts = [change(state, kind, count, ask.now_s) for kind, count in body.counts.items()]
    before = {kind: len(members(state, kind)) for kind in body.counts}

    def reply(_after: State) -> msgspec.Struct:
        return Done(ok=True, facts={"before": before, "after": dict(body.counts)})

    return Answer(facts, reply)


RULES: Rules = {Scale: Rule(_scale)}


# ------------------------------------------------------------------ the machine's part


def _fleet_scaled(state: State, fact: FleetScaled, out: list[Effect]) -> None:
    state.supervision.scaled[fact.kind] = fact.count
    wanted = set(fact.agents)
    for agent in [agent for agent in state.agents.values() if agent.kind == fact.kind]:
        if agent.name in wanted:
            _keep(state, agent)
        else:
            agent.is_retiring = True
    plans = [plan for plan in fact.workers if not any(name in state.agents for name, _ in plan.agents)]
    workers = [admit(state, plan) for plan in plans]
    # First the description of the fleet and the identities, then the workers, which read them.
    new = [name for plan in plans for name, _ in plan.agents]
    out.append(FleetResized({fact.kind: fact.count}, new))
    for worker in workers:
        spawn(state, worker, out)
    _let_go(state, fact.kind, out)


def _keep(state: State, agent: Agent) -> None:
    """Wanted again before it has left: what is on its way out goes, and comes back."""
    if not agent.is_retiring:
        return
    agent.is_retiring = False
    worker = state.workers[agent.worker]
    if agent.state in (st.DRAINING, st.DRAINED) and not worker.leaving:
        recycling.wish(state, worker, SCALED)


def _let_go(state: State, kind: str, out: list[Effect]) -> None:
    for agent in [agent for agent in state.agents.values() if agent.kind == kind and agent.is_retiring]:
        worker = state.workers.get(agent.worker)
        if worker is None:
            continue  # went with another agent of the same worker
        if worker.state in (st.PAUSED, st.GONE, st.QUARANTINED):
            if is_retiring(state, worker):
                forget_worker(state, worker)
            else:
                forget_agent(state, agent)
        elif worker.leaving:
            continue  # drained already; at its end it is forgotten
        elif is_retiring(state, worker):
            state.supervision.waiting.pop(worker.name, None)
            recycling.leave(state, worker, Wish(SCALED), out)
        else:
            tell_to_drain(state, agent, NO_DEADLINE_S, out)


HANDLERS: Handlers = {FleetScaled: _fleet_scaled}
