"""fleet.toml: read, checked, layered (flag > MUSTER_* environment > file > profile > default) and turned into a `FleetSpec`.

An unknown key is an error that names the nearest known one: a misspelt `cuont = 20` must not start one agent in silence. Absent
is not the same as default: only keys that somebody wrote take part in the layering.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from muster.core import limits
from muster.core.names import agent_id, fleet_name
from muster.core.settings import BusSettings
from muster.core.spec import AdmitSpec, AgentSpec, FleetSpec, HookSpec, LimitSpec, ProxySpec, RetrySpec, identities
from muster.core.wishes import check_tags
from muster.errors import ConfigError, InvalidNameError
from muster.fleet.bounds import bounded, bounds_of
from muster.fleet.children import child_of
from muster.fleet.coding import Coding, coding_of, worktree_of
from muster.fleet.division import check_teams, teams_spec
from muster.fleet.durations import parse_duration
from muster.fleet.hooks import hook_of
from muster.fleet.limiting import admit_of, budget_of, limit_of, pattern_of, with_limits
from muster.fleet.profiles import DEFAULT, PROFILES
from muster.fleet.proxying import check_names, proxy_of, with_upstreams
from muster.fleet.tables import (
    AdmitTable,
    AgentTable,
    BusTable,
    FleetTable,
    HookTable,
    LimitsTable,
    LimitTable,
    ProxyTable,
    TeamsTable,
    UpstreamTable,
)
from muster.fleet.written import checked_table, converted, unknown_key

#: What may stand at the top level.
TABLES = ("fleet", "bus", "agents", "teams", "hooks", "limits", "proxy", "admit")
#: Keys of `[fleet]` that MUSTER_<KEY> sets. The name is chosen by MUSTER_FLEET, which selects a fleet and renames none.
ENVIRONMENT_KEYS: tuple[str, ...] = tuple(key for key in FleetTable.__struct_fields__ if key != "name")


@dataclass(frozen=True)
class FleetConfig:
    """A checked fleet.toml. `origins` says where each value of `[fleet]` came from."""

    path: Path
    name: str
    fleet: FleetTable
    agents: dict[str, AgentTable]
    bus: BusTable
    #: None: a flat fleet.
    teams: TeamsTable | None = None
    origins: dict[str, str] = field(default_factory=dict)
    hooks: tuple[HookSpec, ...] = ()
    limits: dict[str, LimitSpec] = field(default_factory=dict)
    proxy: ProxySpec | None = None
    admit: AdmitSpec = field(default_factory=AdmitSpec)

    def written_bus(self) -> dict[str, int]:
        """The keys of `[bus]` that somebody wrote."""
        written: dict[str, int] = msgspec.to_builtins(self.bus)
        return written

    def bus_settings(self) -> BusSettings:
        """The bounds of a new store of this fleet; there is room on its roster for every agent of the file.

        Raises:
            ConfigError: A value is out of range, or too small for the agents of the file.
        """
        written = self.written_bus()
        needed = identities(self.spec(""))
        if written.get("agents_max", needed) < needed:
            raise ConfigError(
                f"{self.path}: [bus] agents_max = {written['agents_max']:,} is too small: this file's agents, the coordinator and its "
                f"companions are {needed:,}",
                key="bus.agents_max",
                source=str(self.path),
            )
        written.setdefault("agents_max", max(limits.AGENTS_MAX, needed))
        try:
            return BusSettings(**written)
        except ConfigError as error:
            text = error.message.replace("bus.", "[bus] ", 1)
            raise ConfigError(f"{self.path}: {text}", key=str(error.facts["key"]), source=str(self.path)) from None

    def _edges(self) -> Literal["all", "coordinator"]:
        return "all" if sum(agent.count for agent in self.agents.values()) <= limits.MESH_AGENTS_MAX else "coordinator"

    def spec(self, store_id: str) -> FleetSpec:
        """The fleet as every process of it will read it."""
        table = self.fleet
        kinds = tuple(
            bounded(
                _agent_spec(name, agent, self.path, PROFILES[table.profile].max_age),
                table.agents_per_worker,
                PROFILES[table.profile].memory_bytes,
                f"{self.path}: [agents.{name}]",
            )
            for name, agent in self.agents.items()
        )
        kinds, shared = with_limits(kinds, self.limits, str(self.path))
        return FleetSpec(
            name=self.name,
            store_id=store_id,
            agents=kinds,
            limits=with_upstreams(shared, self.proxy),
            proxy=self.proxy,
            admit=self.admit,
            budget=budget_of(table.budget, f"{self.path}: [fleet] budget"),
            agents_per_worker=table.agents_per_worker,
            edges=table.edges or self._edges(),
            retry=RetrySpec(attempts_max=table.retries + 1, backoff_s=parse_duration(table.backoff, "backoff")),
            grace_s=parse_duration(table.grace, "grace"),
            metrics=table.metrics,
            metrics_interval_s=parse_duration(table.metrics_interval, "metrics_interval"),
            orphan_policy=table.orphans,
            orphan_grace_s=parse_duration(table.orphan_grace, "orphan_grace"),
            debug=table.debug,
            hops=table.hops,
            teams=None
            if (teams := self.teams) is None
            else teams_spec(teams.count, teams.agents_per_team, f"{self.path}: [teams]"),
            hooks=self.hooks,
        )


def load(
    path: Path, *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> FleetConfig:
    """Read and check a fleet.toml.

    Args:
        path: The file.
        flags: Values for keys of `[fleet]` given on the command line; None values are absent.
        environ: Where MUSTER_* is looked up; the process's environment by default.

    Raises:
        ConfigError, InvalidNameError: It cannot be read, or a key is unknown, of the wrong type or out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{path}: {reason}", source=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", source=str(path)) from None
    for key in document:
        if key not in TABLES:
            raise unknown_key(key, TABLES, str(path), "the top level")
    written = checked_table(document.get("fleet", {}), FleetTable, path, "[fleet]")
    layered, origins = _layered(written, dict(flags or {}), os.environ if environ is None else environ, path)
    fleet = converted(layered, FleetTable, path, "[fleet]")
    agents = _agents(document.get("agents"), path)
    bus = converted(checked_table(document.get("bus", {}), BusTable, path, "[bus]"), BusTable, path, "[bus]")
    name = fleet_name(fleet.name if fleet.name is not None else path.absolute().parent.name)
    teams = None
    if "teams" in document:
        teams = converted(checked_table(document["teams"], TeamsTable, path, "[teams]"), TeamsTable, path, "[teams]")
    config = FleetConfig(
        path=path,
        name=name,
        fleet=fleet,
        agents=agents,
        bus=bus,
        teams=teams,
        origins=origins,
        hooks=_hooks(document.get("hooks", {}), path),
        limits=_limits(document.get("limits", {}), path),
        proxy=_proxy(document.get("proxy"), fleet.proxy, path),
        admit=_admit(document.get("admit", {}), path),
    )
    _check(config)
    return config


def _admit(written: object, path: Path) -> AdmitSpec:
    table = converted(checked_table(written, AdmitTable, path, "[admit]"), AdmitTable, path, "[admit]")
    return admit_of(table, f"{path}: [admit]")


def _limits(tables: object, path: Path) -> dict[str, LimitSpec]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: limits must be tables such as [limits.anthropic]", source=str(path))
    found = {}
    for name, table in tables.items():
        place = f"[limits.{name}]"
        checked = converted(checked_table(table, LimitTable, path, place), LimitTable, path, place)
        found[name] = limit_of(name, checked, f"{path}: {place}")
    return found


def _proxy(table: object, wanted: bool | None, path: Path) -> ProxySpec | None:
    """A fleet has a proxy if it says so, or describes one and does not say no."""
    keys = {} if table is None else checked_table(table, ProxyTable, path, "[proxy]")
    for name, upstream in keys.get("upstreams", {}).items():
        checked_table(upstream, UpstreamTable, path, f"[proxy.upstreams.{name}]")
    described = converted(keys, ProxyTable, path, "[proxy]")
    if not (table is not None if wanted is None else wanted):
        return None
    return proxy_of(described, f"{path}: [proxy]", path.absolute().parent)


def _layered(
    written: dict[str, Any], flags: dict[str, Any], environ: Mapping[str, str], path: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    given = {key: (value, "flag") for key, value in flags.items() if value is not None}
    for key in ENVIRONMENT_KEYS:
        variable = f"MUSTER_{key.upper()}"
        if key not in given and environ.get(variable):
            given[key] = (_from_text(key, environ[variable], variable), variable)
    for key, value in written.items():
        given.setdefault(key, (value, str(path)))
    profile = given.get("profile", (DEFAULT, "default"))[0]
    if profile not in PROFILES:
        raise unknown_key(str(profile), tuple(PROFILES), given["profile"][1], "profile", what="profile")
    for key, value in PROFILES[profile].defaults.items():
        given.setdefault(key, (value, f"profile {profile}"))
    return {key: value for key, (value, _) in given.items()}, {key: origin for key, (_, origin) in given.items()}


def _from_text(key: str, text: str, variable: str) -> Any:
    """A value of an environment variable in the type of its key."""
    kind = {"metrics": bool, "debug": bool, "proxy": bool, "agents_per_worker": int, "retries": int, "hops": int}.get(
        key, str
    )
    if kind is bool:
        if text.lower() not in ("1", "0", "true", "false", "yes", "no", "on", "off"):
            raise ConfigError(f"{variable}: {text!r:.60} is neither true nor false", key=key, source=variable)
        return text.lower() in ("1", "true", "yes", "on")
    if kind is int:
        if not text.strip().isascii() or not text.strip().isdigit():
            raise ConfigError(f"{variable}: {text!r:.60} is not a whole number", key=key, source=variable)
        return int(text)
    return text


def _agents(tables: object, path: Path) -> dict[str, AgentTable]:
    if tables is None:
        return {}
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: agents must be tables such as [agents.reviewer]", source=str(path))
    return {name: _agent(name, table, path) for name, table in tables.items()}


def _hooks(tables: object, path: Path) -> tuple[HookSpec, ...]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: hooks must be tables such as [hooks.backup]", source=str(path))
    places = {name: f"[hooks.{name}]" for name in tables}
    keys = {name: checked_table(table, HookTable, path, places[name]) for name, table in tables.items()}
    return tuple(hook_of(name, converted(table, HookTable, path, places[name]), path) for name, table in keys.items())


def _agent(name: str, table: object, path: Path) -> AgentTable:
    place = f"[agents.{name}]"
    keys = checked_table(table, AgentTable, path, place)
    if "limits" in keys:
        checked_table(keys["limits"], LimitsTable, path, f"[agents.{name}.limits]")
    return converted(keys, AgentTable, path, place)


def _check(config: FleetConfig) -> None:
    """What types cannot say: ranges, exclusions, names."""
    path, table = config.path, config.fleet
    for key, least in (("agents_per_worker", 1), ("retries", 0)):
        if getattr(table, key) < least:
            raise ConfigError(f"{path}: [fleet] {key} must be at least {least}", key=key, source=str(path))
    if not 1 <= table.hops <= limits.HOPS_MAX_MAX:
        raise ConfigError(f"{path}: [fleet] hops must be from 1 to {limits.HOPS_MAX_MAX}", key="hops", source=str(path))
    check_teams(config.spec(""), f"{path}: [teams]")  # parses every duration on the way
    config.bus_settings()
    if config.proxy is not None:
        check_names(config.spec("").agents, str(path))
    seen: dict[str, str] = {}
    for name, agent in config.agents.items():
        place = f"[agents.{name}]"
        agent_id(name)
        if agent.count < 1 or agent.slots < 1:
            raise ConfigError(f"{path}: {place} count and slots must be at least 1", source=str(path))
        if agent.command is not None and agent.handler is not None:
            raise ConfigError(f"{path}: {place} has both a command and a handler; choose one", source=str(path))
        for identity in _agent_spec(name, agent, path).agent_ids():
            agent_id(identity)
            if identity in seen:
                raise InvalidNameError(
                    f"{path}: the agent id {identity!r} comes from both [agents.{seen[identity]}] and {place}",
                    name=identity,
                )
            seen[identity] = name
    # A fleet that is meant to be larger says so, beside the other bounds of its bus.
    most = max(PROFILES[table.profile].agents_max, config.bus.agents_max or 0)
    if len(seen) > most:
        raise ConfigError(
            f"{path}: {len(seen)} agents, and the profile {table.profile} admits {most}; [bus] agents_max admits more",
            key="profile",
            source=str(path),
        )


def _agent_spec(name: str, table: AgentTable, path: Path, max_age: str | None = None) -> AgentSpec:
    command = table.command
    if isinstance(command, str):
        if not table.shell:
            raise ConfigError(
                f"{path}: [agents.{name}] command: write a list of words, or set shell = true for a line of shell",
                key="command",
            )
        command = [command]
    if command is not None and not command:
        raise ConfigError(f"{path}: [agents.{name}] command is empty", key="command")
    place = f"{path}: [agents.{name}]"
    coding = _coding(table, path, place)
    default_s = None if coding is None else coding.timeout_s
    return AgentSpec(
        name=name,
        count=table.count,
        command=coding.command if coding is not None else None if command is None else tuple(command),
        handler=table.handler,
        shell=table.shell,
        # Relative to the file, not to where `muster up` was typed: the same file must start the same fleet.
        cwd=str((path.absolute().parent / (table.cwd or ".")).resolve()),
        env=table.env,
        restart=table.restart,
        slots=table.slots,
        timeout_s=default_s if table.timeout is None else parse_duration(table.timeout, f"{place} timeout"),
        stop_signal=_signal_name(table.stop_signal, place),
        kill_grace_s=parse_duration(table.kill_grace, f"{place} kill_grace"),
        overflow=table.overflow,
        tags=tags_of(table.tags, place),
        bounds=bounds_of(table, place),
        child=child_of(table, place, max_age),
        coding=None if coding is None else coding.spec,
        worktree=worktree_of(table.worktree, f"{place} worktree"),
        limit=table.limit,
        weight=_weight(table.weight, place),
        limited_exit=table.limited_exit,
        limited_pattern=pattern_of(table.limited_pattern, place),
        budget=budget_of(table.budget, f"{place} budget"),
        budget_each=budget_of(table.budget_each, f"{place} budget_each"),
    )


def _weight(weight: float, place: str) -> float:
    if not 0.001 <= weight <= 1000:
        raise ConfigError(f"{place} weight must be between 0.001 and 1,000", key="weight")
    return weight


def _coding(table: AgentTable, path: Path, place: str) -> Coding | None:
    if table.preset is None:
        for key in ("args", "prompt", "transcripts"):
            if getattr(table, key):
                raise ConfigError(f"{place} {key} belongs to a preset, and there is none", key=key)
        return None
    if table.command is not None or table.handler is not None or table.shell:
        raise ConfigError(f"{place}: a preset is the command; remove command, handler and shell", key="preset")
    transcripts = None if table.transcripts is None else (path.absolute().parent / table.transcripts).resolve()
    return coding_of(table.preset, tuple(table.args), table.prompt, transcripts, place)


def tags_of(tags: list[str], place: str) -> tuple[str, ...]:
    """The tags of a kind. Raises ConfigError."""
    try:
        check_tags(tags)
    except ConfigError as error:
        raise ConfigError(f"{place} tags: {error.message}", key="tags") from None
    return tuple(dict.fromkeys(tags))


def _signal_name(text: str, place: str) -> str:
    import signal

    name = text.upper().removeprefix("SIG")
    if not hasattr(signal, f"SIG{name}"):
        raise ConfigError(
            f"{place} stop_signal: {text!r} is not the name of a signal such as TERM or INT", key="stop_signal"
        )
    return name
