"""What a fleet is made of, as the front doors write it down and every process of the fleet reads it.

The command line builds one `FleetSpec`, stores it as `<store>/spec.json` (mode 0600) and starts the spawner. Coordinator and
workers, also restarted ones, read everything from there: there is no second source.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from muster.core import limits
from muster.core.names import COMPANIONS, PROXY, TEAM


class AgentLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one attempt of a kind may take at most; None: no bound. A breach ends it with all that it started."""

    #: Resident memory of all its processes together; pages that they share count for each.
    rss_bytes: int | None = None
    #: Descriptors that each process of a command may have open.
    fds: int | None = None
    #: Time, whatever the task itself allows.
    wall_s: float | None = None


class ChildSpec(msgspec.Struct, array_like=True, frozen=True):
    """How a worker is supervised: when it is started again after a death, when it is set aside, when it is replaced though it lives."""

    #: Restarts within the period; the next death within it quarantines the worker.
    restarts_max: int = limits.RESTARTS_MAX
    period_s: float = limits.RESTART_PERIOD_S
    #: The first restart within the period comes at once, the second waits so long, each further one twice as long as the one before.
    delay_s: float = limits.RESTART_DELAY_S
    delay_max_s: float = limits.RESTART_DELAY_MAX_S
    #: A worker whose agents have not joined by then is killed, which counts as a death.
    ready_timeout_s: float = limits.READY_TIMEOUT_S
    #: It is drained and replaced after so many attempts, at this age, above this memory of its own process; 0: never.
    max_tasks: int = 0
    max_age_s: float = 0.0
    max_rss_bytes: int = 0

    def delay_before_s(self, earlier: int) -> float:
        """The wait before a restart, given how many there were within the period."""
        return 0.0 if not earlier else float(min(self.delay_max_s, self.delay_s * 2.0 ** min(earlier - 1, 40)))

    def can_trip(self) -> bool:
        """Whether the limit can be reached at all: waits that add up to the period keep a crash loop going for ever."""
        return sum(map(self.delay_before_s, range(self.restarts_max))) < self.period_s


def strictest(children: Iterable[ChildSpec]) -> ChildSpec:
    """How a worker is supervised that hosts agents of several kinds: by the budget of the first, replaced when the first of them asks."""
    first, *others = dict.fromkeys(children)
    if not others:
        return first
    bounds: dict[str, Any] = {}
    for name in ("max_tasks", "max_age_s", "max_rss_bytes"):
        bounds[name] = min((value for child in (first, *others) if (value := getattr(child, name))), default=0)
    return msgspec.structs.replace(first, **bounds)


class BudgetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent; 0: no bound."""

    micro_usd: int = 0
    tokens: int = 0


class AdmitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the machine must have left for anything new to begin; 0: not looked at."""

    memory_bytes: int = limits.ADMIT_MEMORY_BYTES
    load: float = 0.0
    fds: int = limits.ADMIT_FDS


class MeterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One quantity of a limit: `amount` units in `period_ns`, up to `burst` of them at once."""

    name: str
    amount: int
    period_ns: int
    burst: int


class LimitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A resource that the whole fleet shares. Without meters it only knows pauses: what a vendor refuses, everybody waits for."""

    name: str
    meters: tuple[MeterSpec, ...] = ()
    #: Most grants that are not settled at once; fewer after refusals. None: no bound.
    concurrency: int | None = None


class CodingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """That a kind's command is a coding command line with an event stream; `command` is already filled in from its preset."""

    preset: str
    #: The user's own words for it, and the prompt around an input: needed again to go on with a session.
    args: tuple[str, ...] = ()
    prompt: str = "{input}"
    #: Directory that keeps the event streams, one file for each attempt. None: they are read and dropped.
    transcripts: str | None = None


class AgentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kind of agent: `count` identities that run the same command or handler.

    Exactly one of `command` and `handler` is set, or none: then the agent is a plain inbox for a program of its own.
    """

    name: str
    count: int = 1
    #: argv template; "{}" "{.}" "{/}" "{#}" and "{input}" are replaced per task (see fleet.template).
    command: tuple[str, ...] | None = None
    #: "package.module:function", called with the task's input (sync or async).
    handler: str | None = None
    #: Run `command` (joined) by /bin/sh -c instead of directly.
    shell: bool = False
    cwd: str | None = None
    env: dict[str, str] = {}
    restart: Literal["always", "on_failure", "never"] = "always"
    #: Tasks one agent works on at once.
    slots: int = 1
    timeout_s: float | None = None
    stop_signal: str = "TERM"
    kill_grace_s: float = limits.KILL_GRACE_S
    #: What senders meet when such an agent's inbox is full. None: "refuse" for agents that muster runs; a program that takes a plain inbox
    #: decides by itself.
    overflow: Literal["refuse", "wait", "evict_oldest"] | None = None
    #: What its agents are good for: a task that wants tags is given to agents that have all of them.
    tags: tuple[str, ...] = ()
    bounds: AgentLimits = AgentLimits()
    child: ChildSpec = ChildSpec()
    #: The id of the first agent, where a change of the count must not change it. "": as `agent_ids` says.
    first: str = ""
    coding: CodingSpec | None = None
    #: Each task has a git worktree of its own, made from the repository at `cwd`; what becomes of it at the end. "": none.
    worktree: Literal["", "changed", "always", "never"] = ""
    #: The limit that gates its attempts ("": none), and its share of it beside other kinds.
    limit: str = ""
    weight: float = 1.0
    #: Exit statuses that say that a limit was hit, not that the work failed.
    limited_exit: tuple[int, ...] = (75,)
    #: The same as a regular expression for the last words on standard error; "": none.
    limited_pattern: str = ""
    #: What the whole kind, and each of its agents, may spend.
    budget: BudgetSpec = BudgetSpec()
    budget_each: BudgetSpec = BudgetSpec()

    def agent_ids(self) -> list[str]:
        """The ids of this kind: the name itself for one, name-1 … name-N for more."""
        return [self.first_id, *(f"{self.name}-{n}" for n in range(2, self.count + 1))]

    @property
    def first_id(self) -> str:
        return self.first or (self.name if self.count == 1 else f"{self.name}-1")

    def resized(self, count: int) -> AgentSpec:
        """The kind with another count; who is in both has the same id in both."""
        return msgspec.structs.replace(self, count=count, first=self.first_id)

    def includes(self, agent: str) -> bool:
        """Whether `agent` is one of `agent_ids`, without making them."""
        if agent == self.first_id or self.count == 1:
            return agent == self.first_id
        name, _, number = agent.rpartition("-")
        is_number = number.isascii() and number.isdigit() and number[0] != "0"
        return name == self.name and is_number and 2 <= int(number) <= self.count


class RetrySpec(msgspec.Struct, frozen=True, kw_only=True):
    """How failures are tried again: `attempts_max` counts failed attempts; deaths of workers have their own count."""

    attempts_max: int = 1
    deaths_max: int = limits.TASK_DEATHS_MAX
    backoff_s: float = 0.5
    backoff_max_s: float = 60.0


class HaltSpec(msgspec.Struct, frozen=True, kw_only=True):
    """When to give up on the rest of a run: after `fail` failed tasks; `now` also kills what is running."""

    when: Literal["never", "soon", "now"] = "never"
    fail: int = 1


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What only `muster run` has: results, report and resume. Paths are absolute."""

    results: str | None = None
    report: str | None = None
    keep_order: bool = False
    halt: HaltSpec = HaltSpec()
    #: Recorded as done by an earlier run (input numbers), not run again.
    resume: bool = False


class TeamsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How the agents of a hybrid fleet are divided: at most `agents_per_team` each, into at most `count` teams if that is given."""

    agents_per_team: int = limits.AGENTS_PER_TEAM
    count: int | None = None


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """One team: its coordinator's name, the kind of its agents, and worker -> the agents that it hosts."""

    name: str
    kind: AgentSpec
    workers: dict[str, tuple[str, ...]]

    def agents(self) -> list[str]:
        """Its agents, in start order."""
        return [agent for hosted in self.workers.values() for agent in hosted]


class HookSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command that the coordinator runs on a schedule: `every_s` after its last end, for at most `timeout_s`."""

    name: str
    command: tuple[str, ...]
    every_s: float
    timeout_s: float
    cwd: str | None = None


class UpstreamSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One API behind the proxy. `name` is its part of the path, and of the limit that its requests spend."""

    name: str
    url: str
    #: The header that a key goes into, and what stands before it there.
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    #: The private file that holds the key. "": each client has its own, and it is passed on.
    key_file: str = ""


class ProxySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The local API proxy of a fleet."""

    upstreams: tuple[UpstreamSpec, ...]
    #: File with the prices of models. None: the built-in ones.
    prices: str | None = None
    #: 0: any that is free, and the same again after a restart.
    port: int = 0
    #: Variables that hold a key at the front door; no command gets them.
    hidden: tuple[str, ...] = ()


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet. `run` is set for `muster run`, None for a standing fleet."""

    name: str
    #: Random 128-bit hex id of this store's life; in MUSTER_STORE_ID of every child process, so leftovers can be proven ours.
    store_id: str
    agents: tuple[AgentSpec, ...]
    run: RunSpec | None = None
    agents_per_worker: int = 1
    #: Whom agents may write to: everybody, or the coordinator and the operator (n agents that may write to everybody hold n² keys).
    edges: Literal["all", "coordinator"] = "all"
    #: Answers that a chain of messages may have.
    hops: int = limits.HOPS_MAX
    retry: RetrySpec = RetrySpec()
    grace_s: float = limits.GRACE_S
    metrics_interval_s: float = limits.METRICS_INTERVAL_S
    metrics: bool = True
    orphan_policy: Literal["stop", "keep"] = "stop"
    orphan_grace_s: float = 5.0
    #: Removed when it ends and holds nothing unread.
    ephemeral: bool = False
    #: Directory on disk for task output too large for a message; made by the front door, removed with the store.
    spool: str | None = None
    debug: bool = False
    #: Wall time when the user's wait began (the start of the `muster` process): ready and duration are counted from there. 0: not known.
    started_unix_s: float = 0.0
    #: Not None: a hybrid fleet, whose agents work below team coordinators.
    teams: TeamsSpec | None = None
    hooks: tuple[HookSpec, ...] = ()
    limits: tuple[LimitSpec, ...] = ()
    proxy: ProxySpec | None = None
    admit: AdmitSpec = AdmitSpec()
    budget: BudgetSpec = BudgetSpec()


def roster(spec: FleetSpec) -> list[str]:
    """Every agent's id but the coordinator's and the operator's, in start order."""
    return [agent for kind in spec.agents for agent in kind.agent_ids()]


def services(spec: FleetSpec) -> list[str]:
    """The identities of processes of the fleet that are no agents."""
    return [PROXY] if spec.proxy is not None else []


def identities(spec: FleetSpec) -> int:
    """How many identities the fleet's store must have room for at least."""
    return len(roster(spec)) + len(COMPANIONS) + len(teams(spec)) + len(services(spec))


def workers(spec: FleetSpec) -> dict[str, tuple[str, ...]]:
    """Worker name -> the agents that it hosts in a flat fleet; with one agent per worker both have the same name.

    Plain inboxes have none: a program of their own takes that identity.
    """
    ids = [agent for kind in spec.agents if kind.command or kind.handler for agent in kind.agent_ids()]
    return _workers_of(ids, spec.agents_per_worker, "worker")


def kind_of(spec: FleetSpec, agent: str) -> AgentSpec:
    """The kind that `agent` belongs to, or did before its kind was made smaller: who goes may still be starting. Raises KeyError."""
    for kind in spec.agents:
        if kind.includes(agent):
            return kind
    name, _, number = agent.rpartition("-")
    for kind in spec.agents:
        if name == kind.name and number.isdecimal() and kind.resized(int(number)).includes(agent):
            return kind
    raise KeyError(agent)


def teams(spec: FleetSpec) -> dict[str, Team]:
    """Team name -> team; empty for a flat fleet. A team has agents of one kind only, and those of a kind differ by one agent at most.

    Raises:
        ValueError: There are more kinds than `count` teams, or more agents than they have room for.
    """
    if spec.teams is None:
        return {}
    kinds = [kind for kind in spec.agents if kind.command or kind.handler]
    size = _team_size([kind.count for kind in kinds], spec.teams)
    found: dict[str, Team] = {}
    for kind in kinds:
        ids = kind.agent_ids()
        parts = -(-len(ids) // size)
        for part in range(parts):
            name = f"{TEAM}-{len(found) + 1}"
            mine = ids[len(ids) * part // parts : len(ids) * (part + 1) // parts]
            found[name] = Team(
                name=name, kind=kind, workers=_workers_of(mine, spec.agents_per_worker, f"{name}-worker")
            )
    return found


def _team_size(counts: list[int], wanted: TeamsSpec) -> int:
    """The smallest size that makes no more teams than wanted, or the size that is given."""
    most = wanted.agents_per_team
    if wanted.count is None:
        return most
    for size in range(1, most + 1):
        if sum(-(-count // size) for count in counts) <= wanted.count:
            return size
    raise ValueError(f"{sum(counts)} agents of {len(counts)} kinds do not fit into {wanted.count} teams of {most}")


def _workers_of(agents: list[str], size: int, name: str) -> dict[str, tuple[str, ...]]:
    if size <= 1:
        return {agent: (agent,) for agent in agents}
    return {f"{name}-{at // size + 1}": tuple(agents[at : at + size]) for at in range(0, len(agents), size)}
