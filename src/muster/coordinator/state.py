"""Everything the coordinator knows, as plain data: `Machine` changes it, `snapshot`/`load` carry it over a restart.

Dicts keep the order of the plan, queues are heaps and deques: nothing depends on the order of a set or on a hash.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

import msgspec

from muster.coordinator.budget import Account, Budget
from muster.coordinator.dependencies import dependants_of
from muster.coordinator.events import Plan
from muster.coordinator.holders import Ended, Holders
from muster.coordinator.kept import Kept
from muster.coordinator.limit_facts import LimitPause
from muster.coordinator.lives import (
    ABSENT,
    ALIVE,
    DRAINED,
    DYING,
    GONE,
    LIVE,
    PAUSED,
    QUARANTINED,
    READY,
    STARTING,
    WORKER_TRANSITIONS,
    Supervision,
)
from muster.coordinator.locks.table import LockTable, StoredLocks
from muster.coordinator.routing import kinds_for
from muster.coordinator.tasks import OPEN, Outcomes, Task
from muster.coordinator.tokens import Tokens
from muster.core.protocol import Done
from muster.core.spec import ChildSpec

#: Version of the snapshot and of the facts. A log of another version is refused.
FORMAT = 1

# Phases of a fleet.
WAITING, RUNNING, DRAINING, ENDED = "waiting", "running", "draining", "ended"
# States of workers and agents stand in `lives`, with the moves between them.
__all__ = [
    "ABSENT", "ALIVE", "DRAINED", "DRAINING", "DYING", "ENDED", "FORMAT", "GONE", "LIVE", "PAUSED", "QUARANTINED", "READY", "RUNNING",
    "STARTING", "WAITING", "Agent", "Counters", "Ending", "LatencyHistogram", "Snapshot", "State", "Worker", "load", "snapshot",
]  # fmt: skip


class Worker(msgspec.Struct, array_like=True):
    """One worker of the plan, whatever process it is at the moment."""

    name: str
    agents: list[str]
    restart: Literal["always", "on_failure", "never"]
    state: str = ABSENT
    incarnation: int = 0
    pid: int = 0
    start_time: int = 0
    restart_at_s: float = 0.0
    #: Times of the restarts within the current period.
    restarts_s: list[float] = []
    restarts: int = 0
    last_exit: str = ""
    #: How it is supervised.
    child: ChildSpec = ChildSpec()
    #: When this incarnation was asked for, and by when its agents must have joined; 0: they have.
    born_s: float = 0.0
    ready_by_s: float = 0.0
    #: It was not ready in time once; whether it is given up on that is decided a moment later.
    is_doubted: bool = False
    #: Why it was killed by the coordinator; "" if it was not.
    fault: str = ""
    #: Why it is being drained while the fleet goes on; "" if it is not.
    leaving: str = ""
    #: Attempts that ended in this incarnation.
    attempts: int = 0
    #: Its process coordinates a team: its death frees nothing, because the team's workers live on.
    is_team: bool = False
    #: Slots of the team when all of its agents are there; whether none of its workers will run again by itself; how many agents it has.
    slots: int = 1
    is_out: bool = False
    size: int = 1

    #: Time that its agents have for what they do while it is leaving.
    leave_grace_s: float = 0.0

    def move(self, cause: str) -> None:
        """Change state as the table says. Raises KeyError for a move that is not in it."""
        self.state = WORKER_TRANSITIONS[self.state, cause]


class Agent(msgspec.Struct, array_like=True):
    """One identity. `held`: number -> attempt in the order of assignment; the first `slots` of them run, the rest waits there."""

    name: str
    kind: str
    worker: str
    state: str = ABSENT
    slots: int = 1
    held: dict[int, int] = {}
    #: False from a roll call until its answer: what it holds is not known for sure, so nothing new is assigned to it.
    confirmed: bool = True
    in_idle: bool = False
    in_busy: bool = False
    done: int = 0
    failed: int = 0
    #: When an attempt last ended here: what was prefetched cannot have begun before.
    freed_s: float = 0.0
    #: It goes for good once it has drained: the fleet was made smaller.
    is_retiring: bool = False


class Counters(msgspec.Struct, array_like=True):
    """What was counted since the store was made."""

    submitted: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    attempts_failed: int = 0
    worker_deaths: int = 0
    reassigned: int = 0
    handed_back: int = 0
    stale_refused: int = 0
    restarts: int = 0
    coordinator_restarts: int = 0
    cancelled: int = 0
    retried: int = 0
    forged_refused: int = 0
    limited: int = 0


class Ending(msgspec.Struct, array_like=True):
    """How and why the fleet is coming to its end."""

    reason: str = ""
    text: str = ""
    now: bool = False
    error: str | None = None
    deadline_s: float | None = None
    killed: bool = False
    began_s: float = 0.0
    #: `farewell.settled` when it began.
    settled_before: tuple[int, int, int] = (0, 0, 0)
    killed_workers: int = 0


class LatencyHistogram:
    """Counts in buckets that grow by 2^(1/8): a quantile is at most 4.5 % off, whatever the scale (as HdrHistogram does, G. Tene)."""

    STEPS = 8
    SMALLEST_S = 1e-5
    __slots__ = ("counts",)

    def __init__(self, counts: list[int] | None = None) -> None:
        self.counts = counts or [0] * (36 * self.STEPS)

    def add(self, value_s: float) -> None:
        """Count one value; what is beyond the ends is counted at the ends (10 µs, a week)."""
        at = int(math.log2(value_s / self.SMALLEST_S) * self.STEPS) if value_s > self.SMALLEST_S else 0
        self.counts[min(at, len(self.counts) - 1)] += 1

    def quantile_s(self, q: float) -> float | None:
        """The value that a share `q` of all values does not exceed; None if there is none."""
        total = sum(self.counts)
        if not total:
            return None
        rank, seen = q * total, 0
        for at, count in enumerate(self.counts):
            seen += count
            if seen >= rank and count:
                return float(self.SMALLEST_S * 2 ** ((at + 0.5) / self.STEPS))
        return None  # pragma: no cover - the loop reaches the total


class State:
    """All of it. Fields are changed by `Machine` only."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.phase = WAITING
        self.plan = plan or Plan(workers=[])
        self.started_s = 0.0
        self.life = 0  # how often a spawner started this store
        self.now_s = 0.0
        self.tasks: dict[int, Task] = {}
        self.outcomes = Outcomes()
        self.counters = Counters()
        self.workers: dict[str, Worker] = {}
        self.agents: dict[str, Agent] = {}
        #: Route -> places of the tasks that wait there, as a heap; route -> the kinds that may do them (see `routing`).
        self.queues: dict[str, list[int]] = {"": []}
        self.routes: dict[str, list[str]] = {"": []}
        #: Open task -> those that come after it.
        self.dependants: dict[int, dict[int, None]] = {}
        #: What ended without success, who held what has ended, and how often a task was retried after its end.
        self.kept = Kept()
        self.holders = Holders()
        self.retries: dict[int, int] = {}
        #: Nothing new is assigned to anybody, or to these kinds.
        self.is_paused = False
        self.kinds_paused: list[str] = []
        self.kinds: list[str] = []
        self.idle: dict[str, deque[str]] = {}
        self.busy: dict[str, deque[str]] = {}
        #: (due, what, key): "task" number, "worker" name, "kill" or "give_up" of a drain. Checked when due, never removed early.
        self.timers: list[tuple[float, str, Any]] = []
        self.queued = 0
        self.live_workers = 0
        #: Agents that have joined and are not draining; tasks in the hands of agents.
        self.ready = 0
        self.held = 0
        #: Kinds none of whose workers will ever run again.
        self.kinds_out: list[str] = []
        self.input_ended = False
        self.input_total: int | None = None
        self.admission_open = True
        self.roll = 0
        self.ending = Ending()
        self.ready_s: float | None = None
        self.attempt_mean_s: float | None = None
        self.latency = LatencyHistogram()
        self.results_base_bytes = 0
        #: Teams that were given up and are not yet at their end -> their heirs.
        self.dissolving: dict[str, list[str]] = {}
        #: Of a team: the attempts that it has given back to the root.
        self.tokens = Tokens()
        #: Ids of the newest messages that became tasks, and their numbers.
        self.sources: dict[str, int] = {}
        self.locks = LockTable()
        self.supervision = Supervision()
        #: Limits that are paused, by name.
        self.limit_pauses: dict[str, LimitPause] = {}
        #: What was spent, and budgets that the operator has changed, by kind and ("*") in all.
        self.spent: dict[str, Account] = {}
        self.budgets: dict[str, Budget] = {}
        #: Asks for locks that were refused and not told yet, by lock id. No decision depends on them.
        self.lock_refusals: dict[str, Done] = {}


class Snapshot(msgspec.Struct, array_like=True):
    """The state as it is stored."""

    format: int
    scalars: dict[str, Any]
    plan: Plan
    tasks: list[Task]
    outcomes: bytes
    counters: Counters
    workers: list[Worker]
    agents: list[Agent]
    queues: dict[str, list[int]]
    idle: dict[str, list[str]]
    busy: dict[str, list[str]]
    timers: list[tuple[float, str, int | str]]
    ending: Ending
    latency: list[int]
    tokens: bytes = b""
    locks: StoredLocks = msgspec.field(default_factory=StoredLocks)
    supervision: Supervision = msgspec.field(default_factory=Supervision)
    kept: list[Task] = []
    ended: list[Ended] = []
    limit_pauses: dict[str, LimitPause] = msgspec.field(default_factory=dict)
    spent: dict[str, Account] = msgspec.field(default_factory=dict)
    budgets: dict[str, Budget] = msgspec.field(default_factory=dict)


_SCALARS = (
    "phase", "started_s", "life", "now_s", "live_workers", "input_ended", "input_total", "admission_open", "roll", "ready_s",
    "attempt_mean_s", "results_base_bytes", "ready", "held", "kinds_out", "sources",
    "retries", "is_paused", "kinds_paused",
    "dissolving",
)  # fmt: skip
_decoder = msgspec.msgpack.Decoder(Snapshot)


def snapshot(state: State) -> bytes:
    """The state as bytes; `load` gives an equal state, equal also in every future decision."""
    return msgspec.msgpack.encode(
        Snapshot(
            format=FORMAT,
            scalars={name: getattr(state, name) for name in _SCALARS},
            plan=state.plan,
            tasks=list(state.tasks.values()),
            outcomes=bytes(state.outcomes.codes),
            counters=state.counters,
            workers=list(state.workers.values()),
            agents=list(state.agents.values()),
            queues=state.queues,
            idle={kind: list(names) for kind, names in state.idle.items()},
            busy={kind: list(names) for kind, names in state.busy.items()},
            timers=state.timers,
            ending=state.ending,
            latency=state.latency.counts,
            tokens=state.tokens.to_bytes(),
            locks=state.locks.stored(),
            supervision=state.supervision,
            kept=list(state.kept),
            ended=state.holders.stored(),
            limit_pauses=state.limit_pauses,
            spent=state.spent,
            budgets=state.budgets,
        )
    )


def load(data: bytes) -> State:
    """The state that `snapshot` wrote. Raises msgspec.ValidationError or ValueError for anything else."""
    stored = _decoder.decode(data)
    if stored.format != FORMAT:
        raise ValueError(f"the snapshot has format {stored.format}, this version reads {FORMAT}")
    state = State(stored.plan)
    for name, value in stored.scalars.items():
        setattr(state, name, value)
    state.tasks = {task.number: task for task in stored.tasks}
    state.outcomes = Outcomes(stored.outcomes)
    state.counters, state.ending = stored.counters, stored.ending
    state.workers = {worker.name: worker for worker in stored.workers}
    state.agents = {agent.name: agent for agent in stored.agents}
    state.queues = stored.queues
    state.kinds = list(stored.idle)
    state.idle = {kind: deque(names) for kind, names in stored.idle.items()}
    state.busy = {kind: deque(names) for kind, names in stored.busy.items()}
    state.timers = list(stored.timers)
    state.queued = sum(map(len, state.queues.values()))
    state.latency = LatencyHistogram(stored.latency)
    state.tokens = Tokens(stored.tokens)
    state.locks = LockTable(stored.locks)
    state.supervision = stored.supervision
    state.limit_pauses = stored.limit_pauses
    state.spent, state.budgets = stored.spent, stored.budgets
    state.routes = {route: kinds_for(state, route) for route in state.queues}
    state.dependants = dependants_of(state.tasks, lambda number: state.outcomes.get(number) == OPEN)
    state.kept, state.holders = Kept(stored.kept), Holders(stored.ended)
    return state
