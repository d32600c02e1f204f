"""What `muster logs` shows: the coordinator's notes and what agents' processes printed, as one stream ordered by time.

The files are read, never the processes asked: logs are most wanted when the fleet is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muster.agent.log import FILES

#: How often files are looked at while following.
FOLLOW_S = 0.25
READ_BYTES = 1 << 20

EVENTS = "events.jsonl"


#: How much of a file's beginning tells it from another one that was given the same inode.
HEAD_BYTES = 256
#: How far files have been read, by inode, which a file keeps when it is rotated; and how they begin.
Marks = dict[int, tuple[int, bytes]]


@dataclass
class _Series:
    """A growing file and what it was before it was rotated; `source` is the agent it belongs to, or "coordinator" or "spawner"."""

    source: str
    #: Oldest first.
    paths: tuple[Path, ...]
    read: Marks = field(default_factory=dict)
    rest: bytes = b""

    def lines(self) -> Iterator[bytes]:
        """Complete lines that are new since the last call, oldest first."""
        seen = []
        for fd, inode in self._open():
            seen.append(inode)
            try:
                yield from self._new_lines(fd, inode)
            finally:
                os.close(fd)
        self.read = {
            inode: self.read[inode] for inode in seen
        }  # the number of one that is gone may be given to another file

    def _open(self) -> Iterator[tuple[int, int]]:
        known = set()
        for path in self.paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            inode = os.fstat(fd).st_ino
            if inode in known:  # it was rotated between two names
                os.close(fd)
                continue
            known.add(inode)
            yield fd, inode

    def _new_lines(self, fd: int, inode: int) -> Iterator[bytes]:
        at, head = self.read.get(inode, (0, b""))
        begins = os.pread(fd, HEAD_BYTES, 0)
        if not begins.startswith(head) or os.fstat(fd).st_size < at:
            at = 0
        self.read[inode] = at, begins
        while chunk := os.pread(fd, READ_BYTES, at):
            at += len(chunk)
            self.read[inode] = at, begins
            # A line may go on in the next file: descriptors are laid over between two writes of one print.
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            yield from lines


def sources(store: Path, agent: str | None) -> list[_Series]:
    """The files that belong to `agent`, or all of them."""
    found = [] if agent not in (None, "coordinator") else [_events(store)]
    if agent in (None, "spawner"):
        found.append(_Series("spawner", (store / "spawner.log",)))
    names = [agent] if agent is not None else _names(store / "agents")
    return found + [
        _Series(name, tuple(store / "agents" / name / file for file in reversed(FILES)))
        for name in names
        if name not in ("coordinator", "spawner")
    ]


def _events(store: Path) -> _Series:
    return _Series("coordinator", (store / f"{EVENTS}.1", store / EVENTS))


def marks(store: Path) -> Marks:
    """Where every file ends now: what follows belongs to the life that is about to begin."""
    found: Marks = {}
    for series in sources(store, None):
        for path in series.paths:
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                found[status.st_ino] = status.st_size, file.read(HEAD_BYTES)
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
    after: Marks | None = None,
) -> Iterator[dict[str, Any]]:
    """Log entries, oldest first: `at` (ISO 8601 or None), `source`, `event` and its facts, or `line`.

    Args:
        agent: Only what concerns this agent (also events of the coordinator that name it).
        follow: Go on until `ended()` says that the fleet is down.
        after: Leave out what stood in the files at these `marks`.
    """
    files = sources(store, agent)
    if agent is not None and agent != "coordinator":
        files = [_events(store), *files]
    for file in files:
        file.read = dict(after or {})
    while True:
        last = follow and ended()
        found = [entry for file in files for entry in _parsed(file, agent)]
        yield from sorted(found, key=lambda entry: entry["at"] or "9")
        if not follow or last:
            return
        if agent is None:
            known = {file.source for file in files}
            files += [file for file in sources(store, None) if file.source not in known]
        time.sleep(FOLLOW_S)


def _parsed(file: _Series, agent: str | None) -> Iterator[dict[str, Any]]:
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


def last_event(store: Path, name: str, after: Marks | None = None) -> dict[str, Any] | None:
    """The newest event called `name` in the coordinator's notes, or None if there is none behind the marks `after`."""
    found = None
    for line in _Series("coordinator", (store / EVENTS,), dict(after or {})).lines():
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
