"""What became of a fleet's work when it was brought down: the coordinator's last note, and what lies in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.bus.store import unread
from muster.fleet.durations import format_duration
from muster.fleet.logs import last_event

if TYPE_CHECKING:
    from pathlib import Path

    from muster.fleet.logs import Marks


def farewell(store: Path, after: Marks) -> dict[str, Any]:
    """The report of a shutdown as plain data; `after` are the `logs.marks` from before it was asked for.

    `unread_kept` messages wait for the next start. The rest is the coordinator's word, and absent if it died before it could say it.
    """
    ended = last_event(store, "fleet.ended", after) or {}
    facts = {key: value for key, value in ended.items() if key not in ("at", "event", "source", "took_s")}
    return {"unread_kept": unread(store) if store.exists() else 0, **facts}


def sentence(name: str, took_s: float, facts: dict[str, Any]) -> str:
    """The same for a person, in one line."""
    parts = [f"{name} is down ({format_duration(took_s)})"]
    if "finished" in facts:
        work = [(facts["finished"], "finished"), (facts["failed"], "failed"), (facts["handed_back"], "handed back")]
        told = [f"{count:,} {what}" for count, what in work if count]
        if told:
            parts[0] += ": " + ", ".join(told)
        if facts["killed_workers"]:
            parts.append(f"{_count(facts['killed_workers'], 'worker')} had to be killed")
    elif "reason" not in facts:
        parts.append("its coordinator was gone, so nobody says what was finished")
    kept = [(facts.get("kept_tasks", 0), "task"), (facts["unread_kept"], "unread message")]
    if told := [_count(count, what) for count, what in kept if count]:
        parts.append(f"kept for the next start: {' and '.join(told)}")
    return "; ".join(parts)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
