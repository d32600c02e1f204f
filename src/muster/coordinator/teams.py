"""The root's side of a team. Pure, like all of the machine.

To the root a team is an agent with many slots, hosted by a worker that is the team's coordinator: started, restarted with backoff and given
up like every worker. One thing is different: its death frees nothing. The team's own workers live on below the spawner and go on with what
they have; the team's next coordinator replays its log, calls their roll, and says what it holds. So what a team holds stays held over its
death, and over a new life of the store, until the team has said something about it.

A team that dies too often is given up. The root decides once, with that death, which teams of the same kind are the heirs, the smallest
first. Whoever carries it out (`caretaker`) gives the n-th worker to heir n modulo their number, so a root that dies in between comes to the
same division again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import state as st
from muster.coordinator.dispatch import enqueue, set_agent_state
from muster.coordinator.effects import Dissolve, Noted, Post
from muster.core import limits
from muster.core.protocol import Drain

if TYPE_CHECKING:
    from muster.coordinator.events import AgentReady, Effect
    from muster.coordinator.state import Agent, State, Worker


def lost(state: State, worker: Worker) -> None:
    """The coordinator of a team is dead; nothing is assigned to the team until it is back."""
    for name in worker.agents:
        set_agent_state(state, state.agents[name], st.ABSENT)


def comes_back(state: State, worker: Worker) -> bool:
    """Whether a team's coordinator that dies while the fleet ends is started once more, so that its agents can still be heard."""
    return (
        worker.is_team
        and state.phase == st.DRAINING
        and not state.ending.killed
        and state.agents[worker.agents[0]].state != st.DRAINED
        and len(worker.restarts_s) < worker.child.restarts_max
    )


def are_awaited(state: State) -> bool:
    """Whether the end of the fleet waits for a team: one that is being dissolved, or will be started once more to be heard."""
    return bool(state.dissolving) or any(w.is_team and w.state == st.PAUSED for w in state.workers.values())


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
    return agent.slots * worker.size // worker.slots if agent.state == st.READY and worker.slots else 0


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


def give_up(state: State, worker: Worker, out: list[Effect]) -> None:
    """The coordinator of a team will not be started again: its workers go to the other teams of its kind."""
    kind = state.agents[worker.agents[0]].kind
    heirs = [
        other
        for other in state.workers.values()
        if other.state in (*st.LIVE, st.PAUSED) and state.agents[other.agents[0]].kind == kind
    ]
    heirs.sort(key=lambda heir: heir.size)  # stable: equal ones stay in the order of the plan
    state.dissolving[worker.name] = [heir.name for heir in heirs]
    out.append(
        Noted("team.given_up", {"team": worker.name, "how": worker.last_exit, "heirs": state.dissolving[worker.name]})
    )
    slots_each, size = worker.slots // worker.size, worker.size
    for at, heir in enumerate(heirs):
        more = (size - at + len(heirs) - 1) // len(heirs)
        heir.size, heir.slots = heir.size + more, heir.slots + more * slots_each
    if heirs:
        worker.size = worker.slots = 0
    out.append(Dissolve(worker.name, state.dissolving[worker.name]))


def go_on(state: State, out: list[Effect]) -> None:
    """After a restart of the root: what it was about to do is done again."""
    out.extend(Dissolve(team, heirs) for team, heirs in state.dissolving.items())


def drain(state: State, now: bool, left_s: float, out: list[Effect]) -> None:
    """The fleet ends: what is left of teams that were given up has no more time than the others."""
    out.extend(Post(team, Drain(now=now, deadline_s=left_s), is_control=True) for team in state.dissolving)
