"""The tables of fleet.toml, key by key; `config` reads, layers and checks them."""

from __future__ import annotations

from typing import Literal

import msgspec

from muster.core import limits

Duration = str | int | float


class LimitsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agents.NAME.limits]`: what one attempt may take; a breach kills all of it. What is absent has no bound but the profile's."""

    rss: str | int | None = None
    fds: int | None = None
    wall: Duration | None = None


class AgentTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agents.NAME]`: one kind of agent."""

    count: int = 1
    command: list[str] | str | None = None
    handler: str | None = None
    shell: bool = False
    cwd: str | None = None
    env: dict[str, str] = {}
    restart: Literal["always", "on_failure", "never"] = "always"
    slots: int = 1
    timeout: Duration | None = None
    stop_signal: str = "TERM"
    kill_grace: Duration = limits.KILL_GRACE_S
    overflow: Literal["refuse", "wait", "evict_oldest"] | None = None
    bounds: LimitsTable = msgspec.field(default=LimitsTable(), name="limits")
    restarts: str = f"{limits.RESTARTS_MAX}/{limits.RESTART_PERIOD_S:g}s"
    restart_delay: Duration = limits.RESTART_DELAY_S
    restart_delay_max: Duration = limits.RESTART_DELAY_MAX_S
    ready_timeout: Duration = limits.READY_TIMEOUT_S
    max_tasks: int | None = None
    max_age: Duration | None = None
    max_rss: str | int | None = None
    preset: str | None = None
    args: list[str] = []
    prompt: str | None = None
    transcripts: str | None = None
    worktree: bool | str | None = None
    tags: list[str] = []
    limit: str = ""
    weight: float = 1.0
    limited_exit: tuple[int, ...] = (75,)
    limited_pattern: str = ""
    budget: str | None = None
    budget_each: str | None = None


class HookTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[hooks.NAME]`: a command that the coordinator runs on a schedule."""

    command: list[str]
    every: Duration = "1h"
    timeout: Duration = "5m"
    cwd: str | None = None


class BusTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`[bus]`: bounds of the fleet's store, under the names that `BusSettings` explains. What is absent has its default."""

    durable: bool | None = None
    agents_max: int | None = None
    lane_messages_max: int | None = None
    lane_bytes_max: int | None = None
    inbox_messages_max: int | None = None
    outbox_messages_max: int | None = None
    outbox_bytes_max: int | None = None
    fleet_messages_max: int | None = None
    fleet_bytes_max: int | None = None


class FleetTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fleet]`: what holds for the whole fleet."""

    name: str | None = None
    profile: Literal["development", "staging", "production"] = "production"
    grace: Duration = limits.GRACE_S
    orphans: Literal["stop", "keep"] = "stop"
    orphan_grace: Duration = 5.0
    agents_per_worker: int = 1
    edges: Literal["all", "coordinator"] | None = None
    retries: int = 0
    backoff: Duration = 0.5
    metrics: bool = True
    metrics_interval: Duration = limits.METRICS_INTERVAL_S
    debug: bool = False
    proxy: bool | None = None
    budget: str | None = None
    hops: int = limits.HOPS_MAX


class TeamsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[teams]`: the agents work below team coordinators. Without `count` there are as many teams as are needed."""

    count: int | None = None
    agents_per_team: int | None = None


class LimitTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits.NAME]`: what the whole fleet may use of a resource, such as `requests = "50/1m"` and `tokens = "40k/1m"`."""

    requests: str | None = None
    tokens: str | None = None
    burst: int | str | None = None
    tokens_burst: int | str | None = None
    concurrency: int | None = None


class AdmitTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admit]`: what the machine must have left for anything new to begin; 0 looks away."""

    memory: str | int | None = None
    load: float | None = None
    fds: int | None = None


class UpstreamTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[proxy.upstreams.NAME]`: one API. The three that a proxy knows need no `url`."""

    url: str | None = None
    #: `env:NAME` or `file:PATH`: the key stays with the proxy. Absent: each client sends its own.
    key_from: str | None = None
    key_header: str | None = None
    key_prefix: str | None = None


class ProxyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[proxy]`: the local API proxy."""

    port: int = 0
    prices: str | None = None
    upstreams: dict[str, UpstreamTable] = {}
