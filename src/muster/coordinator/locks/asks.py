"""Asks about locks: what may be asked of them, and the answers. See `coordinator.asks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.coordinator.asks import Answer, Ask, Rule, Rules
from muster.coordinator.events import LockAsked, LockReleased, LockRenewed
from muster.coordinator.locks.facts import lost, standing, who
from muster.core import limits
from muster.core.globs import is_glob, normal
from muster.core.protocol import Done, LockAcquire, LockListAsk, LockRelease, LockRenew
from muster.errors import LockTableFullError, UsageError

if TYPE_CHECKING:
    import msgspec

    from muster.coordinator.locks.table import Lock, LockTable
    from muster.coordinator.state import State

#: Locks that one answer lists; it must fit into a message.
LISTED_MAX = 500
_WAIT_S_MAX = 365 * 86_400.0


def _acquire(state: State, body: LockAcquire, ask: Ask) -> Answer:
    names = list(dict.fromkeys(map(normal, body.names)))
    if not 1 <= len(names) <= limits.LOCK_NAMES_MAX:
        raise UsageError(f"a lock has 1 to {limits.LOCK_NAMES_MAX} names, not {len(names)}")
    if not limits.LOCK_TTL_S_MIN <= body.ttl_s <= limits.LOCK_TTL_S_MAX:
        raise UsageError(
            f"a lease holds for {limits.LOCK_TTL_S_MIN:g} to {limits.LOCK_TTL_S_MAX:g} s, not for {body.ttl_s:g} s"
        )
    if body.wait_s is not None and not 0 <= body.wait_s <= _WAIT_S_MAX:
        raise UsageError(f"a lock can be waited for 0 to {_WAIT_S_MAX:g} s, not {body.wait_s:g} s")
    if not 16 <= len(body.lock_id) <= 64 or len(body.within) > limits.LOCKS_PER_AGENT_MAX:
        raise UsageError("a lock's id has 16 to 64 characters, and it is asked for within few others")
    if state.locks.find(body.lock_id) is None:
        _check_room(state.locks, ask.sender, sum(map(is_glob, names)))
    fact = LockAsked(
        ask.now_s, ask.sender, body.lock_id, names, body.ttl_s, body.wait_s, ask.id if body.patient else "", body.within,
        body.pid, body.start_time, body.namespace,
    )  # fmt: skip

    def reply(after: State) -> msgspec.Struct | None:
        lock = _own(after, body.lock_id, ask)
        if lock is None:
            return after.lock_refusals.pop(body.lock_id, None) or lost(body.lock_id)
        if body.patient and lock.ask_id == ask.id:
            return None  # the machine has answered, or will
        return standing(after, lock)

    return Answer([fact], reply)


def _check_room(table: LockTable, agent: str, globs: int) -> None:
    """Raise LockTableFullError if one lock more, with so many globs, is one too many."""
    bounds = (
        ("locks", table.count_of(agent), 1, limits.LOCKS_PER_AGENT_MAX, agent),
        ("locks", len(table), 1, limits.LOCKS_MAX, "the fleet"),
        ("globs", table.globs_of(agent), globs, limits.LOCK_GLOBS_PER_AGENT_MAX, agent),
        ("globs", table.globs_of(), globs, limits.LOCK_GLOBS_MAX, "the fleet"),
    )
    for what, there, more, most, whose in bounds:
        if more and there + more > most:
            raise LockTableFullError(
                f"{whose} has {there} {what} in its locks, and {most} is the most; nothing was locked",
                retry_after_s=1.0,
            )


def _renew(_state: State, body: LockRenew, ask: Ask) -> Answer:
    def reply(after: State) -> msgspec.Struct:
        lock = _own(after, body.lock_id, ask)
        return lost(body.lock_id) if lock is None else standing(after, lock)

    return Answer([LockRenewed(ask.now_s, ask.sender, body.lock_id)], reply)


def _release(_state: State, body: LockRelease, ask: Ask) -> Answer:
    return Answer([LockReleased(ask.now_s, ask.sender, body.lock_id)])


def _list(_state: State, _body: LockListAsk, ask: Ask) -> Answer:
    def reply(after: State) -> msgspec.Struct:
        locks = list(after.locks.locks.values())
        return Done(
            ok=True,
            facts={"locks": [_row(after, lock, ask.now_s) for lock in locks[:LISTED_MAX]], "total": len(locks)},
        )

    return Answer((), reply)


def _own(state: State, lock_id: str, ask: Ask) -> Lock | None:
    lock = state.locks.find(lock_id)
    return lock if lock is not None and lock.agent == ask.sender else None


def _row(state: State, lock: Lock, now_s: float) -> dict[str, Any]:
    left_s = None if lock.due_s is None else max(0.0, round(lock.due_s - now_s, 3))
    waits_for = None if lock.token else state.locks.first_blocker(lock)
    return {
        "names": lock.names,
        "agent": lock.agent,
        "state": "held" if lock.token else "waiting",
        "token": lock.token or None,
        "since_s": max(0.0, round(now_s - lock.since_s, 3)),
        "left_s": left_s,
        "ttl_s": lock.ttl_s,
        "pid": lock.pid or None,
        "waits_for": None if waits_for is None else who(waits_for),
    }


RULES: Rules = {
    LockAcquire: Rule(_acquire, from_anybody=True),
    LockRenew: Rule(_renew, from_anybody=True),
    LockRelease: Rule(_release, from_anybody=True),
    LockListAsk: Rule(_list, from_anybody=True),
}
