"""The root's side of a team. Pure, like all of the machine.

To the root a team is an agent with many slots, hosted by a worker that is the team's coordinator: started, restarted with backoff and given
up like every worker. One thing is different: its death frees nothing. The team's own workers live on below the spawner and go on with what
they have; the team's next coordinator replays its log, calls their roll, and says what it holds. So what a team holds stays held over its
death, and over a new life of the store, until the team has said something about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import state as st
from muster.coordinator.dispatch import enqueue, set_agent_state
from muster.core import limits

if TYPE_CHECKING:
    from muster.coordinator.events import AgentReady
    from muster.coordinator.state import Agent, State, Worker


def lost(state: State, worker: Worker) -> None:
    """The coordinator of a team is dead; nothing is assigned to the team until it is back."""
    for name in worker.agents:
        set_agent_state(state, state.agents[name], st.ABSENT)


def heard(agent: Agent, worker: Worker, fact: AgentReady) -> None:
    """A team says how many of its agents' slots there are."""
    agent.slots = fact.slots
    worker.is_out = fact.is_out


def are_complete(state: State) -> bool:
    """Whether every team has all of its agents."""
    return all(
        state.agents[name].slots >= worker.slots
        for worker in state.workers.values()
        if worker.is_team
        for name in worker.agents
    )


def ready_in(worker: Worker, agent: Agent) -> int:
    """How many agents of a team can be given something."""
    return agent.slots * worker.size // worker.slots if agent.state == st.READY else 0


def agents_of(state: State) -> int:
    """How many agents the fleet has; a team counts as those that it has."""
    return sum(worker.size if worker.is_team else len(worker.agents) for worker in state.workers.values())


def ready_of(state: State) -> int:
    """How many agents have joined and are not draining."""
    if not any(worker.is_team for worker in state.workers.values()):
        return state.ready
    return sum(ready_in(worker, state.agents[worker.agents[0]]) for worker in state.workers.values())


def carry_over(state: State, earlier: dict[str, Agent]) -> None:
    """A new life of the store: teams that there still are keep what they hold; what other agents held is free."""
    for name, old in earlier.items():
        if not old.held:
            continue
        agent = state.agents.get(name)
        if agent is not None and state.workers[agent.worker].is_team:
            agent.held = old.held
            state.held += len(old.held)
            continue
        for number in old.held:
            state.counters.handed_back += 1
            state.tasks[number].move("died")
            enqueue(state, state.tasks[number])


def drain_s(left_s: float) -> float:
    """What a team gets of the time that is left: it has to report what became of its agents."""
    return left_s - min(limits.TEAM_MARGIN_S, left_s / 2)
