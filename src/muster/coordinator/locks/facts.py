"""What the machine does about locks: asked for, renewed, let go of, expired, freed by proof of death. Pure, like all of the machine.

A lease ends by its holder's word, by a proof that its holder is dead (the exit of its worker, or of the process it named), or because it
was not renewed for its whole time. Time is the coordinator's own: it begins anew with every coordinator, so that no jump of a clock ends a
lease. A holder that has stored a renewal in time does not lose its lease, however late the coordinator reads it: what is overdue is looked
at twice, and control messages that are stored already are read in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappush
from typing import TYPE_CHECKING, Any

from muster.coordinator.events import (
    Effect,
    Handlers,
    HoldersGone,
    LockAsked,
    LockReleased,
    LockRenewed,
    Noted,
    Post,
    WatchHolder,
)
from muster.coordinator.lives import LIVE
from muster.coordinator.locks.table import Lock
from muster.core.globs import conflict
from muster.core.names import HOLDER
from muster.core.protocol import Done
from muster.errors import LockDeadlockError, LockError, LockHeldError, LockLostError, LockTimeoutError

if TYPE_CHECKING:
    from muster.coordinator.state import State

#: Name of the timer of a lock in `State.timers`; its key is the lock's place.
TIMER = "lock"
#: Between the two looks at a lease that is overdue.
SECOND_LOOK_S = 0.5
#: Names that a sentence lists, and refusals that are kept until they are told; a turn makes no more.
_LISTED_MAX = 3
_REFUSALS_MAX = 512


def standing(state: State, lock: Lock) -> Done:
    """A lock as its asker is told about it."""
    if lock.token:
        return Done(ok=True, facts={"state": "held", "lock_id": lock.lock_id, "token": lock.token, "ttl_s": lock.ttl_s})
    ahead = len(state.locks.blockers(lock))
    facts: dict[str, Any] = {"state": "waiting", "lock_id": lock.lock_id, "ahead": ahead, **_holder_of(state, lock)}
    return Done(ok=True, facts=facts)


def who(lock: Lock) -> str:
    """Its holder, as people know it."""
    return f"process {lock.pid}" if lock.agent.startswith(HOLDER) and lock.pid else lock.agent


def refused(error: LockError) -> Done:
    """An error as an answer."""
    return Done(ok=False, code=error.code, message=error.message, facts=error.facts)


def lost(lock_id: str) -> Done:
    """The answer about a lock that there is not, or no longer."""
    return refused(
        LockLostError("the lock is over: it was not renewed in time, or its holder was given up", lock_id=lock_id)
    )


def free_agents(state: State, agents: Iterable[str], out: list[Effect]) -> None:
    """These agents are proven dead, with everything below them: nothing is held or waited for in their names."""
    gone = frozenset(agents)
    _free_all(state, [lock for lock in state.locks.locks.values() if lock.agent in gone], out)


def is_watched(state: State, lock: Lock) -> bool:
    """Whether the death of the process that it names frees a lock; of workers the spawner tells."""
    agent = state.agents.get(lock.agent)
    return bool(lock.pid) and (agent is None or state.workers[agent.worker].state not in LIVE)


def begin_again(state: State, out: list[Effect]) -> None:
    """A new coordinator, or a new life of the store: every time begins anew, and what may not have been told is told again."""
    for lock in state.locks.locks.values():
        if lock.token:
            lock.due_s, lock.doubted = state.now_s + lock.ttl_s, False
            _tell(lock, standing(state, lock), out)
        elif lock.wait_s is not None:
            lock.due_s = state.now_s + lock.wait_s
        lock.armed_s = None
        _arm(state, lock)


def due(state: State, place: int, out: list[Effect]) -> None:
    """A timer of a lock went off."""
    lock = state.locks.locks.get(place)
    if lock is None or lock.armed_s is None or lock.armed_s > state.now_s:
        return  # over, or another timer looks after it
    lock.armed_s = None
    assert lock.due_s is not None
    if lock.due_s > state.now_s:
        _arm(state, lock)
    elif not lock.token:
        error = LockTimeoutError(
            f"not free within {lock.wait_s:.3g} s: {_sentence(state, lock)}", **_holder_of(state, lock)
        )
        _tell(lock, refused(error), out)
        _free(state, lock, out)
    elif not lock.doubted:
        lock.doubted, lock.armed_s = True, state.now_s + SECOND_LOOK_S
        heappush(state.timers, (lock.armed_s, TIMER, lock.place))
    else:
        out.append(Noted("lock.expired", _noted(lock)))
        _free(state, lock, out)


def is_timer_stale(state: State, due_s: float, place: Any) -> bool:
    """Whether a timer has nothing to look at any more, so that nobody need wake for it."""
    lock = state.locks.locks.get(place)
    return lock is None or lock.armed_s != due_s


def _asked(state: State, fact: LockAsked, out: list[Effect]) -> None:
    table = state.locks
    known = table.find(fact.lock_id)
    if known is not None:  # asked again: it stands where it stood
        if known.agent == fact.agent and not known.token and fact.ask_id:
            known.ask_id = fact.ask_id
        return
    state.lock_refusals.pop(fact.lock_id, None)
    lock = Lock(
        place=table.next_place(), lock_id=fact.lock_id, agent=fact.agent, names=fact.names, ttl_s=fact.ttl_s, wait_s=fact.wait_s,
        since_s=state.now_s, pid=fact.pid, start_time=fact.start_time, namespace=fact.namespace, within=fact.within, ask_id=fact.ask_id,
    )  # fmt: skip
    if table.add(lock):
        lock.ask_id = ""  # answered like every ask, at the end of the turn
        _grant(state, lock, out)
    elif (error := _refusal(state, lock)) is not None:
        table.remove(lock)
        _remember(state, fact.lock_id, error)
        return
    elif lock.wait_s is not None:
        lock.due_s = state.now_s + lock.wait_s
        _arm(state, lock)
    if is_watched(state, lock):
        out.append(WatchHolder(lock.pid, lock.start_time, lock.namespace))


def _refusal(state: State, lock: Lock) -> LockError | None:
    """Why a lock that is not free cannot be waited for, if so."""
    if lock.wait_s == 0:
        return LockHeldError(_sentence(state, lock), **_holder_of(state, lock))
    circle = state.locks.circle(lock)
    if not circle:
        return None
    if len(circle) == 1:
        return LockDeadlockError(
            f"{_names(lock)} would wait for itself: what holds {_names(circle[0])} is waiting for it"
        )
    steps = ", ".join(f"{_names(one)} ({'held' if one.token else 'wanted'} by {who(one)})" for one in circle)
    return LockDeadlockError(
        f"waiting for {_names(lock)} would never end: it waits for {steps}, and that waits for this"
    )


def _renewed(state: State, fact: LockRenewed, _out: list[Effect]) -> None:
    lock = state.locks.find(fact.lock_id)
    if lock is not None and lock.token and lock.agent == fact.agent:
        lock.due_s, lock.doubted, lock.ask_id = state.now_s + lock.ttl_s, False, ""
        _arm(state, lock)


def _released(state: State, fact: LockReleased, out: list[Effect]) -> None:
    lock = state.locks.find(fact.lock_id)
    if lock is not None and lock.agent == fact.agent:
        _free(state, lock, out)


def _holders_gone(state: State, fact: HoldersGone, out: list[Effect]) -> None:
    gone = frozenset(fact.processes)
    _free_all(
        state, [lock for lock in state.locks.locks.values() if lock.pid and (lock.pid, lock.start_time) in gone], out
    )


def _free_all(state: State, locks: list[Lock], out: list[Effect]) -> None:
    for lock in sorted(locks, key=lambda lock: -lock.place):  # from behind: none of them is granted on the way
        if lock.token:
            out.append(Noted("lock.freed", _noted(lock)))
        _free(state, lock, out)


def _free(state: State, lock: Lock, out: list[Effect]) -> None:
    for next_one in state.locks.remove(lock):
        _grant(state, next_one, out)


def _grant(state: State, lock: Lock, out: list[Effect]) -> None:
    state.locks.grant(lock, state.now_s)
    _arm(state, lock)
    _tell(lock, standing(state, lock), out)


def _tell(lock: Lock, answer: Done, out: list[Effect]) -> None:
    if lock.ask_id:
        out.append(Post(lock.agent, answer, is_control=True, answers=lock.ask_id))


def _arm(state: State, lock: Lock) -> None:
    """See that a timer looks at the lock when it is due; one that goes off earlier arms the next."""
    if lock.due_s is not None and (lock.armed_s is None or lock.armed_s > lock.due_s):
        lock.armed_s = lock.due_s
        heappush(state.timers, (lock.due_s, TIMER, lock.place))


def _remember(state: State, lock_id: str, error: LockError) -> None:
    """Until the turn is over: then the asker is told. No decision depends on it, so it does not outlive the process."""
    refusals = state.lock_refusals
    refusals[lock_id] = refused(error)
    while len(refusals) > _REFUSALS_MAX:
        del refusals[next(iter(refusals))]


def _holder_of(state: State, lock: Lock) -> dict[str, Any]:
    """Facts about the first of those that keep a lock from being had."""
    first = state.locks.first_blocker(lock)
    if first is None:
        return {}
    return {
        "holder": who(first),
        "names": list(first.names),
        "held_s": round(state.now_s - first.since_s, 3) if first.token else None,
    }


def _sentence(state: State, lock: Lock) -> str:
    first = state.locks.first_blocker(lock)
    assert first is not None, "a lock that is free is held"
    met = [name for name in lock.names if any(conflict(name, other) for other in first.names)]
    if not first.token:
        return f"{_listed(met)} is wanted by {who(first)}, who came first"
    other = "" if set(met) & set(first.names) else f" as {_listed(first.names)}"
    return f"{_listed(met)} is held by {who(first)}{other}, for {state.now_s - first.since_s:.0f} s"


def _names(lock: Lock) -> str:
    return _listed(lock.names)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED_MAX])
    more = len(names) - _LISTED_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _noted(lock: Lock) -> dict[str, Any]:
    return {"names": list(lock.names), "holder": who(lock), "token": lock.token}


HANDLERS: Handlers = {
    LockAsked: _asked,
    LockRenewed: _renewed,
    LockReleased: _released,
    HoldersGone: _holders_gone,
}
