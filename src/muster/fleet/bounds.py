"""`[agents.NAME.limits]` of fleet.toml, checked and in the units of the fleet's description."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from muster.core.spec import AgentLimits
from muster.errors import ConfigError
from muster.fleet.durations import parse_duration
from muster.fleet.sizes import parse_bytes

if TYPE_CHECKING:
    from muster.core.spec import AgentSpec
    from muster.fleet.tables import AgentTable

#: Fewer descriptors than a shell and the loader of shared libraries need for themselves.
FDS_MIN = 16


def bounds_of(table: AgentTable, place: str) -> AgentLimits:
    """The limits of a kind; `place` names its table in errors.

    Raises:
        ConfigError: A value is out of range, or cannot be enforced for this kind of agent.
    """
    given = table.bounds
    rss = None if given.rss is None else parse_bytes(given.rss, f"{place} limits.rss")
    wall_s = None if given.wall is None else parse_duration(given.wall, f"{place} limits.wall")
    if wall_s == 0:
        raise ConfigError(f"{place} limits.wall: no task could ever run", key="limits.wall")
    if given.fds is not None and given.fds < FDS_MIN:
        raise ConfigError(
            f"{place} limits.fds = {given.fds}: a command needs {FDS_MIN} descriptors to start", key="limits.fds"
        )
    if table.handler is not None and given.fds is not None:
        raise ConfigError(
            f"{place} limits.fds is for commands; a handler shares the descriptors of its worker", key="limits.fds"
        )
    return AgentLimits(rss_bytes=rss, fds=given.fds, wall_s=wall_s)


def bounded(kind: AgentSpec, agents_per_worker: int, memory_bytes: int, place: str) -> AgentSpec:
    """`kind` with its profile's bound of memory where it has none of its own.

    Raises:
        ConfigError: It has one, but its handlers share a process, where nobody can tell whose memory is whose.
    """
    shares = kind.handler is not None and (kind.slots > 1 or agents_per_worker > 1)
    if kind.bounds.rss_bytes is not None and shares:
        raise ConfigError(
            f"{place} limits.rss: handlers that share a process cannot be told apart; set slots and agents_per_worker to 1, "
            "or use a command",
            key="limits.rss",
        )
    if kind.bounds.rss_bytes is not None or shares:
        return kind
    return msgspec.structs.replace(kind, bounds=msgspec.structs.replace(kind.bounds, rss_bytes=memory_bytes))
