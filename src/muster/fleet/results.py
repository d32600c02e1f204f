"""The results file as `--resume` reads it: the file on disk is the truth about which tasks are done.

One JSON object per line, written by the coordinator as tasks end; a later line about a task replaces an earlier one. Whoever was
killed while writing leaves at most a torn last line, which is cut off: its task counts as not done and runs again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from muster.errors import ConfigError, FleetRunningError, ResultsFileError, RunMismatchError
from muster.fleet.inputs import Item, text_of

READ_BYTES = 1 << 20


class ResultLine(msgspec.Struct, frozen=True):
    """What resuming needs of a line; the other fields are for people and programs that read the file."""

    number: int = msgspec.field(name="task")
    input: Any
    outcome: str


_decoder = msgspec.json.Decoder(ResultLine)


@dataclass
class Recorded:
    """What a results file says: the last recorded input and outcome of each task."""

    inputs: dict[int, Any] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    torn_bytes: int = 0

    @property
    def highest(self) -> int:
        return max(self.inputs, default=0)

    def add(self, line: ResultLine) -> None:
        self.inputs[line.number] = line.input
        if line.outcome == "done":
            self.done.add(line.number)
        else:
            self.done.discard(line.number)


class ResultsFile:
    """An open results file, locked against a second run for as long as this object is open.

    The lock is a flock, not a record lock: nothing that this process opens and closes by the same name drops it, and a forked spawner
    that still holds the descriptor keeps the file taken while the fleet ends.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Open (or make) the file at `path` and take it.

        Raises:
            ResultsFileError: It cannot be opened for writing.
            FleetRunningError: Another run is writing it.
            ConfigError: It holds results already and `resume` is False; nothing was changed.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o666)
        except OSError as error:
            raise ResultsFileError(f"cannot write the results file {path}: {error.strerror}", path=str(path)) from None
        try:
            self._take(resume)
        except BaseException:
            self.close()
            raise

    def _take(self, resume: bool) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            if resume:
                raise ConfigError(f"--resume needs a regular file, and {self.path} is none", key="resume")
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks; the scan of living runs (fleet.leftovers) still finds a second run here.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise FleetRunningError(
                    f"another run is writing to {self.path}; wait for it or choose another file", path=str(self.path)
                ) from None
        if found.st_size and not resume:
            raise ConfigError(
                f"{self.path} already holds results; add --resume to go on with them, or choose another file",
                key="results",
                path=str(self.path),
            )

    def read(self) -> Recorded:
        """Everything recorded so far; a torn last line is cut off the file.

        Raises:
            ResultsFileError: A line that is not the last one is damaged, or the file cannot be read; nothing was changed.
        """
        recorded = Recorded()
        end = 0
        for number, line in enumerate(self._lines(), 1):
            if not line.endswith(b"\n"):
                break
            try:
                recorded.add(_decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise ResultsFileError(
                    f"{self.path}: line {number} is not a result; nothing was changed", path=str(self.path)
                ) from None
            end += len(line)
        size = os.fstat(self._fd).st_size
        if size > end:
            recorded.torn_bytes = size - end
            os.ftruncate(self._fd, end)
        return recorded

    def _lines(self) -> Iterator[bytes]:
        at = 0
        rest = b""
        while True:
            try:
                chunk = os.pread(self._fd, READ_BYTES, at)
            except OSError as error:
                raise ResultsFileError(f"cannot read {self.path}: {error.strerror}", path=str(self.path)) from None
            if not chunk:
                break
            at += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def close(self) -> None:
        """Give the file back. Safe twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def compare(recorded: Recorded, number: int, text: Any) -> None:
    """Check that input `number` is the one that was recorded.

    Raises:
        RunMismatchError: It is another one; nothing was started.
    """
    if number in recorded.inputs and recorded.inputs[number] != text:
        raise RunMismatchError(
            f"the results file belongs to other inputs: input {number} was {recorded.inputs[number]!r:.120} and is now {text!r:.120}",
            number=number,
        )


def resume_plan(recorded: Recorded, batches: Iterator[list[Item]]) -> tuple[list[tuple[int, Item]], int]:
    """Check the recorded inputs against the new ones before anything is started.

    Takes from `batches` only as many inputs as were recorded; the caller goes on with the rest of it.

    Returns:
        The (number, input) pairs that have to run of those taken, and how many inputs were taken.

    Raises:
        RunMismatchError: An input differs, or there are fewer than recorded.
    """
    todo: list[tuple[int, Item]] = []
    taken = 0
    highest = recorded.highest
    while taken < highest:
        batch = next(batches, None)
        if batch is None:
            raise RunMismatchError(
                f"the results file belongs to other inputs: it has input {highest}, and now there are only {taken}",
                number=highest,
            )
        for item in batch:
            taken += 1
            compare(recorded, taken, text_of(item))
            if taken not in recorded.done:
                todo.append((taken, item))
    return todo, taken
