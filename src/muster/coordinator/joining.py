"""Who is there: agents that join, and what a new coordinator finds. Pure, like all of the machine."""

from __future__ import annotations

from muster.coordinator import state as st
from muster.coordinator import teams
from muster.coordinator.cancelling import cancellation
from muster.coordinator.dispatch import assignment, offer, set_agent_state
from muster.coordinator.ending import SIGKILL, drain_agent, finish, tell_to_drain
from muster.coordinator.events import AgentReady, Effect, FleetResized, Handlers, KillWorker, Post, Recovered
from muster.coordinator.lifecycle import await_ready, reckon_kinds_out, reclaim, spawn
from muster.coordinator.locks import facts as locks
from muster.coordinator.retiring import forget_worker, is_retiring
from muster.coordinator.state import Agent, State, Worker
from muster.core.protocol import Cancel, RollCall


def agent_ready(state: State, fact: AgentReady, out: list[Effect]) -> None:
    """An agent joined or answered the roll call; what it lost of our orders is sent again, what it should not have is cancelled."""
    agent = state.agents.get(fact.agent)
    worker = state.workers[agent.worker] if agent is not None else None
    if (
        agent is None
        or worker is None
        or fact.incarnation != worker.incarnation
        or worker.state not in (st.STARTING, st.ALIVE)
    ):
        return
    worker.move("seen")
    is_answer = fact.nonce is not None and fact.nonce == state.roll
    if agent.state == st.ABSENT:
        agent.slots = max(1, fact.slots)
        set_agent_state(state, agent, st.READY)
        is_answer = is_answer or worker.is_team
    if worker.is_team:
        teams.heard(agent, worker, fact)
        reckon_kinds_out(state, out)
    if state.ready_s is None and state.ready == len(state.agents) and teams.are_complete(state):
        state.ready_s = state.now_s - state.started_s
    if worker.ready_by_s and all(state.agents[name].state != st.ABSENT for name in worker.agents):
        worker.ready_by_s = 0.0
    if is_answer:
        agent.confirmed = True
        _reconcile(state, agent, fact.holding, out)
    if state.phase == st.DRAINING:
        drain_agent(state, agent, out)
    elif worker.leaving or agent.is_retiring:
        tell_to_drain(state, agent, worker.leave_grace_s, out)
    else:
        offer(state, agent)


def _reconcile(state: State, agent: Agent, holding: list[tuple[int, int]], out: list[Effect]) -> None:
    there = dict(holding)
    for number, attempt in agent.held.items():
        if there.get(number) != attempt:  # never arrived: the very same attempt is sent again, it cannot have run
            out.append(assignment(state.tasks[number]))
        if state.tasks[number].is_cancelling:
            out.append(cancellation(state.tasks[number]))
    for number, attempt in there.items():
        if agent.held.get(number) != attempt:
            out.append(Post(agent.name, Cancel(number=number, attempt=attempt), is_control=True))


def recovered(state: State, fact: Recovered, out: list[Effect]) -> None:
    """A new coordinator took over: call the roll of the living, reclaim what the spawner does not know."""
    state.counters.coordinator_restarts = max(state.counters.coordinator_restarts, fact.coordinator_restarts)
    state.roll += 1
    if state.supervision.scaled:  # perhaps it died between the decision and its deed
        kinds = state.supervision.scaled
        out.append(FleetResized(dict(kinds), [agent.name for agent in state.agents.values() if agent.kind in kinds]))
    locks.begin_again(state, out)
    exited = dict(fact.exited)
    alive = {(worker, incarnation): (pid, start_time) for worker, incarnation, pid, start_time in fact.alive}
    for worker in list(state.workers.values()):
        found = alive.pop((worker.name, worker.incarnation), None)
        if worker.state not in st.LIVE or exited.get(worker.name) == worker.incarnation:
            continue
        if found is None:
            reclaim(state, worker, None, out)
            if state.phase != st.RUNNING:
                worker.move("retired")
            elif is_retiring(state, worker):
                forget_worker(state, worker)
            else:
                spawn(state, worker, out)
            continue
        _call(state, worker, found, out)
    out.extend(KillWorker(name, incarnation, SIGKILL, True) for name, incarnation in alive)
    teams.go_on(state, out)
    if state.phase == st.ENDED:
        out.append(finish(state))


def _call(state: State, worker: Worker, found: tuple[int, int], out: list[Effect]) -> None:
    """Call the agents of a living worker, which has its time to get ready anew."""
    worker.move("seen")
    if worker.state == st.DYING:
        return  # reaped: what the spawner lists is a grave that is not proven empty
    worker.pid, worker.start_time = found
    if any(state.agents[name].state == st.ABSENT for name in worker.agents):
        await_ready(state, worker)
    for name in worker.agents:
        state.agents[name].confirmed = False
        out.append(Post(name, RollCall(nonce=state.roll), is_control=True))


HANDLERS: Handlers = {AgentReady: agent_ready, Recovered: recovered}
