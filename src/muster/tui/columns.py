"""The columns of the live table: what stands in them, how wide they are, and which are left out where there is no room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from muster.fleet.durations import format_duration
from muster.fleet.overview import restarts_of
from muster.fleet.sizes import format_bytes

Row = dict[str, Any]
GAP = 1
_NAME_MAX = 32
#: Words that are painted wherever they are a whole cell.
COLORS = {
    "healthy": "green", "degraded": "yellow", "unhealthy": "bold red", "unknown": "dim",
    "busy": "cyan", "starting": "yellow", "draining": "yellow", "suspect": "yellow", "limited": "yellow", "waiting": "yellow",
    "dead": "red", "gone": "red", "crashed": "red", "quarantined": "bold red", "stopped": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column. `keep`: the lower, the sooner it is left out. `sort` is its name in `overview.SORTS`, if it has one."""

    title: str
    text: Callable[[Row], str]
    keep: int
    width: int
    sort: str = ""
    is_number: bool = False
    #: Takes the room that is left over; shown only if there is any to speak of.
    fills: bool = False
    #: Left out while every row's cell is empty.
    optional: bool = False


def _some(value: object) -> str:
    return "" if value in (None, 0, "", 0.0) else f"{value:,}" if isinstance(value, int) else str(value)


def _seen(row: Row) -> str:
    age = row.get("heartbeat_age_s")
    return "" if age is None else format_duration(age)


def _memory(row: Row) -> str:
    return format_bytes(row["pss_bytes"]) if row.get("pss_bytes") else ""


def _why(row: Row) -> str:
    return "; ".join(map(str, row.get("evidence") or ()))


AGENTS: tuple[Column, ...] = (
    Column("AGENT", lambda row: row["agent"], 99, 8, "agent"),
    Column("TEAM", lambda row: row.get("team") or "", 40, 8, "team", optional=True),
    Column("STATE", lambda row: row["state"], 90, 8, "state"),
    Column("HEALTH", lambda row: row["verdict"], 80, 9, "health"),
    Column("PID", lambda row: str(row.get("pid") or ""), 10, 7, is_number=True),
    Column("TASK", lambda row: _some(row.get("task")), 70, 7, "task", is_number=True),
    Column("DONE", lambda row: f"{row['done']:,}", 60, 7, "done", is_number=True),
    Column("FAILED", lambda row: _some(row["failed"]), 58, 6, "failed", is_number=True),
    Column("INBOX", lambda row: _some(row["inbox_depth"]), 56, 5, "inbox", is_number=True),
    Column("RESTARTS", lambda row: _some(restarts_of(row)), 20, 8, "restarts", is_number=True),
    Column("MEMORY", _memory, 54, 8, "memory", is_number=True),
    Column("SEEN", _seen, 52, 6, "seen", is_number=True),
    Column("WHY", _why, 30, 12, fills=True),
)
TEAMS: tuple[Column, ...] = (
    Column("TEAM", lambda row: row["team"], 99, 8),
    Column("KIND", lambda row: row["kind"], 40, 8),
    Column("STATE", lambda row: row["state"], 90, 8),
    Column("HEALTH", lambda row: row["verdict"], 80, 9),
    Column("PID", lambda row: str(row.get("pid") or ""), 10, 7, is_number=True),
    Column("READY", lambda row: f"{row['ready']}/{row['agents']}", 70, 7, is_number=True),
    Column("TASKS", lambda row: _some(row["holding"]), 60, 6, is_number=True),
    Column("DONE", lambda row: f"{row['done']:,}", 58, 8, is_number=True),
    Column("FAILED", lambda row: _some(row["failed"]), 56, 6, is_number=True),
    Column("RESTARTS", lambda row: _some(row["restarts"]), 50, 8, is_number=True),
    Column("WHY", _why, 30, 12, fills=True),
)


def fit(columns: Sequence[Column], rows: Sequence[Row], room: int) -> list[tuple[Column, int]]:
    """The columns that fit into `room` cells, with their widths. The first one always stays, cut if it must."""
    chosen = [
        (
            column,
            max(column.width, *(len(column.text(row)) for row in rows)) if rows and not column.fills else column.width,
        )
        for column in columns
        if not column.optional or any(column.text(row) for row in rows)
    ]
    chosen = [(column, min(width, _NAME_MAX)) for column, width in chosen]
    while len(chosen) > 1 and _width(chosen) > room:
        chosen.remove(min(chosen, key=lambda pair: pair[0].keep))
    if len(chosen) == 1:
        return [(chosen[0][0], min(chosen[0][1], max(1, room)))]
    left = room - _width(chosen)
    return [(column, width + left if column.fills else width) for column, width in chosen]


def _width(chosen: Sequence[tuple[Column, int]]) -> int:
    return sum(width for _, width in chosen) + GAP * (len(chosen) - 1)


def cell(text: str, width: int, *, right: bool) -> str:
    """`text` in exactly `width` cells, cut with an ellipsis, without characters that control a terminal."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    if len(plain) > width:
        plain = plain[: width - 1] + "…"
    return plain.rjust(width) if right else plain.ljust(width)
