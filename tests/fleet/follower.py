"""Reads a coordinator's log while it is written, and decides again what it decided: when was the first task given out after a restart?

The log holds facts, and the machine is a function of them, so a second one that is fed the same facts gives the same orders at the same
times. Nothing has to be added to the coordinator to measure it.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec

from muster.coordinator.effects import Post
from muster.coordinator.events import AnyFact, Recovered
from muster.coordinator.machine import Machine
from muster.core.protocol import Assign
from muster.errors import FleetNotRunningError
from muster.fleet.events import LogReader

_decoder: msgspec.msgpack.Decoder[list[AnyFact]] = msgspec.msgpack.Decoder(list[AnyFact])
_LOOK_S = 0.01


class Recovery(NamedTuple):
    """Wall times: a new coordinator had replayed and counted the living; it gave out the first task."""

    recovered_s: float
    assigned_s: float


class Follower:
    """Follows one coordinator's log in a thread, from its first record."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._machine = Machine()
        self._recovered_s: float | None = None
        self._ended = threading.Event()
        self.recoveries: list[Recovery] = []
        #: Records that a snapshot replaced before they were read: what was decided in them is not known.
        self.gaps = 0
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is there and end. Raises what went wrong in the thread as an assertion."""
        self._ended.set()
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "the follower does not come to its end"
        assert self.gaps == 0, f"{self.gaps} records of the log were gone before they were read"

    def _follow(self) -> None:
        reader: LogReader | None = None
        while True:
            is_last = self._ended.is_set()
            if reader is None:
                try:
                    reader = LogReader(self._log, 0)
                except FleetNotRunningError:
                    reader = None
            if reader is not None:
                with contextlib.suppress(FileNotFoundError):  # the fleet has ended, and its store is removed
                    for _, raw in reader.read():
                        if raw is None:
                            self.gaps += 1
                        else:
                            self._take(_decoder.decode(raw))
            if is_last:
                break
            self._ended.wait(_LOOK_S)
        if reader is not None:
            reader.close()

    def _take(self, facts: list[AnyFact]) -> None:
        for fact in facts:
            effects = self._machine.apply(fact)
            if isinstance(fact, Recovered):
                self._recovered_s = fact.at_s
            if self._recovered_s is not None and any(
                isinstance(effect, Post) and isinstance(effect.body, Assign) for effect in effects
            ):
                self.recoveries.append(Recovery(self._recovered_s, fact.at_s))
                self._recovered_s = None
