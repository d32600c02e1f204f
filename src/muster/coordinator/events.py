"""The facts the coordinator's log is made of, and the effects it draws from them.

Facts, not decisions, are logged: what an agent, the spawner, the operator or the clock told. Every decision (who gets which task, when a
worker starts again, when the fleet ends) is derived from them by `machine.Machine.apply`, which is deterministic, so replaying the facts
yields the same decisions again and their effects are simply not carried out a second time. That keeps the log small (an assignment
costs no record) and makes "what is in the log" and "what was decided" one thing. A fact carries its time: the machine has no clock.

Facts are past tense, tagged arrays; a tag is never used for anything else again, new fields go to the end with a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muster.coordinator.budget import Budget, BudgetRaised, Spent
from muster.coordinator.effects import (
    Effect,
    Finish,
    FleetResized,
    Handlers,
    KillWorker,
    Noted,
    Post,
    Record,
    Rejected,
    SpawnWorker,
    WatchHolder,
)
from muster.coordinator.fact import Fact
from muster.coordinator.limit_facts import LimitPaused, LimitResumed
from muster.coordinator.locks.said import HoldersGone, LockAsked, LockReleased, LockRenewed
from muster.core import limits
from muster.core.protocol import TaskInput
from muster.core.spec import ChildSpec

#: Effects stand in a module of their own, and are read beside the facts that they follow from. So do the facts about locks.
__all__ = [
    "Budget",
    "BudgetRaised",
    "Effect",
    "Fact",
    "Finish",
    "FleetResized",
    "Handlers",
    "HoldersGone",
    "KillWorker",
    "LimitPaused",
    "LimitResumed",
    "LockAsked",
    "LockReleased",
    "LockRenewed",
    "Noted",
    "Post",
    "Record",
    "Rejected",
    "SpawnWorker",
    "Spent",
    "WatchHolder",
]

Outcome = Literal["done", "failed", "timeout", "cancelled", "killed", "died", "limited"]

# --------------------------------------------------------------------------- facts


class WorkerPlan(msgspec.Struct, array_like=True, frozen=True):
    """A worker and the agents it hosts, as (agent, kind)."""

    worker: str
    agents: list[tuple[str, str]]
    restart: Literal["always", "on_failure", "never"] = "always"
    #: None: by the plan's `restarts_max` and `restart_period_s`.
    child: ChildSpec | None = None
    #: What runs is the coordinator of a team; its one agent is the team, with so many slots once all `size` agents of it are there.
    is_team: bool = False
    slots: int = 1
    size: int = 1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What of the fleet's specification decisions depend on. It stands in the log, so replay needs no other file."""

    workers: list[WorkerPlan]
    #: A run ends by itself when its input has ended and every task has.
    run: bool = True
    attempts_max: int = 1
    deaths_max: int = limits.TASK_DEATHS_MAX
    backoff_s: float = 0.5
    backoff_max_s: float = 60.0
    halt: Literal["never", "soon", "now"] = "never"
    halt_after: int = 1
    grace_s: float = limits.GRACE_S
    prefetch: int = limits.PREFETCH
    restarts_max: int = limits.RESTARTS_MAX
    restart_period_s: float = limits.RESTART_PERIOD_S
    #: Who gives this coordinator its tasks and hears how each attempt ended; "": it is the root and decides about them itself.
    upstream: str = ""
    #: How many of the agents that are added later share a worker.
    agents_per_worker: int = 1
    #: Kind -> what its agents are good for.
    tags: dict[str, list[str]] = {}
    #: What may be spent, by kind and ("*") in all.
    budgets: dict[str, Budget] = {}


class FleetStarted(Fact, frozen=True, tag=1):
    """A spawner started its first coordinator: nothing of an earlier life of this store is alive (the spawner has proven it)."""

    plan: Plan
    #: Size of the results file at that moment: lines behind it are this life's.
    results_base_bytes: int = 0


class TasksSubmitted(Fact, frozen=True, tag=2):
    """Tasks came in. Numbers that are known already change nothing."""

    tasks: list[TaskInput]


class InputEnded(Fact, frozen=True, tag=3):
    """No further tasks will come."""

    total: int


class WorkerStarted(Fact, frozen=True, tag=4):
    """The spawner forked a worker."""

    worker: str
    incarnation: int
    pid: int
    start_time: int


class WorkerExited(Fact, frozen=True, tag=5):
    """A worker was reaped. Only with `survivors == 0` is its whole process tree proven dead; before that it holds its tasks."""

    worker: str
    incarnation: int
    exit_status: int | None
    signal: int | None
    survivors: int = 0


class AgentReady(Fact, frozen=True, tag=6):
    """An agent joined, or answered the roll call `nonce`; `holding`: the (number, attempt) it has in hand."""

    agent: str
    incarnation: int
    slots: int
    holding: list[tuple[int, int]] = msgspec.field(default_factory=list)
    nonce: int | None = None
    is_out: bool = False


class TaskEnded(Fact, frozen=True, tag=7, gc=False):
    """An attempt ended and its process tree is gone. `detail`: the end of what it said on failure.

    `retry_in_s` belongs to `limited`; `session` is what the next attempt goes on with.
    """

    agent: str
    number: int
    attempt: int
    incarnation: int
    outcome: Outcome
    exit_status: int | None = None
    signal: int | None = None
    detail: str = ""
    retry_in_s: float = 0.0
    session: str = ""
    tokens: int = 0
    cost_usd: float | None = None


class TaskRefused(Fact, frozen=True, tag=8, gc=False):
    """An agent handed an attempt back unstarted."""

    agent: str
    number: int
    attempt: int
    incarnation: int
    reason: Literal["drain", "stale"]


class AgentDrained(Fact, frozen=True, tag=9, gc=False):
    """An agent said its last word of this incarnation."""

    agent: str
    incarnation: int


class StopRequested(Fact, frozen=True, tag=10):
    """Somebody who may asked for the end of the fleet."""

    mode: Literal["drain", "now"]
    reason: str = ""


class TimePassed(Fact, frozen=True, tag=11, gc=False):
    """A moment that `Machine.due_s` named has come. Only such moments are logged."""


class Recovered(Fact, frozen=True, tag=12):
    """The coordinator was started again below the same spawner, which lists what is `alive`: (worker, incarnation, pid, start time).

    `exited`: (worker, incarnation) whose `WorkerExited` follows. What is in neither list was never forked.
    """

    alive: list[tuple[str, int, int, int]]
    exited: list[tuple[str, int]]
    coordinator_restarts: int


class AdmissionChanged(Fact, frozen=True, tag=13, gc=False):
    """The way to the operator is jammed (False: assign nothing) or free again."""

    is_open: bool


class RecordingFailed(Fact, frozen=True, tag=14):
    """The results file cannot be written: what is not recorded is not done, so the run stops."""

    message: str


class ResultsRebased(Fact, frozen=True, tag=15, gc=False):
    """Lines of the results file behind `results_base_bytes` are this life's (the file is about to be rewritten)."""

    results_base_bytes: int


class TaskImpossible(Fact, frozen=True, tag=16, gc=False):
    """This attempt can be given to no agent (its message would be too large), and no other attempt can."""

    number: int
    attempt: int
    reason: str


class TasksCancelled(Fact, frozen=True, tag=17):
    """The operator does not want these tasks any more. Those that are over change nothing."""

    numbers: list[int]
    reason: str = ""


class TasksRetried(Fact, frozen=True, tag=18):
    """The operator wants these kept tasks tried again, in this order, with their attempts counted anew."""

    numbers: list[int]


class TasksForgotten(Fact, frozen=True, tag=19):
    """The operator wants these tasks kept no longer."""

    numbers: list[int]


class AssignmentPaused(Fact, frozen=True, tag=20):
    """The operator wants nothing new assigned to agents of these kinds; none named: to nobody."""

    kinds: list[str]


class AssignmentResumed(Fact, frozen=True, tag=21):
    """The operator wants these kinds to work again; none named: everybody."""

    kinds: list[str]


class TasksEntrusted(Fact, frozen=True, tag=35):
    """The root gave this team attempts to work on, numbered by `TaskInput.attempt`. Those that are known change nothing."""

    tasks: list[TaskInput]


class TaskRecalled(Fact, frozen=True, tag=36, gc=False):
    """The root wants this attempt ended."""

    number: int
    attempt: int


class DrainOrdered(Fact, frozen=True, tag=37, gc=False):
    """The root wants this team to come to an end within `deadline_s`."""

    now: bool
    deadline_s: float


class WorkerOutgrown(Fact, frozen=True, tag=25, gc=False):
    """A worker's own process takes more memory than its kind is to have."""

    worker: str
    incarnation: int
    rss_bytes: int


class RestartRequested(Fact, frozen=True, tag=26):
    """The operator wants these workers replaced, few at a time. `grace_s`: time for what runs there; None: as long as it takes."""

    workers: list[str]
    grace_s: float | None = None
    #: What a root passes on to its teams, each of which knows its own agents; none: all of them.
    names: list[str] = msgspec.field(default_factory=list)


class FleetScaled(Fact, frozen=True, tag=27):
    """The operator wants `count` agents of `kind`: these `agents`, for the new ones of which there are `workers`."""

    kind: str
    count: int
    workers: list[WorkerPlan]
    agents: list[str]


class HookEnded(Fact, frozen=True, tag=28, gc=False):
    """A hook has run. `outcome`: done, failed or timeout; `detail`: why, or the end of what it said."""

    hook: str
    outcome: str
    detail: str = ""


class TeamDissolved(Fact, frozen=True, tag=38, gc=False):
    """A team that was given up is at its end: what it still holds never came to it, or (`reason`) is proven dead with its workers."""

    team: str
    reason: str = ""


class WorkersAdopted(Fact, frozen=True, tag=39):
    """The root gave this team workers of another one, which have ended: each with the last incarnation that it had."""

    workers: list[tuple[WorkerPlan, int]]


AnyFact = (
    FleetStarted
    | TasksSubmitted
    | InputEnded
    | WorkerStarted
    | WorkerExited
    | AgentReady
    | TaskEnded
    | TaskRefused
    | AgentDrained
    | StopRequested
    | TimePassed
    | Recovered
    | AdmissionChanged
    | RecordingFailed
    | ResultsRebased
    | TaskImpossible
    | TasksCancelled
    | TasksRetried
    | TasksForgotten
    | AssignmentPaused
    | AssignmentResumed
    | TasksEntrusted
    | TaskRecalled
    | DrainOrdered
    | TeamDissolved
    | WorkersAdopted
    | LockAsked
    | LockRenewed
    | LockReleased
    | HoldersGone
    | WorkerOutgrown
    | RestartRequested
    | FleetScaled
    | HookEnded
    | LimitPaused
    | LimitResumed
    | Spent
    | BudgetRaised
)
