"""The lives of workers and agents as tables, as the coordinator knows them by proof and by their own word.

The tables are data: the diagrams in the docs are drawn from them, and a move that is not in them is a bug that stops the coordinator
instead of a worker that is silently lost. What `status` shows besides (busy, waiting, limited, suspect) is said by the agents' pages.
"""

from __future__ import annotations

import msgspec

#: States of a worker. `dying`: reaped, but some of its process tree lives. `waiting`: for its next start. `gone`: not to be started again.
ABSENT, STARTING, ALIVE, DYING, PAUSED, GONE, QUARANTINED = (
    "absent",
    "starting",
    "alive",
    "dying",
    "waiting",
    "gone",
    "quarantined",
)
#: States in which something of it lives.
LIVE = (STARTING, ALIVE, DYING)
#: States of an agent, besides `absent`.
READY, DRAINING, DRAINED = "ready", "draining", "drained"

#: (state, cause) -> state. `spawned` from `gone` or `quarantined`: the operator wants it back.
WORKER_TRANSITIONS: dict[tuple[str, str], str] = {
    (ABSENT, "spawned"): STARTING,
    (PAUSED, "spawned"): STARTING,
    (GONE, "spawned"): STARTING,
    (QUARANTINED, "spawned"): STARTING,
    (STARTING, "seen"): ALIVE,
    (ALIVE, "seen"): ALIVE,
    (DYING, "seen"): DYING,
    (STARTING, "reaped"): DYING,
    (ALIVE, "reaped"): DYING,
    (DYING, "reaped"): DYING,
    (STARTING, "proven_dead"): ABSENT,
    (ALIVE, "proven_dead"): ABSENT,
    (DYING, "proven_dead"): ABSENT,
    (ABSENT, "backed_off"): PAUSED,
    (ABSENT, "crash_looped"): QUARANTINED,
    (ABSENT, "retired"): GONE,
    (PAUSED, "retired"): GONE,
}

#: (state, cause) -> state.
AGENT_TRANSITIONS: dict[tuple[str, str], str] = {
    (ABSENT, "joined"): READY,
    (READY, "told_to_drain"): DRAINING,
    (DRAINING, "left"): DRAINED,
    (READY, "left"): DRAINED,
    (READY, "worker_died"): ABSENT,
    (DRAINING, "worker_died"): ABSENT,
    (DRAINED, "worker_died"): ABSENT,
}
#: Moves of an agent without their causes; staying is none.
AGENT_MOVES = frozenset((old, new) for (old, _), new in AGENT_TRANSITIONS.items())


class Wish(msgspec.Struct, array_like=True, frozen=True):
    """That a worker be replaced: why, and how long its agents may go on with what they do (None: as long as it takes)."""

    reason: str
    grace_s: float | None = None


class Past(msgspec.Struct, array_like=True, frozen=True):
    """Two counts of what the fleet has no more: a worker's incarnations and restarts, an agent's tasks done and failed."""

    first: int
    second: int


class HookRun(msgspec.Struct, array_like=True, frozen=True):
    """How a hook ended last."""

    at_s: float
    outcome: str
    detail: str = ""
    runs: int = 1


class Supervision(msgspec.Struct, array_like=True):
    """What is known of workers beyond their own lives."""

    #: Worker -> why it is to be replaced, in the order in which they were asked for.
    waiting: dict[str, Wish] = {}
    #: Workers that are drained, or started anew and not ready yet.
    away: list[str] = []
    recycled: int = 0
    past_workers: dict[str, Past] = {}
    past_agents: dict[str, Past] = {}
    #: Kind -> how many agents the operator wants of it, where that is not what the fleet began with.
    scaled: dict[str, int] = {}
    hooks: dict[str, HookRun] = {}
