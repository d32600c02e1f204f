"""Replacing workers that live: after so many attempts, at an age, above a size, or because the operator wants it. Pure.

A worker that is replaced is drained: its agents finish what they work on, hand back what has not begun, and end; then its next incarnation
is started. Of each kind at most a tenth of the workers is away for that at a time, and at least one; a worker is away until its successor
is ready. So a rolling restart loses nothing, repeats nothing, and leaves most of the fleet at work. It counts no restart; a worker that
dies while it is drained has died like any other.
"""

from __future__ import annotations

from collections import Counter

from muster.coordinator import state as st
from muster.coordinator.ending import NO_DEADLINE_S, SIGTERM, tell_to_drain
from muster.coordinator.events import (
    Effect,
    Handlers,
    HookEnded,
    KillWorker,
    Noted,
    Post,
    RestartRequested,
    WorkerOutgrown,
)
from muster.coordinator.lifecycle import reckon_kinds_out, spawn
from muster.coordinator.lives import HookRun, Wish
from muster.coordinator.state import Agent, State, Worker
from muster.core.protocol import Restart

#: One of so many workers of a kind may be away at a time.
SHARE = 10
#: The reason of a wish that came from the operator.
ASKED = "restart"


def wish(state: State, worker: Worker, reason: str, grace_s: float | None = None) -> None:
    """Have a worker replaced when its turn comes. A worker that waits for it already, or is leaving, is not asked twice."""
    if not worker.leaving and worker.name not in state.supervision.waiting:
        state.supervision.waiting[worker.name] = Wish(reason, grace_s)


def advance(state: State, out: list[Effect]) -> None:
    """Begin with as many of those that wait as may be away now."""
    supervision = state.supervision
    if state.phase != st.RUNNING or not (supervision.waiting or supervision.away):
        return
    supervision.away = [name for name in supervision.away if _is_away(state, name, out)]
    if not supervision.waiting:
        return
    away = Counter(_kind(state, state.workers[name]) for name in supervision.away)
    total = Counter(_kind(state, worker) for worker in state.workers.values())
    for name, wanted in list(supervision.waiting.items()):
        worker = state.workers.get(name)
        kind = _kind(state, worker) if worker is not None else ""
        if worker is not None and away[kind] >= max(1, total[kind] // SHARE):
            continue
        del supervision.waiting[name]
        if worker is not None:
            away[kind] += 1
            supervision.away.append(name)
            _replace(state, worker, wanted, out)


def _kind(state: State, worker: Worker) -> str:
    return state.agents[worker.agents[0]].kind if worker.agents else ""


def _is_away(state: State, name: str, out: list[Effect]) -> bool:
    worker = state.workers.get(name)
    if worker is None or worker.state == st.GONE:
        return False
    if worker.state == st.QUARANTINED:
        _halt(state, worker, out)
        return False
    return bool(worker.leaving) or worker.state != st.ALIVE or worker.ready_by_s > 0


def _halt(state: State, worker: Worker, out: list[Effect]) -> None:
    """What was started anew does not live: the others of its kind are better off as they are."""
    kind, waiting = _kind(state, worker), state.supervision.waiting
    spared = [name for name in waiting if name in state.workers and _kind(state, state.workers[name]) == kind]
    for name in spared:
        del waiting[name]
    if spared:
        out.append(Noted("restart.halted", {"kind": kind, "worker": worker.name, "spared": len(spared)}))


def _replace(state: State, worker: Worker, wanted: Wish, out: list[Effect]) -> None:
    out.append(Noted("worker.recycling", {"worker": worker.name, "reason": wanted.reason}))
    if worker.state in (st.QUARANTINED, st.GONE, st.PAUSED):
        worker.restarts_s = []  # the operator has changed something: its crashes are forgiven
        spawn(state, worker, out)
        reckon_kinds_out(state, out)
    elif worker.state != st.DYING:  # else its next incarnation is on the way
        leave(state, worker, wanted, out)


def leave(state: State, worker: Worker, wanted: Wish, out: list[Effect]) -> None:
    """Have a living worker come to its end while the fleet goes on."""
    worker.leaving = wanted.reason
    worker.leave_grace_s = NO_DEADLINE_S if wanted.grace_s is None else wanted.grace_s
    agents = [state.agents[name] for name in worker.agents]
    if all(agent.state == st.ABSENT for agent in agents):  # holds nothing: it need not get ready first
        out.append(KillWorker(worker.name, worker.incarnation, SIGTERM, False))
    for agent in agents:
        tell_to_drain(state, agent, worker.leave_grace_s, out)


# ------------------------------------------------------------------ what makes a worker old


def count_attempt(state: State, agent: Agent) -> None:
    """An attempt ended here."""
    worker = state.workers[agent.worker]
    worker.attempts += 1
    if worker.attempts == worker.child.max_tasks:
        wish(state, worker, "max_tasks")


def age_due(state: State, name: str, _out: list[Effect]) -> None:
    """A worker has reached its age, if it is still the one that the timer was set for."""
    worker = state.workers.get(name)
    if worker is not None and worker.state in (st.STARTING, st.ALIVE) and state.now_s >= old_at_s(worker):
        wish(state, worker, "max_age")


def old_at_s(worker: Worker) -> float:
    """When a worker reaches its age."""
    return worker.born_s + worker.child.max_age_s


def is_age_timer_stale(state: State, due_s: float, name: str) -> bool:
    """Whether the worker that this timer was set for is not there any more."""
    worker = state.workers.get(name)
    return worker is None or old_at_s(worker) != due_s


def _outgrown(state: State, fact: WorkerOutgrown, _out: list[Effect]) -> None:
    worker = state.workers.get(fact.worker)
    if worker is not None and worker.incarnation == fact.incarnation and worker.state == st.ALIVE:
        wish(state, worker, f"max_rss: {fact.rss_bytes} bytes")


def _restart_requested(state: State, fact: RestartRequested, out: list[Effect]) -> None:
    for name in fact.workers:
        worker = state.workers.get(name)
        if worker is None:
            continue
        if worker.is_team:
            is_whole = name in fact.names or _kind(state, worker) in fact.names
            out.append(Post(name, Restart(names=[] if is_whole else fact.names, grace_s=fact.grace_s)))
        else:
            wish(state, worker, ASKED, fact.grace_s)


def _hook_ended(state: State, fact: HookEnded, _out: list[Effect]) -> None:
    hooks = state.supervision.hooks
    before = hooks.get(fact.hook)
    hooks[fact.hook] = HookRun(state.now_s, fact.outcome, fact.detail, 1 if before is None else before.runs + 1)


HANDLERS: Handlers = {
    RestartRequested: _restart_requested,
    WorkerOutgrown: _outgrown,
    HookEnded: _hook_ended,
}
