"""What `muster logs` shows: the coordinator's notes and what agents' processes printed, as one stream ordered by time.

The files are read, never the processes asked: logs are most wanted when the fleet is dead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: How often files are looked at while following.
FOLLOW_S = 0.25
READ_BYTES = 1 << 20

EVENTS = "events.jsonl"


@dataclass
class _File:
    """A growing file that may be rotated away; `source` is the agent it belongs to, or "coordinator" or "spawner"."""

    path: Path
    source: str
    at: int = 0
    inode: int = 0
    rest: bytes = b""

    def lines(self) -> Iterator[bytes]:
        """Complete lines that are new since the last call."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            found = os.fstat(fd)
            if found.st_ino != self.inode or found.st_size < self.at:
                self.inode, self.at, self.rest = found.st_ino, 0, b""
            while chunk := os.pread(fd, READ_BYTES, self.at):
                self.at += len(chunk)
                *lines, self.rest = (self.rest + chunk).split(b"\n")
                yield from lines
        finally:
            os.close(fd)


def sources(store: Path, agent: str | None) -> list[_File]:
    """The files that belong to `agent`, or all of them."""
    files = (
        []
        if agent not in (None, "coordinator")
        else [_File(store / name, "coordinator") for name in (f"{EVENTS}.1", EVENTS)]
    )
    if agent in (None, "spawner"):
        files.append(_File(store / "spawner.log", "spawner"))
    names = [agent] if agent is not None else _names(store / "agents")
    files += [_File(store / "agents" / name / "log", name) for name in names if name not in ("coordinator", "spawner")]
    return files


def marks(store: Path) -> dict[Path, tuple[int, int]]:
    """Where every file ends now, as (inode, bytes): what follows belongs to the life that is about to begin."""
    found = {}
    for file in sources(store, None):
        try:
            status = os.stat(file.path)
        except OSError:
            continue
        found[file.path] = (status.st_ino, status.st_size)
    return found


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def entries(
    store: Path,
    agent: str | None,
    *,
    follow: bool,
    ended: Callable[[], bool],
    after: dict[Path, tuple[int, int]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Log entries, oldest first: `at` (ISO 8601 or None), `source`, `event` and its facts, or `line`.

    Args:
        agent: Only what concerns this agent (also events of the coordinator that name it).
        follow: Go on until `ended()` says that the fleet is down.
        after: Leave out what stood in the files at these `marks`.
    """
    files = sources(store, agent)
    if agent is not None and agent != "coordinator":
        files = [_File(store / f"{EVENTS}.1", "coordinator"), _File(store / EVENTS, "coordinator"), *files]
    for file in files:
        file.inode, file.at = (after or {}).get(file.path, (0, 0))
    while True:
        last = follow and ended()
        found = [entry for file in files for entry in _parsed(file, agent)]
        yield from sorted(found, key=lambda entry: entry["at"] or "9")
        if not follow or last:
            return
        if agent is None:
            known = {file.path for file in files}
            files += [file for file in sources(store, None) if file.path not in known]
        time.sleep(FOLLOW_S)


def _parsed(file: _File, agent: str | None) -> Iterator[dict[str, Any]]:
    for line in file.lines():
        entry = _parse(line, file.source)
        if (
            file.source == "coordinator"
            and agent not in (None, "coordinator")
            and agent not in (entry.get("agent"), entry.get("worker"))
        ):
            continue
        yield entry


def _parse(line: bytes, source: str) -> dict[str, Any]:
    text = line.decode(errors="replace")
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            return {"at": value.pop("at", None), "source": source, **value}
    return {"at": None, "source": source, "line": text}


def last_event(store: Path, name: str) -> dict[str, Any] | None:
    """The newest event called `name` in the coordinator's notes."""
    found = None
    for line in _File(store / EVENTS, "coordinator").lines():
        entry = _parse(line, "coordinator")
        found = entry if entry.get("event") == name else found
    return found


def render(entry: dict[str, Any]) -> str:
    """An entry as one line for a person: time of day, source, what happened, facts."""
    at = str(entry.get("at") or "")
    clock = at[11:23] if len(at) >= 23 else "            "
    if "line" in entry:
        return f"{clock}  {entry['source']:<12}  {entry['line']}"
    facts = " ".join(
        f"{key}={_fact(value)}"
        for key, value in entry.items()
        if key not in ("at", "source", "event") and value not in (None, "", [])
    )
    return f"{clock}  {entry['source']:<12}  {entry.get('event', '')}  {facts}".rstrip()


def _fact(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "; ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f'"{text}"' if " " in text else text
