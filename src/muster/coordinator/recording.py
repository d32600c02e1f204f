"""Ends of tasks on their way out of the root: first the line of the results file, then the answer and the output, then the ack.

Guaranteed here: nothing is shown or acked as recorded that is not in log and file. A result that comes again after a crash is compared
with what the replay decided, so its line is written if it is missing and never twice.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from muster.coordinator.answers import answer
from muster.coordinator.outputs import forget_files, output_of
from muster.coordinator.results import doer, line_of, line_without_result
from muster.coordinator.tasks import Outcomes
from muster.errors import ResultsFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery
    from muster.coordinator.events import Record
    from muster.coordinator.intake import ResultsOfTurn
    from muster.coordinator.notes import NoteTaker
    from muster.coordinator.outputs import OutputFlow
    from muster.coordinator.results import ResultsFile
    from muster.core.protocol import Result


class Recorder(Protocol):
    """What the shell does with records and results: the root writes them down and shows them, a team passes them up."""

    @property
    def waiting(self) -> int:
        """How many wait for room where they go."""

    @property
    def is_jammed(self) -> bool:
        """Whether so many wait that nothing more is to be assigned."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing depends on replaying the records of the past."""

    def expect(self, numbers: Iterable[int]) -> None:
        """Tasks came in, or are open since before this process began."""

    def record(self, records: list[Record], results: ResultsOfTurn) -> None:
        """Take what a turn has decided, once it is in the log. Every delivery is acked when it has been dealt with."""

    def again(self, result: Result, delivery: Delivery) -> bool:
        """Take a result that was decided on before this process began. False if it is none of those."""

    def recover(self, records: list[Record]) -> None:
        """After a replay: the records that it decided anew, whose results may or may not come again."""

    def go_on(self) -> None:
        """After `recover`, when the log says who lives: deal with the records that have no result to wait for."""

    def all_came_again(self) -> None:
        """Every result that was not acked before this process began has been taken."""

    def retry(self) -> None:
        """Try again what waits."""

    def after_turn(self) -> None:
        """A turn is carried out."""


class Recording:
    """The root's recorder."""

    def __init__(self, bus: Bus, outputs: OutputFlow, notes: NoteTaker, failed: Callable[[str], None]) -> None:
        """`failed` is told once, when the results file cannot be written."""
        self._bus, self._notes, self._failed = bus, notes, failed
        self.outputs = outputs
        self.results: ResultsFile | None = None
        #: Records that were decided before this process began, by number: their deliveries may come again.
        self._replayed: dict[int, Record] = {}
        #: Those of them that are not in the results file: written as soon as their result is delivered again.
        self._missing: set[int] = set()
        #: Tasks that ended but could not be written to the results file.
        self.unrecorded: dict[int, str] = {}
        self.recorded_twice = 0
        self._recorded = Outcomes()
        #: How often tasks were retried after their end: so many lines more are meant to be there.
        self.retries: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        return self.outputs.waiting

    @property
    def is_jammed(self) -> bool:
        return self.outputs.is_jammed

    @property
    def is_settled(self) -> bool:
        return self.outputs.is_settled and not self.unrecorded and not self._missing

    def expect(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.outputs.expect(number)

    def recover(self, records: list[Record]) -> None:
        self._replayed = {record.number: record for record in records}
        self.outputs.expect_again(self._replayed)

    def compare(self, base_bytes: int, open_tasks: Container[int]) -> None:
        """Find out which records of the replay are not in the results file. Raises ResultsFileError.

        A task has a line for each of its ends: one more than its retries, unless it is open again.
        """
        if self.results is not None and self.results.is_regular:
            lines, retries = Counter(self.results.numbers_behind(base_bytes)), self.retries
            self._missing = {
                number
                for number in self._replayed
                if lines[number] < retries.get(number, 0) + (number not in open_tasks)
            }

    def go_on(self) -> None:
        dead = [r for r in self._replayed.values() if not r.has_result and r.number in self._missing]
        lines = [_line(record, None) for record in dead]
        if lines and self._write(lines):
            self._missing.difference_update(record.number for record in dead)

    def all_came_again(self) -> None:
        self.outputs.all_came_again()

    def retry(self) -> None:
        self.outputs.retry()

    def after_turn(self) -> None:
        """Nothing more is to be said."""

    def record(self, records: list[Record], results: ResultsOfTurn) -> None:
        """A delivery whose line is not on disk stays open."""
        lines: list[bytes] = []
        ended: list[tuple[Record, Result | None, Delivery | None]] = []
        for record in records:
            said, delivery = results.pop((record.number, record.attempt, record.agent), (None, None))
            result = _its_own(said)
            ended.append((record, result, delivery))
            # Counted, not assumed: the report says how many tasks were recorded twice.
            before = self._recorded.get(record.number)
            self.recorded_twice += before > self.retries.get(record.number, 0)
            self._recorded.set(record.number, min(before + 1, 255))
            if self.results is not None:
                lines.append(_line(record, result))
        if lines and not self._write(lines):
            for record, _, _ in ended:
                self.unrecorded[record.number] = record.outcome
            ended = []
        for record, result, delivery in ended:
            body = output_of(result, doer(record, result)) if result is not None else None
            if record.asker:
                answer(self._bus, record, result)
            self.outputs.end(record.number, body, delivery)
            if body is None and result is not None:
                forget_files(result)
        for result, delivery in results.values():  # attempts that end nothing: to be tried again
            forget_files(result)
            delivery.ack()

    def again(self, result: Result, delivery: Delivery) -> bool:
        record = self._replayed.get(result.number)
        if record is None or record.attempt != result.attempt or record.agent != delivery.sender:
            return False
        own = _its_own(result)
        if record.number in self._missing:
            if not self._write([_line(record, own)]):
                self.unrecorded[record.number] = record.outcome
                return True
            self._missing.discard(record.number)
        if record.asker:
            answer(self._bus, record, own)
        self.outputs.end(record.number, output_of(own, doer(record, own)) if own is not None else None, delivery)
        return True

    def _write(self, lines: list[bytes]) -> bool:
        assert self.results is not None
        try:
            self.results.append(lines)
        except ResultsFileError as error:
            if not self.unrecorded:
                self._notes.write("results.failed", message=error.message)
                self._failed(error.message)
            return False
        return True


def _its_own(result: Result | None) -> Result | None:
    """What an attempt said itself: of one that died its team tells, and the evidence is in the record."""
    return None if result is None or result.outcome == "died" else result


def _line(record: Record, result: Result | None) -> bytes:
    if result is not None:
        return line_of(record.input, doer(record, result), result)
    return line_without_result(record)
