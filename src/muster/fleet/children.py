"""How `[agents.NAME]` wants its workers supervised, checked and in the units of the fleet's description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from muster.core.spec import ChildSpec
from muster.errors import ConfigError
from muster.fleet.durations import format_duration, parse_duration
from muster.fleet.sizes import parse_bytes

if TYPE_CHECKING:
    from muster.fleet.tables import AgentTable

#: More restarts than anybody waits for.
RESTARTS_MAX = 1000
_INTENSITY = re.compile(r"(\d{1,9})\s*/\s*(\S.*)", re.ASCII)


def child_of(table: AgentTable, place: str, max_age: str | None) -> ChildSpec:
    """The child spec of a kind; `place` names its table in errors, `max_age` is the profile's.

    Raises:
        ConfigError: A value is out of range, or the limit of restarts can never be reached.
    """
    restarts_max, period_s = parse_intensity(table.restarts, f"{place} restarts")
    delay_s = parse_duration(table.restart_delay, f"{place} restart_delay")
    child = ChildSpec(
        restarts_max=restarts_max,
        period_s=period_s,
        delay_s=delay_s,
        delay_max_s=max(delay_s, parse_duration(table.restart_delay_max, f"{place} restart_delay_max")),
        ready_timeout_s=parse_duration(table.ready_timeout, f"{place} ready_timeout"),
        max_tasks=table.max_tasks or 0,
        max_age_s=parse_duration(max_age or 0, f"{place} max_age")
        if table.max_age is None
        else parse_duration(table.max_age, f"{place} max_age"),
        max_rss_bytes=0 if table.max_rss is None else parse_bytes(table.max_rss, f"{place} max_rss"),
    )
    if table.max_tasks is not None and table.max_tasks < 0:
        raise ConfigError(f"{place} max_tasks = {table.max_tasks}: it cannot be less than 0 (never)", key="max_tasks")
    if child.ready_timeout_s <= 0:
        raise ConfigError(f"{place} ready_timeout: no worker could ever get ready", key="ready_timeout")
    if not child.can_trip():
        waits_s = sum(map(child.delay_before_s, range(restarts_max)))
        raise ConfigError(
            f"{place} restarts = {table.restarts!r} can never be exceeded: the waits before {restarts_max} restarts add up to "
            f"{format_duration(waits_s)}; allow fewer restarts, a longer period, or a shorter restart_delay",
            key="restarts",
        )
    return child


def parse_intensity(text: object, what: str) -> tuple[int, float]:
    """`5/30s` as (5, 30.0): at most so many within any such period. Raises ConfigError."""
    found = _INTENSITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f"{what}: {text!r:.60} is not a number of restarts per period such as 5/30s", key="restarts")
    count, period_s = int(found[1]), parse_duration(found[2], what)
    if count > RESTARTS_MAX or period_s <= 0:
        raise ConfigError(
            f"{what}: {text!r:.60} is not between 0 and {RESTARTS_MAX:,} restarts within some time", key="restarts"
        )
    return count, period_s
