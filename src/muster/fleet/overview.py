"""What `muster top` shows: the coordinator's state and the agents' status pages, look after look, and the rate between two looks.

A look costs the coordinator one small answer. Who its agents are is part of that answer while they are few; of many agents it is read from
their pages, and the coordinator is asked for its totals alone.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from muster.core.protocol import FleetStatus, StatusAsk
from muster.errors import MusterError
from muster.fleet import places
from muster.fleet.asking import ask
from muster.fleet.state import agents_by_pages

#: Agents up to which the coordinator lists them itself: its answer is one message.
LISTED_MAX = 1000
#: Rates that are remembered.
RATES_MAX = 240
_ANSWER_S = 2.0
_DIGITS = re.compile(r"(\d+)")
_WORST = {"unhealthy": 0, "degraded": 1, "unknown": 2}

#: What rows can be ordered by. Those that nobody has come last.
SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "agent": lambda row: natural(row["agent"]),
    "team": lambda row: (natural(row.get("team") or ""), natural(row["agent"])),
    "state": lambda row: (row["state"], natural(row["agent"])),
    "health": lambda row: (_WORST.get(row["verdict"], 3), natural(row["agent"])),
    "task": lambda row: row.get("task") or 1 << 62,
    "done": lambda row: -row["done"],
    "failed": lambda row: -row["failed"],
    "inbox": lambda row: -row["inbox_depth"],
    "memory": lambda row: -(row.get("pss_bytes") or 0),
    "seen": lambda row: -(row.get("heartbeat_age_s") or 0.0),
    "restarts": lambda row: -restarts_of(row),
}


@dataclass(frozen=True)
class View:
    """One look at a fleet."""

    fleet: str
    state: str
    verdict: str
    agents: list[dict[str, Any]]
    #: Why the coordinator's part is missing; "" if it is there.
    problem: str = ""
    uptime_s: float = 0.0
    coordinator_pid: int | None = None
    coordinator_restarts: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    teams: list[dict[str, Any]] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    #: Tasks ended per second between the last two looks, and the newest such rates, oldest first.
    rate_per_s: float = 0.0
    rates: list[float] = field(default_factory=list)

    def totals(self) -> dict[str, Any]:
        """Sums over the agents."""
        return {
            "agents": len(self.agents),
            "states": dict(Counter(row["state"] for row in self.agents).most_common()),
            "pss_bytes": sum(row.get("pss_bytes") or 0 for row in self.agents),
            "inbox_depth": sum(row["inbox_depth"] for row in self.agents),
        }

    def as_dict(self) -> dict[str, Any]:
        """The view as a JSON-ready object."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rates"}
        return {**facts, "rate_per_s": round(self.rate_per_s, 3), "totals": self.totals()}


class Overview:
    """Looks at one fleet again and again."""

    def __init__(self, fleet: places.Fleet) -> None:
        self._fleet = fleet
        self._ended: tuple[float, int] | None = None
        self._rates: deque[float] = deque(maxlen=RATES_MAX)
        self._agents = 0

    def look(self) -> View:
        """The fleet as it is now. Takes some milliseconds; up to two seconds while the coordinator does not answer. Never raises."""
        fleet = self._fleet
        fleet.spawner_pid = places.spawner_pid(fleet.store)
        if fleet.spawner_pid is None:
            return self._without("down", "")
        lists = self._agents <= LISTED_MAX
        try:
            told = ask(fleet, StatusAsk(agents=lists), FleetStatus, _ANSWER_S)
        except (MusterError, OSError) as error:
            return self._without("unreachable", f"the coordinator does not answer: {error}")
        rate = self._rate(told.tasks)
        agents: list[dict[str, Any]] = msgspec.to_builtins(told.agents) if lists else agents_by_pages(fleet)
        self._agents = len(agents)
        return View(
            fleet.name, told.state, told.verdict, agents,
            uptime_s=told.uptime_s, coordinator_pid=told.coordinator_pid, coordinator_restarts=told.coordinator_restarts,
            tasks=told.tasks, latency_ms=told.latency_ms.get("task", {}), teams=msgspec.to_builtins(told.teams),
            paused=list(told.paused), rate_per_s=rate, rates=list(self._rates),
        )  # fmt: skip

    def _without(self, state: str, problem: str) -> View:
        """What can be known without the coordinator."""
        self._ended = None
        agents = agents_by_pages(self._fleet)
        return View(self._fleet.name, state, "unknown", agents, problem=problem, rates=list(self._rates))

    def _rate(self, tasks: dict[str, int]) -> float:
        now, ended = time.monotonic(), sum(tasks.get(how, 0) for how in ("done", "failed", "dead"))
        before, self._ended = self._ended, (now, ended)
        if before is None or now <= before[0]:
            return 0.0
        rate = max(0, ended - before[1]) / (now - before[0])
        self._rates.append(rate)
        return rate


def natural(name: str) -> list[tuple[int, str]]:
    """A key under which w-2 comes before w-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name) if part]


def restarts_of(row: dict[str, Any]) -> int:
    """How often the agent's worker was started again; by its page alone, as far as its incarnation tells."""
    told = row.get("restarts")
    return int(told) if told is not None else max(0, int(row.get("incarnation") or 1) - 1)


def arrange(
    rows: Iterable[dict[str, Any]], sort: str, words: str = "", *, reverse: bool = False
) -> list[dict[str, Any]]:
    """The rows that contain every one of `words` in name, team, state, verdict or evidence, ordered by one of `SORTS`."""
    wanted = words.lower().split()
    chosen = [row for row in rows if all(word in _text(row) for word in wanted)] if wanted else list(rows)
    return sorted(chosen, key=SORTS[sort], reverse=reverse)


def _text(row: dict[str, Any]) -> str:
    told = (row["agent"], row.get("team") or "", row["state"], row["verdict"], *(row.get("evidence") or ()))
    return " ".join(map(str, told)).lower()


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int) -> str:
    """The newest `width` values as bars; the highest is full, nothing is the lowest."""
    shown = values[-width:] if width > 0 else []
    highest = max(shown, default=0.0)
    if highest <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in shown)
