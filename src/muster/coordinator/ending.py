"""The end of the fleet: drained, killed when the grace is over, finished. Pure, like all of the machine."""

from __future__ import annotations

from heapq import heappush

from muster.coordinator import budget, entrusted, farewell, teams
from muster.coordinator import state as st
from muster.coordinator.dispatch import set_agent_state
from muster.coordinator.events import (
    AgentDrained,
    DrainOrdered,
    Effect,
    Finish,
    Handlers,
    KillWorker,
    Noted,
    Post,
    RecordingFailed,
    StopRequested,
)
from muster.coordinator.locks import facts as locks
from muster.coordinator.retiring import agent_left
from muster.coordinator.state import Agent, Ending, State
from muster.coordinator.tasks import BLOCKED
from muster.core.protocol import Drain

#: After SIGTERM or a `now` drain, time for workers to end by themselves before they are killed.
NOW_GRACE_S = 3.0
#: Time for killed workers to be proven dead before the coordinator leaves that to the spawner.
PROOF_S = 0.7
#: A halted run waits for running tasks as long as they take.
NO_DEADLINE_S = 365 * 86_400.0
SIGTERM, SIGKILL = 15, 9
_SIGNAL_STATUS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


def begin_drain(state: State, ending: Ending, out: list[Effect]) -> None:
    """Assign nothing more, let agents end what they hold, then end. A second call can only make it faster."""
    if state.phase == st.ENDED:
        return
    if state.phase == st.DRAINING:
        if not ending.now or state.ending.now:
            return
        state.ending.now, state.ending.killed = True, False
        state.ending.deadline_s = ending.deadline_s
    else:
        state.phase, state.ending = st.DRAINING, ending
        ending.began_s, ending.settled_before = state.now_s, farewell.settled(state.counters)
        out.append(Noted("fleet.draining", {"reason": ending.reason, "text": ending.text, "now": ending.now}))
    if state.ending.deadline_s is not None:
        heappush(state.timers, (state.ending.deadline_s, "kill", 0))
    if state.plan.upstream:
        entrusted.hand_back_waiting(state, out)
    state.supervision.waiting = {}
    for agent in state.agents.values():
        drain_agent(state, agent, out)
    teams.drain(state, state.ending.now, teams.drain_s(_left_s(state)), out)
    for worker in state.workers.values():
        if worker.state == st.PAUSED and worker.is_team:
            heappush(state.timers, (state.now_s, "worker", worker.name))  # its agents must be heard: no more waiting
            worker.restart_at_s = state.now_s
        elif worker.state == st.PAUSED:
            worker.move("retired")
        elif (
            worker.state in (st.STARTING, st.ALIVE)
            and not worker.is_team
            and all(state.agents[name].state == st.ABSENT for name in worker.agents)
        ):
            out.append(
                KillWorker(worker.name, worker.incarnation, SIGTERM, False)
            )  # holds nothing: it need not get ready first


def tell_to_drain(state: State, agent: Agent, grace_s: float, out: list[Effect]) -> None:
    """Tell an agent to come to an end while the fleet goes on; told again, it changes nothing."""
    if agent.state in (st.READY, st.DRAINING):
        set_agent_state(state, agent, st.DRAINING)
        incarnation = state.workers[agent.worker].incarnation
        out.append(Post(agent.name, Drain(deadline_s=grace_s, incarnation=incarnation), is_control=True))


def _left_s(state: State) -> float:
    deadline_s = state.ending.deadline_s
    return NO_DEADLINE_S if deadline_s is None else max(0.0, deadline_s - state.now_s)


def drain_agent(state: State, agent: Agent, out: list[Effect]) -> None:
    """Tell an agent to come to an end, as the fleet does."""
    if agent.state not in (st.READY, st.DRAINING):
        return
    set_agent_state(state, agent, st.DRAINING)
    ending, left_s = state.ending, _left_s(state)
    worker = state.workers[agent.worker]
    if worker.is_team:
        left_s = teams.drain_s(left_s)
    order = Drain(now=ending.now, deadline_s=left_s, incarnation=worker.incarnation)
    out.append(Post(agent.name, order, is_control=True))


def kill_due(state: State, _key: object, out: list[Effect]) -> None:
    """The grace of a drain is over: what still lives is killed, and waited for a moment only (the spawner goes on proving)."""
    ending = state.ending
    if state.phase != st.DRAINING or ending.deadline_s is None or state.now_s < ending.deadline_s:
        return
    if ending.killed:
        state.live_workers = 0
        state.dissolving = {}
        return
    ending.killed, ending.deadline_s = True, state.now_s + PROOF_S
    heappush(state.timers, (ending.deadline_s, "kill", 0))
    farewell.note_kill(state)
    for worker in state.workers.values():
        if worker.state in (st.STARTING, st.ALIVE):
            out.append(KillWorker(worker.name, worker.incarnation, SIGKILL, True))


def check_end(state: State, out: list[Effect]) -> None:
    """End the fleet when there is nothing left to do or nobody left to do it."""
    plan = state.plan
    if state.phase == st.RUNNING and plan.run:
        if state.input_ended and not state.tasks:
            begin_drain(state, Ending("complete", deadline_s=state.now_s + plan.grace_s), out)
        elif budget.is_over(state):
            begin_drain(state, Ending("halted", error=budget.sentence(state, budget.FLEET)), out)
        elif state.kinds_out:
            _check_stuck(state, out)
    if state.phase == st.DRAINING and state.live_workers <= 0 and not teams.are_awaited(state):
        state.phase = st.ENDED
        out.append(finish(state))


def _check_stuck(state: State, out: list[Effect]) -> None:
    out_of_it = set(state.kinds_out)
    stuck = sum(len(queue) for route, queue in state.queues.items() if out_of_it.issuperset(state.routes[route]))
    blocked = sum(task.state == BLOCKED for task in state.tasks.values()) if stuck else 0
    everybody = len(state.kinds_out) == len(state.kinds)
    if everybody or (stuck and stuck + blocked == len(state.tasks)):
        last = next((w for w in state.workers.values() if w.last_exit and w.state in (st.GONE, st.QUARANTINED)), None)
        how = f": {last.name} {last.last_exit}" if last else ""
        error = f"no worker is left for {len(state.tasks)} unfinished tasks{how}"
        begin_drain(state, Ending("error", error=error, deadline_s=state.now_s + state.plan.grace_s), out)


def finish(state: State) -> Finish:
    """How the fleet ended, for its exit status."""
    ending, counters = state.ending, state.counters
    if ending.reason == "complete":
        return Finish(1 if counters.failed or counters.dead or counters.cancelled else 0, "complete")
    if ending.reason == "halted":
        # More may have been spent since by what was in progress.
        return Finish(3, "halted", budget.sentence(state, budget.FLEET) if budget.is_over(state) else ending.error)
    if ending.reason == "stopped":
        unfinished = 1 if state.plan.run and (state.tasks or not state.input_ended) else 0
        return Finish(_SIGNAL_STATUS.get(ending.text, unfinished), "stopped")
    return Finish(1, "error", ending.error)


def agent_leaving(state: State, agent: Agent, new: str) -> None:
    """An agent said that it drains or has drained: nothing more is assigned to it."""
    if agent.state in (st.READY, st.DRAINING):
        set_agent_state(state, agent, new)


def _agent_drained(state: State, fact: AgentDrained, out: list[Effect]) -> None:
    agent = state.agents.get(fact.agent)
    if agent is not None and state.workers[agent.worker].incarnation == fact.incarnation:
        agent_leaving(state, agent, st.DRAINED)
        agent_left(state, agent)
        if agent.name not in state.agents:  # it is gone for good, and no death of its worker will free its locks
            locks.free_agents(state, (agent.name,), out)


def _stop_requested(state: State, fact: StopRequested, out: list[Effect]) -> None:
    now = fact.mode == "now"
    deadline_s = state.now_s + (NOW_GRACE_S if now else state.plan.grace_s)
    begin_drain(state, Ending("stopped", fact.reason, now, deadline_s=deadline_s), out)


def _drain_ordered(state: State, fact: DrainOrdered, out: list[Effect]) -> None:
    deadline_s = state.now_s + fact.deadline_s
    begin_drain(state, Ending("stopped", "the root coordinator", fact.now, deadline_s=deadline_s), out)


def _recording_failed(state: State, fact: RecordingFailed, out: list[Effect]) -> None:
    error = Ending("error", error=fact.message, now=True, deadline_s=state.now_s + NOW_GRACE_S)
    begin_drain(state, error, out)


HANDLERS: Handlers = {
    AgentDrained: _agent_drained,
    StopRequested: _stop_requested,
    DrainOrdered: _drain_ordered,
    RecordingFailed: _recording_failed,
}
