"""What a coordinator tells of the fleet: progress of a run, status, a team's report to the root. `protocol.TYPES` names the types."""

from __future__ import annotations

from typing import Any

import msgspec


class StatusAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.status`, anyone -> coordinator; answered with a `FleetStatus`."""

    agents: bool = True


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
    #: Limits that are paused, and until when (wall time).
    paused_limits: dict[str, float] = {}
    #: Why nothing new begins, if the machine has no room for more.
    held_back: str = ""


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
    team: str = ""


class TeamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One team as `status` shows it. `ready`: agents that can be given something; `holding`: attempts that the team has from the root."""

    team: str
    kind: str
    pid: int | None
    state: str
    verdict: str
    incarnation: int
    restarts: int
    agents: int
    ready: int
    holding: int
    done: int
    failed: int
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
    #: Workers that are replaced, wait for it, or are set aside; counts that the operator changed; how hooks ended.
    supervision: dict[str, Any] = {}
    teams: list[TeamStatus] = []
    #: Kinds that are assigned nothing new; "*": all of them.
    paused: list[str] = []
    #: Why nothing new begins although there is work: the machine has no room.
    held_back: str = ""
    #: What was spent and may be, in all and by kind.
    spent: list[dict[str, Any]] = []
    #: Every limit of the fleet: phase, who waits, what is available, since when and until when it is paused, and why.
    limits: list[dict[str, Any]] = []
    #: The API proxy: where it listens, its restarts, and what each agent has used. Empty: the fleet has none.
    proxy: dict[str, Any] = {}


class MetricsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """`metrics.snapshot`, agent -> coordinator, every `metrics_interval_s` and once before the end: what changed since the last one.

    counters: name -> increase. gauges: name -> value. histograms: name -> (count, sum, {bucket upper bound as text: count}),
    increases since the last snapshot. Names are Prometheus names (`muster_messages_sent_total`).
    """

    incarnation: int
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, tuple[int, float, dict[str, int]]] = {}


class TeamReport(msgspec.Struct, frozen=True, kw_only=True):
    """`team.report`, team -> root, every `metrics_interval_s` while something changes, and before the end.

    `status` has no agents; `pss_bytes` of each agent; `metrics`: what its agents' snapshots added since the last report.
    """

    status: FleetStatus
    agents_seen: int
    pss_bytes: list[int]
    metrics: MetricsSnapshot
