"""Workers: start, death, restart. Pure, like all of the machine.

A task is freed by exactly three things: its own result, its refusal, and the proof that the process tree of its worker is gone.
Restart intensity is OTP's (Erlang/OTP `supervisor`): more than R restarts within T seconds, and the worker is set aside (quarantined)
until the operator wants it back.
"""

from __future__ import annotations

from collections import deque
from heapq import heappush

from muster.coordinator import entrusted, teams
from muster.coordinator import state as st
from muster.coordinator.dispatch import enqueue, set_agent_state
from muster.coordinator.ending import SIGKILL, SIGTERM
from muster.coordinator.events import (
    Effect,
    FleetStarted,
    Handlers,
    KillWorker,
    Noted,
    Plan,
    SpawnWorker,
    WorkerExited,
    WorkerPlan,
    WorkerStarted,
)
from muster.coordinator.finishing import cancelled, finish_task, give_up
from muster.coordinator.lives import Past
from muster.coordinator.locks import facts as locks
from muster.coordinator.retiring import forget_retired, forget_worker, is_retiring
from muster.coordinator.routing import lay_routes
from muster.coordinator.state import Agent, Ending, State, Worker
from muster.coordinator.tasks import DEAD, Task
from muster.core.spec import ChildSpec

#: A worker that seems not to be ready in time gets this much more: perhaps it was us who stood still, and its word waits to be read.
READY_AGAIN_S = 2.0


def start_fleet(state: State, fact: FleetStarted, out: list[Effect]) -> None:
    """Begin a life of the store: reclaim what an earlier one held, take over the plan, ask for every worker."""
    for worker in state.workers.values():
        if worker.state in st.LIVE:
            reclaim(state, worker, None, out)
    _adopt_plan(state, fact.plan, out)
    state.phase = st.RUNNING
    state.life += 1
    state.started_s = state.now_s
    state.ready_s = None
    state.input_ended, state.input_total = False, None
    state.admission_open = True
    state.ending = Ending()
    state.dissolving = {}
    if state.life == 1:  # a later life of the same store goes on with the same file
        state.results_base_bytes = fact.results_base_bytes
    state.timers = [timer for timer in state.timers if timer[1] == "task"]
    locks.begin_again(state, out)
    for worker in state.workers.values():
        spawn(state, worker, out)


def _adopt_plan(state: State, plan: Plan, out: list[Effect]) -> None:
    old_workers, old_agents, supervision = state.workers, state.agents, state.supervision
    supervision.waiting, supervision.away, supervision.scaled = {}, [], {}
    state.plan, state.workers, state.agents = plan, {}, {}
    for old in old_workers.values():  # incarnations never repeat within the life of a store
        supervision.past_workers[old.name] = Past(old.incarnation, old.restarts)
    for gone in old_agents.values():
        supervision.past_agents[gone.name] = Past(gone.done, gone.failed)
    for entry in plan.workers:
        admit(state, entry)
    state.kinds = list(dict.fromkeys(agent.kind for agent in state.agents.values()))
    state.kinds_out = []
    state.idle = {kind: deque() for kind in state.kinds}
    state.busy = {kind: deque() for kind in state.kinds}
    state.live_workers = state.ready = state.held = 0
    for task, why in lay_routes(state):
        if task.number in state.tasks:  # else it came after one of the others, and died with that
            give_up(state, task, why, out)
    teams.carry_over(state, old_agents)


def admit(state: State, entry: WorkerPlan) -> Worker:
    """Put a worker and its agents on the books; whoever was there before goes on counting from where it stopped."""
    plan, supervision = state.plan, state.supervision
    worker = Worker(entry.worker, [agent for agent, _ in entry.agents], entry.restart)
    worker.is_team, worker.slots, worker.size = entry.is_team, entry.slots, entry.size
    worker.child = entry.child or ChildSpec(restarts_max=plan.restarts_max, period_s=plan.restart_period_s)
    if (past := supervision.past_workers.pop(entry.worker, None)) is not None:
        worker.incarnation, worker.restarts = past.first, past.second
    state.workers[entry.worker] = worker
    for name, kind in entry.agents:
        agent = Agent(name, kind, entry.worker)
        if (gone := supervision.past_agents.pop(name, None)) is not None:
            agent.done, agent.failed = gone.first, gone.second
        state.agents[name] = agent
    return worker


def spawn(state: State, worker: Worker, out: list[Effect]) -> None:
    """Start the next incarnation of a worker."""
    worker.move("spawned")
    worker.incarnation += 1
    worker.pid = worker.start_time = worker.attempts = 0
    worker.fault = worker.leaving = ""
    worker.born_s = state.now_s
    state.live_workers += 1
    await_ready(state, worker)
    if worker.child.max_age_s:
        heappush(state.timers, (worker.born_s + worker.child.max_age_s, "age", worker.name))
    out.append(SpawnWorker(worker.name, worker.incarnation))


def await_ready(state: State, worker: Worker) -> None:
    """From now on the worker has its time to get ready."""
    worker.is_doubted = False
    worker.ready_by_s = state.now_s + worker.child.ready_timeout_s
    heappush(state.timers, (worker.ready_by_s, "ready", worker.name))


def is_ready_timer_stale(state: State, due_s: float, name: str) -> bool:
    """Whether nobody waits any more for what this timer was set for."""
    worker = state.workers.get(name)
    return worker is None or worker.ready_by_s != due_s


def ready_due(state: State, name: str, out: list[Effect]) -> None:
    """A worker's time to get ready is over: kill it, unless it has got ready or may only not have been heard."""
    worker = state.workers.get(name)
    if (
        worker is None
        or not 0 < worker.ready_by_s <= state.now_s
        or worker.state not in (st.STARTING, st.ALIVE)
        or state.phase != st.RUNNING
    ):
        return
    if not worker.is_doubted:
        worker.is_doubted = True
        worker.ready_by_s = state.now_s + READY_AGAIN_S
        heappush(state.timers, (worker.ready_by_s, "ready", name))
        return
    worker.ready_by_s = 0.0
    worker.fault = f"was not ready within {worker.child.ready_timeout_s:g} s and was killed"
    out.append(Noted("worker.not_ready", {"worker": name, "timeout_s": worker.child.ready_timeout_s}))
    out.append(KillWorker(name, worker.incarnation, SIGKILL, True))


def worker_started(state: State, fact: WorkerStarted, out: list[Effect]) -> None:
    """A worker was forked; one that nobody waits for is killed."""
    worker = state.workers.get(fact.worker)
    if worker is None or fact.incarnation != worker.incarnation or worker.state not in (st.STARTING, st.ALIVE):
        out.append(KillWorker(fact.worker, fact.incarnation, SIGKILL, True))
        return
    worker.move("seen")
    worker.pid, worker.start_time = fact.pid, fact.start_time


def worker_exited(state: State, fact: WorkerExited, out: list[Effect]) -> None:
    """A worker is dead. Its tasks are free once its whole tree is proven dead, not before."""
    worker = state.workers.get(fact.worker)
    if worker is None or fact.incarnation != worker.incarnation or worker.state not in st.LIVE:
        return
    if fact.survivors:
        worker.move("reaped")
        for name in worker.agents:
            set_agent_state(state, state.agents[name], st.ABSENT)
        out.append(Noted("worker.survivors", {"worker": worker.name, "survivors": fact.survivors}))
        return
    is_orderly = bool(worker.leaving) and (fact.exit_status == 0 or fact.signal == SIGTERM)
    worker.last_exit = worker.fault or describe_exit(fact)
    if state.phase == st.RUNNING and not is_orderly:
        state.counters.worker_deaths += 1
        out.append(
            Noted("worker.exited", {"worker": worker.name, "incarnation": worker.incarnation, "how": worker.last_exit})
        )
    comes_back = teams.comes_back(state, worker)
    reclaim(state, worker, worker.last_exit if state.phase == st.RUNNING else None, out)
    if comes_back:
        worker.restarts_s = [*worker.restarts_s, state.now_s]
        spawn(state, worker, out)
    elif state.phase != st.RUNNING:
        worker.move("retired")
    elif is_retiring(state, worker):
        forget_worker(state, worker)
        reckon_kinds_out(state, out)
    elif is_orderly:
        state.supervision.recycled += 1
        spawn(state, worker, out)
    else:
        _restart(state, worker, fact.exit_status, out)


def describe_exit(fact: WorkerExited) -> str:
    """How a worker ended, in a few words."""
    if fact.signal is not None:
        return f"died by signal {fact.signal}"
    return "was lost" if fact.exit_status is None else f"exited with status {fact.exit_status}"


def reclaim(state: State, worker: Worker, blame: str | None, out: list[Effect]) -> None:
    """Free everything a proven dead worker held. `blame`: count the death for what can have been running; None: for nothing."""
    worker.move("proven_dead")
    worker.ready_by_s = 0.0
    state.live_workers -= 1
    if worker.is_team:
        teams.lost(state, worker)
        return
    for name in worker.agents:
        agent = state.agents[name]
        set_agent_state(state, agent, st.ABSENT)
        held, agent.held = agent.held, {}
        state.held -= len(held)
        for place, number in enumerate(held):
            # What waited behind the running ones has not begun: an agent starts them in order, and results came before the death.
            task = state.tasks[number]
            how = f"attempt {task.attempt} on {task.agent}: its worker {blame}"
            has_begun = place < agent.slots
            free(state, task, how if blame is not None and has_begun else None, out, has_begun=has_begun)
    locks.free_agents(state, worker.agents, out)
    forget_retired(state, worker)


def free(state: State, task: Task, blame: str | None, out: list[Effect], *, has_begun: bool = True) -> None:
    """An attempt is over that left no result. `blame`: how it died, if it may have begun; None: it had not, or nobody is to be blamed."""
    if state.plan.upstream:
        entrusted.freed(state, task, blame, out, has_begun=has_begun)
        return
    if blame is not None:
        task.deaths += 1
        task.note(blame)
    if task.is_cancelling:
        cancelled(state, task, out)
        return
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


def _restart(state: State, worker: Worker, exit_status: int | None, out: list[Effect]) -> None:
    if worker.restart == "never" or (worker.restart == "on_failure" and exit_status == 0):
        _give_up(state, worker, "retired", out)
        return
    child, now_s = worker.child, state.now_s
    worker.restarts_s = [at for at in worker.restarts_s if now_s - at < child.period_s]
    earlier = len(worker.restarts_s)
    if earlier >= child.restarts_max:
        out.append(Noted("worker.quarantined", {"worker": worker.name, "how": why_quarantined(worker)}))
        _give_up(state, worker, "crash_looped", out)
        return
    worker.restarts_s = [*worker.restarts_s, now_s]
    worker.restarts += 1
    state.counters.restarts += 1
    delay_s = child.delay_before_s(earlier)
    if delay_s <= 0:
        spawn(state, worker, out)
        return
    worker.move("backed_off")
    worker.restart_at_s = now_s + delay_s
    heappush(state.timers, (worker.restart_at_s, "worker", worker.name))


def restart_due(state: State, name: str, out: list[Effect]) -> None:
    """The wait before a restart is over, if it still stands."""
    worker = state.workers.get(name)
    if (
        worker is not None
        and worker.state == st.PAUSED
        and worker.restart_at_s <= state.now_s
        and (state.phase == st.RUNNING or (worker.is_team and state.phase == st.DRAINING))
    ):
        spawn(state, worker, out)


def why_quarantined(worker: Worker) -> str:
    """The evidence against a quarantined worker, in a sentence."""
    child = worker.child
    times = "once" if child.restarts_max == 0 else f"{child.restarts_max + 1} times within {child.period_s:g} s"
    if worker.is_team:
        return f"died {times}, last it {worker.last_exit}; its agents go to other teams"
    return f"died {times}, last it {worker.last_exit}; `muster restart {worker.name}` starts it again"


def evidence_of(worker: Worker, now_s: float) -> list[str]:
    """What a person should know of a worker that does not run as it should."""
    if worker.state == st.QUARANTINED:
        return [why_quarantined(worker)]
    if worker.state == st.PAUSED:
        return [f"{worker.last_exit}; starts again in {max(0.0, worker.restart_at_s - now_s):.1f} s"]
    if worker.state == st.DYING:
        return ["its worker is dead, but some of its process tree lives"]
    return []


def _give_up(state: State, worker: Worker, cause: str, out: list[Effect]) -> None:
    worker.move(cause)
    if worker.is_team:
        teams.give_up(state, worker, out)
    reckon_kinds_out(state, out)


def reckon_kinds_out(state: State, out: list[Effect]) -> None:
    """Note the kinds none of whose workers will run again by itself."""
    usable = {
        state.agents[name].kind
        for other in state.workers.values()
        if other.state in (*st.LIVE, st.PAUSED) and not other.is_out
        for name in other.agents
    }
    state.kinds_out = [kind for kind in state.kinds if kind not in usable]
    if state.kinds_out and state.plan.upstream:
        entrusted.hand_back_waiting(state, out)


HANDLERS: Handlers = {
    FleetStarted: start_fleet,
    WorkerStarted: worker_started,
    WorkerExited: worker_exited,
}
