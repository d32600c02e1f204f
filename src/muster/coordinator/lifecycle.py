"""Workers and the fleet as a whole: start, death, restart, drain, end. Pure, like all of the machine.

A task is freed by exactly three things: its own result, its refusal, and the proof that the process tree of its worker is gone.
Restart intensity is OTP's: more than R restarts within T seconds, and the worker is given up (quarantined).
"""

from __future__ import annotations

from collections import deque
from heapq import heappush

from muster.coordinator import state as st
from muster.coordinator.dispatch import assignment, enqueue, offer
from muster.coordinator.events import (
    AgentReady,
    Effect,
    Finish,
    FleetStarted,
    KillWorker,
    Noted,
    Plan,
    Post,
    Record,
    Recovered,
    SpawnWorker,
    WorkerExited,
    WorkerStarted,
)
from muster.coordinator.state import Agent, Ending, State, Worker
from muster.coordinator.tasks import CODE, DEAD, FAILED, Task
from muster.core.protocol import Cancel, Drain, RollCall

#: After SIGTERM or a `now` drain, time for workers to end by themselves before they are killed.
NOW_GRACE_S = 3.0
#: Time for killed workers to be proven dead before the coordinator leaves that to the spawner.
PROOF_S = 0.7
#: A halted run waits for running tasks as long as they take.
NO_DEADLINE_S = 365 * 86_400.0
SIGTERM, SIGKILL = 15, 9
RESTART_DELAY_S, RESTART_DELAY_MAX_S = 0.1, 5.0
_SIGNAL_STATUS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


def start_fleet(state: State, fact: FleetStarted, out: list[Effect]) -> None:
    """Begin a life of the store: reclaim what an earlier one held, take over the plan, ask for every worker."""
    for worker in state.workers.values():
        if worker.state in st.LIVE:
            _reclaim(state, worker, None, out)
    _adopt_plan(state, fact.plan)
    state.phase = st.RUNNING
    state.life += 1
    state.started_s = state.now_s
    state.ready_s = None
    state.input_ended, state.input_total = False, None
    state.admission_open = True
    state.ending = Ending()
    if state.life == 1:  # a later life of the same store goes on with the same file
        state.results_base_bytes = fact.results_base_bytes
    state.timers = [timer for timer in state.timers if timer[1] == "task"]
    for worker in state.workers.values():
        _spawn(state, worker, out)


def _adopt_plan(state: State, plan: Plan) -> None:
    old_workers, old_agents = state.workers, state.agents
    state.plan, state.workers, state.agents = plan, {}, {}
    for entry in plan.workers:
        known = old_workers.get(entry.worker)
        worker = Worker(entry.worker, [agent for agent, _ in entry.agents], entry.restart)
        if known is not None:  # incarnations never repeat within the life of a store
            worker.incarnation, worker.restarts = known.incarnation, known.restarts
        state.workers[entry.worker] = worker
        for name, kind in entry.agents:
            agent = Agent(name, kind, entry.worker)
            if name in old_agents:
                agent.done, agent.failed = old_agents[name].done, old_agents[name].failed
            state.agents[name] = agent
    state.kinds = list(dict.fromkeys(agent.kind for agent in state.agents.values()))
    state.kinds_out = []
    state.idle = {kind: deque() for kind in state.kinds}
    state.busy = {kind: deque() for kind in state.kinds}
    state.live_workers = state.ready = state.held = 0
    waiting = [number for queue in state.queues.values() for number in queue]
    state.queues = {"": [], **({kind: [] for kind in state.kinds} if len(state.kinds) > 1 else {})}
    state.queued = 0
    for task in state.tasks.values():
        task.kind = task.kind if task.kind in state.queues else ""
    for number in sorted(waiting):
        enqueue(state, state.tasks[number])


def _spawn(state: State, worker: Worker, out: list[Effect]) -> None:
    worker.incarnation += 1
    worker.state = st.STARTING
    worker.pid = worker.start_time = 0
    state.live_workers += 1
    out.append(SpawnWorker(worker.name, worker.incarnation))


def worker_started(state: State, fact: WorkerStarted, out: list[Effect]) -> None:
    """A worker was forked; one that nobody waits for is killed."""
    worker = state.workers.get(fact.worker)
    if worker is None or fact.incarnation != worker.incarnation or worker.state not in (st.STARTING, st.ALIVE):
        out.append(KillWorker(fact.worker, fact.incarnation, SIGKILL, True))
        return
    worker.state, worker.pid, worker.start_time = st.ALIVE, fact.pid, fact.start_time


def worker_exited(state: State, fact: WorkerExited, out: list[Effect]) -> None:
    """A worker is dead. Its tasks are free once its whole tree is proven dead, not before."""
    worker = state.workers.get(fact.worker)
    if worker is None or fact.incarnation != worker.incarnation or worker.state not in st.LIVE:
        return
    if fact.survivors:
        worker.state = st.DYING
        for name in worker.agents:
            _set_agent_state(state, state.agents[name], st.ABSENT)
        out.append(Noted("worker.survivors", {"worker": worker.name, "survivors": fact.survivors}))
        return
    worker.last_exit = describe_exit(fact)
    if state.phase == st.RUNNING:
        state.counters.worker_deaths += 1
        out.append(
            Noted("worker.exited", {"worker": worker.name, "incarnation": worker.incarnation, "how": worker.last_exit})
        )
    _reclaim(state, worker, worker.last_exit if state.phase == st.RUNNING else None, out)
    if state.phase == st.RUNNING:
        _restart(state, worker, fact.exit_status, out)
    else:
        worker.state = st.GONE


def describe_exit(fact: WorkerExited) -> str:
    """How a worker ended, in a few words."""
    if fact.signal is not None:
        return f"died by signal {fact.signal}"
    return "was lost" if fact.exit_status is None else f"exited with status {fact.exit_status}"


def _reclaim(state: State, worker: Worker, blame: str | None, out: list[Effect]) -> None:
    """Free everything a proven dead worker held. `blame`: count the death for what can have been running; None: for nothing."""
    worker.state = st.ABSENT
    state.live_workers -= 1
    for name in worker.agents:
        agent = state.agents[name]
        _set_agent_state(state, agent, st.ABSENT)
        held, agent.held = agent.held, {}
        state.held -= len(held)
        for place, number in enumerate(held):
            # What waited behind the running ones has not begun: an agent starts them in order, and results came before the death.
            _free(state, state.tasks[number], blame if place < agent.slots else None, out)


def _free(state: State, task: Task, blame: str | None, out: list[Effect]) -> None:
    if blame is not None:
        task.deaths += 1
        task.note(f"attempt {task.attempt} on {task.agent}: its worker {blame}")
    if task.deaths >= state.plan.deaths_max and blame is not None:
        task.move("died_finally")
        finish_task(state, task, DEAD, out)
        return
    if state.phase == st.RUNNING:
        state.counters.reassigned += 1
    else:
        state.counters.handed_back += 1
    task.move("died")
    enqueue(state, task)


def finish_task(state: State, task: Task, how: str, out: list[Effect]) -> None:
    """Record a task that is over, and halt the run if that was one failure too many."""
    del state.tasks[task.number]
    state.outcomes.set(task.number, CODE[how])
    counters = state.counters
    if how == FAILED:
        counters.failed += 1
    elif how == DEAD:
        counters.dead += 1
    else:
        counters.done += 1
    evidence = task.evidence
    out.append(Record(task.number, task.attempt, task.agent, how, task.input, evidence, task.source, task.asker))
    plan = state.plan
    if plan.halt != "never" and state.phase == st.RUNNING and counters.failed + counters.dead >= plan.halt_after:
        now = plan.halt == "now"
        begin_drain(state, Ending("halted", now=now, deadline_s=state.now_s + NOW_GRACE_S if now else None), out)


def _restart(state: State, worker: Worker, exit_status: int | None, out: list[Effect]) -> None:
    if worker.restart == "never" or (worker.restart == "on_failure" and exit_status == 0):
        _give_up(state, worker, st.GONE)
        return
    plan, now_s = state.plan, state.now_s
    worker.restarts_s = [at for at in worker.restarts_s if now_s - at < plan.restart_period_s]
    if len(worker.restarts_s) >= plan.restarts_max:
        out.append(
            Noted("worker.quarantined", {"worker": worker.name, "restarts": worker.restarts, "how": worker.last_exit})
        )
        _give_up(state, worker, st.QUARANTINED)
        return
    tried = len(worker.restarts_s)
    worker.restarts_s = [*worker.restarts_s, now_s]
    worker.restarts += 1
    state.counters.restarts += 1
    if not tried:
        _spawn(state, worker, out)
        return
    worker.state = st.PAUSED
    worker.restart_at_s = now_s + min(RESTART_DELAY_MAX_S, RESTART_DELAY_S * 2 ** (tried - 1))
    heappush(state.timers, (worker.restart_at_s, "worker", worker.name))


def restart_due(state: State, name: str, out: list[Effect]) -> None:
    """The wait before a restart is over, if it still stands."""
    worker = state.workers.get(name)
    if (
        worker is not None
        and worker.state == st.PAUSED
        and worker.restart_at_s <= state.now_s
        and state.phase == st.RUNNING
    ):
        _spawn(state, worker, out)


def _give_up(state: State, worker: Worker, how: str) -> None:
    worker.state = how
    usable = {
        state.agents[name].kind
        for other in state.workers.values()
        if other.state in (*st.LIVE, st.PAUSED)
        for name in other.agents
    }
    state.kinds_out = [kind for kind in state.kinds if kind not in usable]


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
    worker.state = st.ALIVE
    is_answer = fact.nonce is not None and fact.nonce == state.roll
    if agent.state == st.ABSENT:
        agent.slots = max(1, fact.slots)
        _set_agent_state(state, agent, st.READY)
        if state.ready == len(state.agents) and state.ready_s is None:
            state.ready_s = state.now_s - state.started_s
    if is_answer:
        agent.confirmed = True
        _reconcile(state, agent, fact.holding, out)
    if state.phase == st.DRAINING:
        _drain_agent(state, agent, out)
    else:
        offer(state, agent)


def _reconcile(state: State, agent: Agent, holding: list[tuple[int, int]], out: list[Effect]) -> None:
    there = dict(holding)
    for number, attempt in agent.held.items():
        if there.get(number) != attempt:  # never arrived: the very same attempt is sent again, it cannot have run
            out.append(assignment(state.tasks[number]))
    for number, attempt in there.items():
        if agent.held.get(number) != attempt:
            out.append(Post(agent.name, Cancel(number=number, attempt=attempt), is_control=True))


def recovered(state: State, fact: Recovered, out: list[Effect]) -> None:
    """A new coordinator took over: call the roll of the living, reclaim what the spawner does not know."""
    state.counters.coordinator_restarts = max(state.counters.coordinator_restarts, fact.coordinator_restarts)
    state.roll += 1
    exited = dict(fact.exited)
    alive = {(worker, incarnation): (pid, start_time) for worker, incarnation, pid, start_time in fact.alive}
    for worker in list(state.workers.values()):
        found = alive.pop((worker.name, worker.incarnation), None)
        if worker.state not in st.LIVE or exited.get(worker.name) == worker.incarnation:
            continue
        if found is None:
            _reclaim(state, worker, None, out)
            if state.phase == st.RUNNING:
                _spawn(state, worker, out)
            else:
                worker.state = st.GONE
            continue
        worker.state, (worker.pid, worker.start_time) = st.ALIVE, found
        for name in worker.agents:
            state.agents[name].confirmed = False
            out.append(Post(name, RollCall(nonce=state.roll), is_control=True))
    out.extend(KillWorker(name, incarnation, SIGKILL, True) for name, incarnation in alive)
    if state.phase == st.ENDED:
        out.append(_finish(state))


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
        out.append(Noted("fleet.draining", {"reason": ending.reason, "text": ending.text, "now": ending.now}))
    if state.ending.deadline_s is not None:
        heappush(state.timers, (state.ending.deadline_s, "kill", 0))
    for agent in state.agents.values():
        _drain_agent(state, agent, out)
    for worker in state.workers.values():
        if worker.state == st.PAUSED:
            worker.state = st.GONE
        elif worker.state in (st.STARTING, st.ALIVE) and all(
            state.agents[name].state == st.ABSENT for name in worker.agents
        ):
            out.append(
                KillWorker(worker.name, worker.incarnation, SIGTERM, False)
            )  # holds nothing: it need not get ready first


def _drain_agent(state: State, agent: Agent, out: list[Effect]) -> None:
    if agent.state not in (st.READY, st.DRAINING):
        return
    _set_agent_state(state, agent, st.DRAINING)
    ending = state.ending
    left_s = NO_DEADLINE_S if ending.deadline_s is None else max(0.0, ending.deadline_s - state.now_s)
    out.append(Post(agent.name, Drain(now=ending.now, deadline_s=left_s), is_control=True))


def kill_due(state: State, out: list[Effect]) -> None:
    """The grace of a drain is over: what still lives is killed, and waited for a moment only (the spawner goes on proving)."""
    ending = state.ending
    if state.phase != st.DRAINING or ending.deadline_s is None or state.now_s < ending.deadline_s:
        return
    if ending.killed:
        state.live_workers = 0
        return
    ending.killed, ending.deadline_s = True, state.now_s + PROOF_S
    heappush(state.timers, (ending.deadline_s, "kill", 0))
    for worker in state.workers.values():
        if worker.state in (st.STARTING, st.ALIVE):
            out.append(KillWorker(worker.name, worker.incarnation, SIGKILL, True))


def check_end(state: State, out: list[Effect]) -> None:
    """End the fleet when there is nothing left to do or nobody left to do it."""
    plan = state.plan
    if state.phase == st.RUNNING and plan.run:
        if state.input_ended and not state.tasks:
            begin_drain(state, Ending("complete", deadline_s=state.now_s + plan.grace_s), out)
        elif state.kinds_out:
            _check_stuck(state, out)
    if state.phase == st.DRAINING and state.live_workers <= 0:
        state.phase = st.ENDED
        out.append(_finish(state))


def _check_stuck(state: State, out: list[Effect]) -> None:
    stuck = sum(len(state.queues.get(kind, ())) for kind in state.kinds_out)
    everybody = len(state.kinds_out) == len(state.kinds)
    if everybody or (stuck and stuck == len(state.tasks)):
        last = next((w for w in state.workers.values() if w.last_exit and w.state in (st.GONE, st.QUARANTINED)), None)
        how = f": {last.name} {last.last_exit}" if last else ""
        error = f"no worker is left for {len(state.tasks)} unfinished tasks{how}"
        begin_drain(state, Ending("error", error=error, deadline_s=state.now_s + state.plan.grace_s), out)


def _finish(state: State) -> Finish:
    ending, counters = state.ending, state.counters
    if ending.reason == "complete":
        return Finish(1 if counters.failed or counters.dead else 0, "complete")
    if ending.reason == "halted":
        return Finish(3, "halted")
    if ending.reason == "stopped":
        unfinished = 1 if state.plan.run and (state.tasks or not state.input_ended) else 0
        return Finish(_SIGNAL_STATUS.get(ending.text, unfinished), "stopped")
    return Finish(1, "error", ending.error)


def _set_agent_state(state: State, agent: Agent, new: str) -> None:
    state.ready += (new == st.READY) - (agent.state == st.READY)
    agent.state = new
    if new == st.ABSENT:
        agent.confirmed = True


def agent_leaving(state: State, agent: Agent, new: str) -> None:
    """An agent said that it drains or has drained: nothing more is assigned to it."""
    if agent.state in (st.READY, st.DRAINING):
        _set_agent_state(state, agent, new)
