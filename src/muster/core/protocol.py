"""The messages muster's own processes send each other, one struct per message type.

They travel through lanes like any other message: `TYPES` maps the message type to the struct, bodies are msgpack. What the spawner says
stands in `orders`, because no message of a peer can give the kernel's proofs of life and death. See docs/protocol.md.

Text from a peer is data: a struct of this file is believed only from the sender its docstring names.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from muster.core.reports import AgentStatus, FleetStatus, MetricsSnapshot, Progress, StatusAsk, TeamReport, TeamStatus
from muster.core.requests import (
    CancelTasks,
    Done,
    ForgetTasks,
    ListTasks,
    LockAcquire,
    LockListAsk,
    LockRelease,
    LockRenew,
    Pause,
    Restart,
    Resume,
    RetryTasks,
    Scale,
    TaskFacts,
    TaskListing,
    TaskRequest,
)

#: Asks and reports stand in modules of their own.
__all__ = [
    "AgentStatus", "CancelTasks", "Done", "FleetStatus", "ForgetTasks", "ListTasks", "LockAcquire", "LockListAsk", "LockRelease",
    "LockRenew", "MetricsSnapshot", "Pause", "Progress", "Restart", "Resume", "RetryTasks", "Scale", "StatusAsk", "TaskFacts",
    "TaskListing", "TaskRequest", "TeamReport", "TeamStatus",
]  # fmt: skip

# --------------------------------------------------------------------------- bus: operator -> coordinator


class TaskInput(msgspec.Struct, array_like=True, frozen=True):
    """One unit of work: `number` is 1-based and unique in the fleet's life, `input` what the command or handler gets."""

    number: int
    input: Any
    kind: str = ""  # agent kind that may run it; "" = any
    timeout_s: float | None = None
    source: str = ""  # id of the message it came from, so that a redelivery makes no second task
    asker: str = ""  # who gets its end as a reply to that message; "" = nobody
    priority: int = 0  # -100 to 100, higher ones first; equal ones by number
    delay_s: float = 0.0  # it does not begin earlier than this after its submission
    after: list[int] = []  # numbers of tasks that must be done first, of this batch or known
    tags: list[str] = []  # its agent's kind has all of them
    attempts_max: int | None = None  # failed attempts before it is given up; None = the fleet's
    backoff_s: float | None = None  # first wait before it is tried again, doubled each time; None = the fleet's
    attempt: int = 0  # of a team's task: the token given by the root
    session: str = ""  # what the first attempt goes on with
    hops: int = 0  # one more than the message it came from; 0: it came from none


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """`task.submit`, anyone allowed -> coordinator. Stored in the log before it is acked; resubmitting a number changes nothing."""

    tasks: list[TaskInput]


class InputEnd(msgspec.Struct, frozen=True, kw_only=True):
    """`run.input_end`, operator -> coordinator: no further tasks will come; `total` were submitted (incl. resumed ones)."""

    total: int


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.stop`, operator -> coordinator, and a control message spawner -> coordinator.

    `drain`: stop admitting, let running tasks end until the deadline. `now`: kill running tasks, hand them back, end.
    """

    mode: Literal["drain", "now"]
    reason: str = ""


# --------------------------------------------------------------------------- bus: coordinator -> operator


class TaskOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`task.output`, coordinator -> operator: one ended task's output, whole. Sent after the result is stored, never before.

    `stdout`/`stderr` are complete, or empty with `*_file` naming a spool file that the operator copies and unlinks.
    """

    number: int
    attempt: int
    agent: str
    ok: bool
    exit_status: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_file: str | None = None
    stderr_file: str | None = None


class RunEnded(msgspec.Struct, frozen=True, kw_only=True):
    """`run.ended`, coordinator -> operator: the last message. `exit_status` is what the command line exits with."""

    exit_status: int
    reason: Literal["complete", "halted", "stopped", "error"]
    report: dict[str, Any]
    error: str | None = None


# --------------------------------------------------------------------------- bus: coordinator <-> agent


class Assign(msgspec.Struct, frozen=True, kw_only=True):
    """`task.assign`, coordinator -> agent: work on this attempt.

    Ignored (acked, and reported by a `Refused`) unless `incarnation` is the agent's own: an assignment meant for a dead
    incarnation must not run, its task has been given to somebody else.
    """

    number: int
    attempt: int
    incarnation: int
    input: Any
    timeout_s: float | None = None
    session: str = ""  # of an earlier attempt
    hops: int = 0  # one more than the message that led to the task; 0: there was none


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """`task.cancel`, coordinator -> agent: kill the attempt's process tree; it ends with a `Result(outcome="cancelled")`."""

    number: int
    attempt: int


class RollCall(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.roll_call`, coordinator -> agent, after a coordinator restart: answer with `Ready` (which says what you hold)."""

    nonce: int


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.drain`, coordinator -> agent: finish what runs, hand back what has not begun, then send `Drained` and end.

    `now`: kill what runs, too. The worker process ends when all its agents have drained. `incarnation`: whose end is meant; a later one
    reads the order, too, and is not concerned. 0: whoever reads it.
    """

    now: bool = False
    deadline_s: float = 10.0
    incarnation: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.ready`, agent -> coordinator: joined (or answers a roll call).

    `holding`: (number, attempt) of every assignment that runs or waits here. Because a lane keeps its order, results stored
    before this message have arrived before it. A team says it again whenever the slots of its living agents change (0: none lives);
    `is_out`: none of its workers will run again by itself.
    """

    incarnation: int
    pid: int
    slots: int
    holding: list[tuple[int, int]] = []
    nonce: int | None = None
    is_out: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`task.result`, agent -> coordinator: an attempt ended and its process tree is gone.

    Outcomes: `done`; `failed` (non-zero exit, exception); `timeout`; `cancelled`; `killed` (died by a signal nobody of muster
    sent: counts as failed); `died` (with its worker; said by a team of its agent, `error` tells how); `limited` (a vendor's limit
    was hit: counts as nothing, and is tried again after `resets_in_s`).
    Old or unknown attempts are refused as stale and counted. `started_unix_s` is wall time.
    """

    number: int
    attempt: int
    incarnation: int
    outcome: Literal["done", "failed", "timeout", "cancelled", "killed", "died", "limited"]
    exit_status: int | None = None
    signal: int | None = None
    value: Any = None
    error: dict[str, Any] | None = None  # {"type", "message", "traceback"} of a handler; {"code", "message"} of muster
    stdout: bytes = b""
    stdout_bytes: int = 0
    stdout_file: str | None = None
    stderr: bytes = b""
    stderr_bytes: int = 0
    stderr_file: str | None = None
    started_unix_s: float = 0.0
    duration_s: float = 0.0
    agent: str = ""  # said by a team: which of its agents worked on it
    session: str = ""  # of a coding command line: the next attempt goes on with it
    tokens: int = 0
    cost_usd: float | None = None
    resets_in_s: float | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """`task.refused`, agent -> coordinator: handed back unstarted (`drain`, `stale`); counts no attempt."""

    number: int
    attempt: int
    incarnation: int
    reason: Literal["drain", "stale"]


class ResultRefused(msgspec.Struct, frozen=True, kw_only=True):
    """`task.result.refused`, coordinator -> agent: a result came too late (`task.stale_attempt`): the attempt was over; it was counted."""

    number: int
    attempt: int
    code: str
    message: str


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.drained`, agent -> coordinator: the last message of this incarnation."""

    incarnation: int


class HealthChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`health.changed`, agent -> coordinator: the agent's own verdict changed."""

    incarnation: int
    verdict: Literal["healthy", "degraded", "unhealthy"]
    evidence: list[str] = []


class TeamAdopt(msgspec.Struct, frozen=True, kw_only=True):
    """`team.adopt`, root -> team: this worker of a team that was given up is yours now; `agents` are (agent, kind).

    It has ended; its next incarnation is higher than `incarnation`.
    """

    worker: str
    agents: list[tuple[str, str]]
    incarnation: int


class TeamNoted(msgspec.Struct, frozen=True, kw_only=True):
    """`team.noted`, team -> root: something a person may want to read about, for the event log."""

    event: str
    facts: dict[str, Any] = {}


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.ping`, coordinator -> agent, an ask; the reply is a `Pong`. Measures the round trip of the bus."""

    sent_ns: int


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.pong`, agent -> coordinator: the reply to a `Ping`."""

    sent_ns: int


# --------------------------------------------------------------------------- bus: anybody -> coordinator: limits


class LimitAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`limit.ask`, agent -> coordinator, an ask: credit of limit `name`, in units by meter. Answered when it can be spent."""

    name: str
    ask_id: str
    amounts: dict[str, int] = {}
    incarnation: int = 0  # a higher one ends what an earlier life of the agent asked for
    agent: str = ""  # for whom; believed from the proxy alone


class LimitGrant(msgspec.Struct, frozen=True, array_like=True):
    """`limit.grant`, coordinator -> agent, the reply: spend it until `spend_by_ns` (CLOCK_MONOTONIC of this machine), then settle it."""

    spend_by_ns: int
    is_probe: bool = False


class LimitSettle(msgspec.Struct, frozen=True, kw_only=True):
    """`limit.settle`, agent -> coordinator: what became of a grant, or (`unspent`) that nobody waits for it any more."""

    name: str
    ask_id: str
    outcome: Literal["ok", "unspent", "refused"]
    used: dict[str, int] | None = None
    resets_in_s: float | None = None
    why: str = ""
    agent: str = ""  # for whom it was spent, and what that cost; believed from the proxy alone
    tokens: int = 0
    cost_usd: float | None = None


# --------------------------------------------------------------------------- bus: anybody -> coordinator: locks


# --------------------------------------------------------------------------- bus: workers, replaced and counted


class Edges(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.edges`, coordinator -> agent: keys for writing to agents that joined the fleet after this one (agent -> key of the edge)."""

    keys: dict[str, bytes]


#: Message type -> struct of its body. The type of a message decides how its body is read.
TYPES: dict[str, type[msgspec.Struct]] = {
    "task.submit": Submit,
    "run.input_end": InputEnd,
    "fleet.stop": Stop,
    "fleet.status": StatusAsk,
    "run.progress": Progress,
    "task.output": TaskOutput,
    "run.ended": RunEnded,
    "task.assign": Assign,
    "task.cancel": Cancel,
    "agent.roll_call": RollCall,
    "agent.drain": Drain,
    "agent.ready": Ready,
    "task.result": Result,
    "task.refused": Refused,
    "task.result.refused": ResultRefused,
    "agent.drained": Drained,
    "health.changed": HealthChanged,
    "metrics.snapshot": MetricsSnapshot,
    "team.adopt": TeamAdopt,
    "team.noted": TeamNoted,
    "team.report": TeamReport,
    "agent.ping": Ping,
    "agent.pong": Pong,
    "fleet.status.reply": FleetStatus,
    "limit.ask": LimitAsk,
    "limit.grant": LimitGrant,
    "limit.settle": LimitSettle,
    "lock.acquire": LockAcquire,
    "lock.renew": LockRenew,
    "lock.release": LockRelease,
    "lock.list": LockListAsk,
    "fleet.done": Done,
    "task.request": TaskRequest,
    "tasks.cancel": CancelTasks,
    "tasks.retry": RetryTasks,
    "tasks.forget": ForgetTasks,
    "tasks.list": ListTasks,
    "tasks.listing": TaskListing,
    "fleet.pause": Pause,
    "fleet.resume": Resume,
    "fleet.restart": Restart,
    "fleet.scale": Scale,
    "agent.edges": Edges,
}
TYPE_OF: dict[type[msgspec.Struct], str] = {struct: name for name, struct in TYPES.items()}
