"""What a fleet is made of, as the front doors write it down and every process of the fleet reads it.

The command line builds one `FleetSpec`, stores it as `<store>/spec.json` (mode 0600) and starts the spawner. Coordinator and
workers, also restarted ones, read everything from there: there is no second source.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muster.core import limits
from muster.core.names import COMPANIONS


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

    def agent_ids(self) -> list[str]:
        """The ids of this kind: the name itself for one, name-1 … name-N for more."""
        return [self.name] if self.count == 1 else [f"{self.name}-{n}" for n in range(1, self.count + 1)]

    def includes(self, agent: str) -> bool:
        """Whether `agent` is one of `agent_ids`, without making them."""
        if self.count == 1:
            return agent == self.name
        name, _, number = agent.rpartition("-")
        is_number = number.isascii() and number.isdigit() and number[0] != "0"
        return name == self.name and is_number and int(number) <= self.count


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


def roster(spec: FleetSpec) -> list[str]:
    """Every agent's id but the coordinator's and the operator's, in start order."""
    return [agent for kind in spec.agents for agent in kind.agent_ids()]


def identities(spec: FleetSpec) -> int:
    """How many identities the fleet's store must have room for at least."""
    return len(roster(spec)) + len(COMPANIONS)


def workers(spec: FleetSpec) -> dict[str, tuple[str, ...]]:
    """Worker name -> the agents that it hosts; with one agent per worker both have the same name.

    Plain inboxes have none: a program of their own takes that identity.
    """
    ids = [agent for kind in spec.agents if kind.command or kind.handler for agent in kind.agent_ids()]
    size = max(1, spec.agents_per_worker)
    if size == 1:
        return {agent: (agent,) for agent in ids}
    return {f"worker-{at // size + 1}": tuple(ids[at : at + size]) for at in range(0, len(ids), size)}


def kind_of(spec: FleetSpec, agent: str) -> AgentSpec:
    """The kind that `agent` belongs to. Raises KeyError."""
    for kind in spec.agents:
        if kind.includes(agent):
            return kind
    raise KeyError(agent)
