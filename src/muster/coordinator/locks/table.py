"""The line of a fleet's locks: who holds what and who waits for it. Pure data, no clock; `facts` brings it into the machine.

There is one line for all locks. A lock is held exactly when nothing that stands before it in the line conflicts with it. So all of its
names are had at once or none is; between any two that conflict, first come is first served, and nobody starves; those that do not
conflict never wait for each other. That a lock waits is noted at the last of those it waits for, and looked at again when that one goes.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import msgspec

from muster.core.globs import conflict, is_glob


class Lock(msgspec.Struct, array_like=True):
    """A lock that is held (`token` is its fencing token) or waited for (`token` is 0). `place`: its number in the line, for ever.

    `due_s`: when it expires, or is waited for no longer. `armed_s`: when a timer looks at it. `ask_id`: the ask that is answered when it
    is decided. `within`: ids of the locks that its asker cannot let go of before it is had.
    """

    place: int
    lock_id: str
    agent: str
    names: list[str]
    ttl_s: float
    wait_s: float | None
    since_s: float
    pid: int = 0
    start_time: int = 0
    namespace: int = 0
    within: list[str] = []
    token: int = 0
    due_s: float | None = None
    armed_s: float | None = None
    ask_id: str = ""
    #: It is overdue and was looked at once: a renewal that is stored already is read before the second look.
    doubted: bool = False

    @property
    def globs(self) -> int:
        """How many of its names stand for more than themselves."""
        return sum(map(is_glob, self.names))

    def conflicts(self, other: Lock) -> bool:
        """Whether the two cannot be held at once."""
        return any(conflict(ours, theirs) for ours in self.names for theirs in other.names)


class StoredLocks(msgspec.Struct, array_like=True):
    """A table as a snapshot holds it."""

    places: int = 0
    tokens: int = 0
    locks: list[Lock] = []


class LockTable:
    """The line. `remove` returns the locks that are free from then on, in their order; `grant` gives them their tokens."""

    def __init__(self, stored: StoredLocks | None = None) -> None:
        stored = stored or StoredLocks()
        self._places, self._tokens = stored.places, stored.tokens
        #: By place, in the order of the line.
        self.locks: dict[int, Lock] = {}
        self._by_id: dict[str, int] = {}
        self._by_name: dict[str, list[int]] = {}
        self._globs: list[int] = []
        self._waiting_for: dict[int, list[int]] = {}
        self._counts: dict[str, int] = {}
        for lock in stored.locks:
            self._insert(lock)
            if not lock.token:
                self._is_free(lock)

    def stored(self) -> StoredLocks:
        """For a snapshot; a table made of it decides alike for ever."""
        return StoredLocks(self._places, self._tokens, list(self.locks.values()))

    def __len__(self) -> int:
        return len(self.locks)

    def find(self, lock_id: str) -> Lock | None:
        """The lock of that id, held or waited for."""
        place = self._by_id.get(lock_id)
        return None if place is None else self.locks[place]

    def count_of(self, agent: str) -> int:
        """Locks that an agent holds or waits for."""
        return self._counts.get(agent, 0)

    def globs_of(self, agent: str | None = None) -> int:
        """Globs in the line, of one agent or of all."""
        locks = (self.locks[place] for place in self._globs)
        return sum(lock.globs for lock in locks if agent in (None, lock.agent))

    def next_place(self) -> int:
        """A place behind everybody."""
        self._places += 1
        return self._places

    def add(self, lock: Lock) -> bool:
        """Let a lock stand in line, at its own new place. True if it is free; then it is held once `grant` was called."""
        self._insert(lock)
        return self._is_free(lock)

    def grant(self, lock: Lock, now_s: float) -> None:
        """Give a free lock to its asker, with a token greater than all before."""
        self._tokens += 1
        lock.token, lock.since_s, lock.due_s, lock.doubted = self._tokens, now_s, now_s + lock.ttl_s, False

    def remove(self, lock: Lock) -> list[Lock]:
        """Take a lock out of the line. Those that are free now, in the order of the line; each must be granted."""
        del self.locks[lock.place], self._by_id[lock.lock_id]
        for name in lock.names:
            places = self._by_name[name]
            places.remove(lock.place)
            if not places:
                del self._by_name[name]
        if lock.globs:
            self._globs.remove(lock.place)
        left = self._counts.pop(lock.agent) - 1
        if left:
            self._counts[lock.agent] = left
        waiting = sorted(self._waiting_for.pop(lock.place, ()))
        return [one for place in waiting if (one := self.locks.get(place)) is not None and self._is_free(one)]

    def blockers(self, lock: Lock) -> list[Lock]:
        """Everything before `lock` in the line that conflicts with it; empty means that it is free."""
        return [other for place, other in self.locks.items() if place < lock.place and lock.conflicts(other)]

    def first_blocker(self, lock: Lock) -> Lock | None:
        """The first in the line that `lock` waits for."""
        return next(
            (other for place, other in self.locks.items() if place < lock.place and lock.conflicts(other)), None
        )

    def circle(self, lock: Lock) -> list[Lock]:
        """The circle that waiting for `lock` would close: what it waits for, what that waits for, … down to one of its own `within`.

        Empty if there is none. A lock that waits needs everything before it that conflicts to go, and a held one goes only after what its
        holder waits for was had; so any circle in this graph is a deadlock, and only a newcomer that holds something can close one (Holt,
        "Some Deadlock Properties of Computer Systems", 1972).
        """
        own = {place for lock_id in lock.within if (place := self._by_id.get(lock_id)) is not None}
        if not own:
            return []
        came_from: dict[int, int] = {}
        queue = [lock]
        for at in queue:
            for needed in self.blockers(at) if not at.token else self._waits_within(at):
                if needed.place in came_from or needed is lock:
                    continue
                came_from[needed.place] = at.place
                if needed.place in own:
                    return self._way(lock, needed.place, came_from)
                queue.append(needed)
        return []

    def _way(self, lock: Lock, place: int, came_from: dict[int, int]) -> list[Lock]:
        way = []
        while place != lock.place:
            way.append(self.locks[place])
            place = came_from[place]
        return way[::-1]

    def _waits_within(self, held: Lock) -> list[Lock]:
        return [other for other in self.locks.values() if not other.token and held.lock_id in other.within]

    def _insert(self, lock: Lock) -> None:
        self.locks[lock.place] = lock
        self._by_id[lock.lock_id] = lock.place
        for name in lock.names:
            insort(self._by_name.setdefault(name, []), lock.place)
        if lock.globs:
            self._globs.append(lock.place)
        self._counts[lock.agent] = self._counts.get(lock.agent, 0) + 1

    def _is_free(self, lock: Lock) -> bool:
        """Whether nothing before it conflicts; else it is noted at the last that does, or at one that surely goes no earlier."""
        blocker = self._last_blocker(lock)
        if blocker is not None:
            self._waiting_for.setdefault(blocker, []).append(lock.place)
        return blocker is None

    def _last_blocker(self, lock: Lock) -> int | None:
        found = -1
        for name in lock.names:
            places = self._by_name[name]
            at = bisect_left(places, lock.place)
            if at:
                found = max(found, places[at - 1])
        # Names that are equal are found above. Others meet only if one of the two is a glob.
        others = reversed(self.locks) if lock.globs else reversed(self._globs)
        for place in others:
            if place <= found:
                break
            if place < lock.place and lock.conflicts(self.locks[place]):
                return place
        return found if found >= 0 else None
