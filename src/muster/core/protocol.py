"""The messages muster's own processes send each other, one struct per message type.

Two transports carry them. *Bus messages* (first part) travel through lanes like any other message: `TYPES` maps the message type to
the struct, bodies are msgpack. *Control messages* (second part) travel between the spawner and the processes it forked, on a
SOCK_SEQPACKET socket pair: they carry the kernel's proofs of life and death, which no message of a peer can give. See docs/protocol.md.

Text from a peer is data: a struct of this file is believed only from the sender its docstring names.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# --------------------------------------------------------------------------- bus: operator -> coordinator


class TaskInput(msgspec.Struct, array_like=True, frozen=True):
    """One unit of work: `number` is 1-based and unique in the fleet's life, `input` what the command or handler gets."""

    number: int
    input: Any
    kind: str = ""  # agent kind that may run it; "" = any
    timeout_s: float | None = None
    source: str = ""  # id of the message it came from, so that a redelivery makes no second task
    asker: str = ""  # who gets its end as a reply to that message; "" = nobody


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


class StatusAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.status`, anyone -> coordinator; answered with a `FleetStatus`."""

    agents: bool = True


# --------------------------------------------------------------------------- bus: coordinator -> operator


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`run.progress`, coordinator -> operator, at most every 0.1 s and once at the end."""

    total: int | None  # None: input not ended yet
    submitted: int
    queued: int
    running: int
    done: int
    failed: int
    reassigned: int
    restarts: int
    agents_ready: int
    agents: int
    elapsed_s: float
    rate_per_s: float
    eta_s: float | None
    halted: bool = False


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


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """`task.cancel`, coordinator -> agent: kill the attempt's process tree; it ends with a `Result(outcome="cancelled")`."""

    number: int
    attempt: int


class RollCall(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.roll_call`, coordinator -> agent, after a coordinator restart: answer with `Ready` (which says what you hold)."""

    nonce: int


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.drain`, coordinator -> agent: finish what runs, hand back what has not begun, then send `Drained` and end.

    `now`: kill what runs, too. The worker process ends when all its agents have drained.
    """

    now: bool = False
    deadline_s: float = 10.0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.ready`, agent -> coordinator: joined (or answers a roll call).

    `holding`: (number, attempt) of every assignment that runs or waits here. Because a lane keeps its order, results stored
    before this message have arrived before it.
    """

    incarnation: int
    pid: int
    slots: int
    holding: list[tuple[int, int]] = []
    nonce: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`task.result`, agent -> coordinator: an attempt ended and its process tree is gone.

    Outcomes: `done`; `failed` (non-zero exit, exception); `timeout`; `cancelled`; `killed` (died by a signal nobody of muster
    sent: counts as failed). Old or unknown attempts are refused as stale and counted. `started_unix_s` is wall time.
    """

    number: int
    attempt: int
    incarnation: int
    outcome: Literal["done", "failed", "timeout", "cancelled", "killed"]
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


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """`task.refused`, agent -> coordinator: handed back unstarted (`drain`, `stale`); counts no attempt."""

    number: int
    attempt: int
    incarnation: int
    reason: Literal["drain", "stale"]


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.drained`, agent -> coordinator: the last message of this incarnation."""

    incarnation: int


class HealthChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`health.changed`, agent -> coordinator: the agent's own verdict changed."""

    incarnation: int
    verdict: Literal["healthy", "degraded", "unhealthy"]
    evidence: list[str] = []


class MetricsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """`metrics.snapshot`, agent -> coordinator, every `metrics_interval_s` and once before the end: what changed since the last one.

    counters: name -> increase. gauges: name -> value. histograms: name -> (count, sum, {bucket upper bound as text: count}),
    increases since the last snapshot. Names are Prometheus names (`muster_messages_sent_total`).
    """

    incarnation: int
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, tuple[int, float, dict[str, int]]] = {}


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.ping`, coordinator -> agent, an ask; the reply is a `Pong`. Measures the round trip of the bus."""

    sent_ns: int


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.pong`, agent -> coordinator: the reply to a `Ping`."""

    sent_ns: int


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as `status` shows it: from its status page, its process and the coordinator's log."""

    agent: str
    worker: str
    pid: int | None
    state: str
    verdict: str
    incarnation: int
    restarts: int
    task: int | None
    done: int
    failed: int
    inbox_depth: int
    heartbeat_age_s: float | None
    pss_bytes: int | None
    evidence: list[str] = []


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.status` reply, coordinator -> asker."""

    fleet: str
    store_id: str
    state: str
    verdict: str
    coordinator_pid: int
    coordinator_restarts: int
    uptime_s: float
    tasks: dict[str, int]
    counters: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    agents: list[AgentStatus] = []


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
    "agent.drained": Drained,
    "health.changed": HealthChanged,
    "metrics.snapshot": MetricsSnapshot,
    "agent.ping": Ping,
    "agent.pong": Pong,
    "fleet.status.reply": FleetStatus,
}
TYPE_OF: dict[type[msgspec.Struct], str] = {struct: name for name, struct in TYPES.items()}

# --------------------------------------------------------------------------- control: coordinator <-> spawner (SEQPACKET, msgpack)


class SpawnWorker(msgspec.Struct, frozen=True, kw_only=True, tag="spawn"):
    """coordinator -> spawner, with one memfd (SCM_RIGHTS) that holds the msgpack of a `WorkerGrant`.

    The spawner hands the memfd to the child unread and closes its own copy: it never sees a key.
    """

    worker: str
    incarnation: int


class KillWorker(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """coordinator -> spawner: signal a worker; `tree` also kills its whole process tree and proves it dead."""

    worker: str
    incarnation: int
    signal: int
    tree: bool = False


class ListWorkers(msgspec.Struct, frozen=True, kw_only=True, tag="list"):
    """coordinator -> spawner, first thing after a (re)start; answered by one `WorkerList`."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """coordinator -> spawner: the fleet is done and the coordinator is about to exit; do not restart it.

    The spawner then kills whatever is left, removes an ephemeral store if it holds nothing unread, and exits with `exit_status`.
    """

    exit_status: int


class WorkerStarted(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """spawner -> coordinator: forked. `start_time` (clock ticks after boot, /proc/PID/stat field 22) makes the pid unambiguous."""

    worker: str
    incarnation: int
    pid: int
    start_time: int


class WorkerExited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """spawner -> coordinator: proof of death. Sent when the worker has been reaped *and* its whole process tree is gone.

    `survivors`: pids that could not be killed within the deadline (uninterruptible sleep); empty means the tree is proven dead.
    A second `WorkerExited` with no survivors follows when the last of them is gone. Never lost: unsent ones are kept for the
    next coordinator (`WorkerList.exited`) until acknowledged by `ExitSeen`.
    """

    worker: str
    incarnation: int
    pid: int
    exit_status: int | None
    signal: int | None
    survivors: list[int] = []


class ExitSeen(msgspec.Struct, frozen=True, kw_only=True, tag="exit_seen"):
    """coordinator -> spawner: the exit is in the log; forget it."""

    worker: str
    incarnation: int


class WorkerList(msgspec.Struct, frozen=True, kw_only=True, tag="list_reply"):
    """spawner -> coordinator: everything alive, and every exit that was not acknowledged yet."""

    alive: list[WorkerStarted]
    exited: list[WorkerExited]
    coordinator_restarts: int


class StopFleet(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """spawner -> coordinator: a signal or a `muster down` asked for the end of the fleet."""

    mode: Literal["drain", "now"]
    reason: str = ""


ToSpawner = SpawnWorker | KillWorker | ListWorkers | Finished | ExitSeen
ToCoordinator = WorkerStarted | WorkerExited | WorkerList | StopFleet


class AgentGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent is born with: the root of its receiving keys and the pair keys of the edges that policy allows it to send on."""

    agent: str
    receive_root: bytes
    pair_keys: dict[str, bytes]


class WorkerGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the memfd a worker is born with. `store` is the fleet's directory; everything else stands in its spec.json."""

    worker: str
    incarnation: int
    store: str
    agents: list[AgentGrant]
