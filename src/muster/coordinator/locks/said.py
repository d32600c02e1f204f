"""The facts about locks, see `coordinator.events`."""

from __future__ import annotations

import msgspec

from muster.coordinator.fact import Fact


class LockAsked(Fact, frozen=True, tag=45):
    """An agent wants a lock, or asks again for one. `ask_id`: the ask to be answered when it is decided; "" if none is.

    The process (`pid`, `start_time`) in `namespace` is its holder; with its death the lock is free.
    """

    agent: str
    lock_id: str
    names: list[str]
    ttl_s: float
    wait_s: float | None
    ask_id: str = ""
    within: list[str] = msgspec.field(default_factory=list)
    pid: int = 0
    start_time: int = 0
    namespace: int = 0


class LockRenewed(Fact, frozen=True, tag=46, gc=False):
    """A holder said that it holds on."""

    agent: str
    lock_id: str


class LockReleased(Fact, frozen=True, tag=47, gc=False):
    """A holder let go, or whoever waited waits no longer."""

    agent: str
    lock_id: str


class HoldersGone(Fact, frozen=True, tag=48):
    """Processes that held locks, or waited for some, have ended: (pid, start time)."""

    processes: list[tuple[int, int]]
