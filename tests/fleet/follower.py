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
from muster.coordinator.log import read_snapshot
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
    """Follows the coordinator whose log is in `directory`, in a thread, from the newest snapshot on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._recovered_s: float | None = None
        self._ended = threading.Event()
        self._machine = Machine()
        self._reader: LogReader | None = None
        self.recoveries: list[Recovery] = []
        #: Records that a snapshot replaced before they were read: what was decided in them is not known.
        self.gaps = 0
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is there, and end."""
        self._ended.set()
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "the follower does not come to its end"
        assert self.gaps == 0, f"{self.gaps} records of the log were gone before they were read"

    def _follow(self) -> None:
        while True:
            is_last = self._ended.is_set()
            with contextlib.suppress(
                FileNotFoundError, FleetNotRunningError
            ):  # not yet there, or removed with its fleet
                self._read(self._reader or self._begin())
            if is_last:
                break
            self._ended.wait(_LOOK_S)
        if self._reader is not None:
            self._reader.close()

    def _begin(self) -> LogReader:
        state, covered = read_snapshot(self._directory / "snapshot")
        self._machine = Machine(state)
        return LogReader(self._directory / "log", covered)

    def _read(self, reader: LogReader) -> None:
        for _, raw in reader.read():
            if raw is not None:
                self._take(_decoder.decode(raw))
            elif self._reader is None:
                return  # a newer snapshot has replaced the one it began with
            else:
                self.gaps += 1
            self._reader = reader

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
