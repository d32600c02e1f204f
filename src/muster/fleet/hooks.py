"""`[hooks.NAME]` of fleet.toml, checked and in the units of the fleet's description."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from muster.core.names import agent_id
from muster.core.spec import HookSpec
from muster.errors import ConfigError
from muster.fleet.durations import parse_duration

if TYPE_CHECKING:
    from muster.fleet.tables import HookTable

#: A hook that runs more often is no hook, but a worker.
EVERY_S_MIN = 1.0


def hook_of(name: str, table: HookTable, path: Path) -> HookSpec:
    """The description of a hook; a relative `cwd` is seen from the file.

    Raises:
        ConfigError, InvalidNameError: It has no command, or a time that cannot be kept.
    """
    place = f"{path}: [hooks.{name}]"
    agent_id(name, allow_reserved=True)
    if not table.command or not table.command[0]:
        raise ConfigError(f"{place} command is empty", key="command")
    every_s, timeout_s = (
        parse_duration(table.every, f"{place} every"),
        parse_duration(table.timeout, f"{place} timeout"),
    )
    if every_s < EVERY_S_MIN:
        raise ConfigError(f"{place} every: a hook runs at most once in {EVERY_S_MIN:g} s", key="every")
    if timeout_s <= 0:
        raise ConfigError(f"{place} timeout: it could do nothing", key="timeout")
    cwd = (path.absolute().parent / (table.cwd or ".")).resolve()
    if not cwd.is_dir():
        raise ConfigError(f"{place} cwd: there is no directory {cwd}", key="cwd")
    return HookSpec(name=name, command=tuple(table.command), every_s=every_s, timeout_s=timeout_s, cwd=str(cwd))
