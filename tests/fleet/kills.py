"""Killing a fleet's coordinator, and knowing when its successor gave out work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.place import PATIENCE_S

from muster.testing import eventually

from . import figures
from .follower import Follower


class Kills:
    """SIGKILLs of one coordinator after the other; each waits until the successor has given out a task."""

    def __init__(self, directory: Path, pid: Callable[[], int | None]) -> None:
        """`directory`: where the coordinator has its log; `pid`: who is the coordinator now."""
        self._follower = Follower(directory)
        self._pid = pid
        self._seen: set[int] = set()
        self.at_s: list[float] = []

    def strike(self) -> None:
        """Kill the coordinator that lives, and see its successor at work."""
        pid = eventually(self._fresh, PATIENCE_S, "a coordinator that has not been killed")
        assert pid is not None
        self._seen.add(pid)
        self.at_s.append(time.time())
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: len(self._follower.recoveries) >= len(self.at_s), PATIENCE_S, "a task is given out after a kill"
        )

    def _fresh(self) -> int | None:
        pid = self._pid()
        return None if pid in self._seen else pid

    def note(self, title: str) -> None:
        """End, and show how long it took from each kill to the first assignment behind it."""
        self._follower.stop()
        recoveries = self._follower.recoveries
        assert len(recoveries) == len(self.at_s)
        waits = sorted(found.assigned_s - killed_s for found, killed_s in zip(recoveries, self.at_s, strict=True))
        figures.note(f"{title}: kill to first assignment, median", waits[len(waits) // 2], "s", goal=2.0)
        figures.note("  worst", waits[-1], "s", goal=2.0)
