"""What a person may want to read later: one JSON object per line in `<store>/events.jsonl`, rotated once. The only renderer of events."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

FILE = "events.jsonl"
#: At this size the file is renamed to `events.jsonl.1`, replacing the one before.
BYTES_MAX = 2 << 20


class NoteTaker(Protocol):
    """Somebody who keeps notes."""

    def write(self, event: str, **facts: Any) -> None:
        """Note an event with its facts."""


class Notes:
    """Append-only notes. A store that is full or gone loses notes, never tasks: nothing here raises."""

    def __init__(self, store: Path) -> None:
        self._path = store / FILE
        self._fd = -1
        self._bytes = 0
        self._open()

    def write(self, event: str, **facts: Any) -> None:
        """Note an event with its facts."""
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = msgspec.json.encode({"at": at, "event": event, **facts}, enc_hook=repr) + b"\n"
        if self._bytes + len(line) > BYTES_MAX:
            self._rotate()
        try:
            self._bytes += os.write(self._fd, line)
        except OSError:
            pass

    def close(self) -> None:
        """Let go of the file. Safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._bytes = os.fstat(self._fd).st_size
        except OSError:
            self._fd = -1

    def _rotate(self) -> None:
        self.close()
        try:
            os.rename(self._path, self._path.with_name(f"{FILE}.1"))
        except OSError:
            pass
        self._open()
