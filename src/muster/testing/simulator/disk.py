"""What a simulated coordinator writes: its log, its results file, its notes. Every write is a place to die at, before and after.

The log is cut into records of a few facts, so that a death leaves any prefix of a turn; the snapshot replaces what it covers. Beside the
pieces that a new coordinator reads, all facts ever logged are kept: replaying them from the first one must give the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from muster.coordinator.events import AnyFact, Record
from muster.coordinator.log import FACTS_PER_OPEN_TASK
from muster.coordinator.machine import Machine
from muster.coordinator.state import State, load, snapshot
from muster.errors import ResultsFileError
from muster.testing.simulator.timeline import Process

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[list[AnyFact]] = msgspec.msgpack.Decoder(list[AnyFact])
Make = Callable[[State | None], Machine]


class LogFile:
    """The log of one coordinator as it lies on the disk; it outlives every process. `record_facts`: facts in a record."""

    def __init__(self, record_facts: int, snapshot_facts: int) -> None:
        self.record_facts, self.snapshot_facts = record_facts, snapshot_facts
        self.records: list[bytes] = []
        self.snapshot: tuple[bytes, int] | None = None
        self.bytes = 0

    def replay(self, make: Make, *, from_the_first: bool = False) -> tuple[Machine, list[Record]]:
        """The machine as the log has it, and the records that were decided since the snapshot."""
        base = None if from_the_first else self.snapshot
        machine = make(load(base[0]) if base is not None else None)
        records: list[Record] = []
        for raw in self.records[base[1] if base is not None else 0 :]:
            for fact in _decoder.decode(raw):
                records += [effect for effect in machine.apply(fact) if isinstance(effect, Record)]
        return machine, records


class SimLog:
    """`coordinator.log.EventLog`, as one process has it open."""

    def __init__(self, file: LogFile, process: Process) -> None:
        self._file, self._process = file, process
        self._facts = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever logged."""
        return not self._file.records

    def recover(self, make: Make = Machine) -> tuple[Machine, list[Record]]:
        """Snapshot and replay."""
        self._process.io("read log")
        return self._file.replay(make)

    def append(self, facts: list[AnyFact]) -> None:
        """Write facts down, record by record."""
        file = self._file
        for at in range(0, len(facts), file.record_facts):
            self._process.io("log")
            raw = _encode(facts[at : at + file.record_facts])
            file.records.append(raw)
            file.bytes += len(raw)
        if facts:
            self._facts += len(facts)
            self._process.io("logged")

    def flush(self) -> None:
        """Nothing is ever unwritten here."""

    def release_reserve(self) -> bool:
        return False

    def snapshot_due(self, open_tasks: int) -> bool:
        """Much earlier than in life, so that most recoveries begin with one."""
        return self._facts > max(self._file.snapshot_facts, FACTS_PER_OPEN_TASK * open_tasks // 10)

    def write_snapshot(self, state: State) -> bool:
        """The state as of the last fact."""
        self._process.io("snapshot")
        self._facts = 0
        self._file.snapshot = (snapshot(state), len(self._file.records))
        self._process.io("snapshot written")
        return True

    def close(self) -> None: ...


class Paper:
    """A results file: the numbers of its lines, with the attempts they tell of."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []


class _Line(msgspec.Struct):
    task: int
    attempt: int
    outcome: str


_line_decoder = msgspec.json.Decoder(_Line)


class SimResults:
    """`coordinator.results.ResultsFile`: a line is written whole or not at all, lines one after another."""

    is_regular = True

    def __init__(self, paper: Paper, process: Process, told: Callable[[int, int, str], None]) -> None:
        self._paper, self._process, self._told = paper, process, told

    @property
    def size_bytes(self) -> int:
        """Lines stand for bytes."""
        return len(self._paper.lines)

    def append(self, lines: list[bytes]) -> None:
        """Write lines; a death leaves the first ones. Raises ResultsFileError, and none of them is there."""
        for raw in lines:
            self._process.io("write result")
            line = _line_decoder.decode(raw)
            self._paper.lines.append((line.task, line.attempt, line.outcome))
            self._told(line.task, line.attempt, line.outcome)
        self._process.io("results written")

    def numbers_behind(self, base: int) -> list[int]:
        """Task numbers of the lines from `base` on."""
        return [number for number, _, _ in self._paper.lines[base:]]


class SimNotes:
    """`coordinator.notes.Notes`, told to the story."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def write(self, event: str, **facts: Any) -> None:
        """Note an event."""
        self._tell(f"notes {event} {facts}")

    def close(self) -> None: ...


__all__ = ["LogFile", "Paper", "ResultsFileError", "SimLog", "SimNotes", "SimResults"]
