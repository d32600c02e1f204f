"""The results file: one JSON object per line and task, written as tasks end. On disk it is the truth that `--resume` goes by.

A line is whole or absent: a torn last line (whoever wrote it was killed) is cut off at the next start, and what a full disk refused is
cut off at once. The log knows which tasks are over, the file which of them are written down; `numbers_behind` is how the two are
reconciled after a crash. A task of an earlier run that is run again gets a new line; `drop_superseded` leaves one line for each task.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core import limits
from muster.core.names import is_coordinator
from muster.core.protocol import Result
from muster.errors import ResultsFileError

if TYPE_CHECKING:
    from muster.coordinator.events import Record

_READ_BYTES = 1 << 20
#: `task` is the first key of every line; strings cannot hold a raw line break, so a line start is never data.
_NUMBER = re.compile(rb'\{"task":(\d+),')


class Line(msgspec.Struct, kw_only=True):
    """One line. `value`/`error` belong to handlers, `stdout`/`stderr` are bounded copies; what is not UTF-8 is also given as base64."""

    task: int
    input: Any
    attempt: int
    agent: str
    outcome: str
    exit_status: int | None = None
    signal: int | None = None
    value: Any = None
    error: dict[str, Any] | None = None
    stdout: str = ""
    stdout_b64: bytes | msgspec.UnsetType = msgspec.UNSET
    stdout_bytes: int = 0
    stdout_truncated: bool = False
    stderr: str = ""
    stderr_b64: bytes | msgspec.UnsetType = msgspec.UNSET
    stderr_bytes: int = 0
    stderr_truncated: bool = False
    started: str | None = None
    duration_s: float | None = None
    evidence: list[str] | msgspec.UnsetType = msgspec.UNSET


_encoder = msgspec.json.Encoder(enc_hook=repr)


def doer(record: Record, result: Result) -> str:
    """Who worked on an attempt: a team says which of its agents it was."""
    return result.agent if result.agent and is_coordinator(record.agent) else record.agent


def line_of(input_: Any, agent: str, result: Result) -> bytes:
    """The line of an attempt that left a result, with its line break."""
    line = Line(
        task=result.number,
        input=input_,
        attempt=result.attempt,
        agent=agent,
        outcome=result.outcome,
        exit_status=result.exit_status,
        signal=result.signal,
        value=result.value,
        error=result.error,
        stdout_bytes=result.stdout_bytes,
        stderr_bytes=result.stderr_bytes,
        duration_s=round(result.duration_s, 6),
    )
    if result.started_unix_s:
        line.started = (
            datetime.fromtimestamp(result.started_unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
    if result.stdout_bytes:
        line.stdout, line.stdout_truncated, line.stdout_b64 = _shown(
            result.stdout, result.stdout_file, result.stdout_bytes
        )
    if result.stderr_bytes:
        line.stderr, line.stderr_truncated, line.stderr_b64 = _shown(
            result.stderr, result.stderr_file, result.stderr_bytes
        )
    return _encode(line)


def line_without_result(record: Record) -> bytes:
    """The line of a task that ended without a result of its own: given up, or cancelled, with the evidence."""
    line = Line(
        task=record.number,
        input=record.input,
        attempt=record.attempt,
        agent=record.agent,
        outcome=record.outcome,
        evidence=record.evidence,
    )
    how = "given up" if record.outcome == "dead" else record.outcome
    line.error = {"code": f"task.{record.outcome}", "message": record.evidence[-1] if record.evidence else how}
    return _encode(line)


def _encode(line: Line) -> bytes:
    try:
        return _encoder.encode(line) + b"\n"
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError):
        # A value JSON has no words for (keys that are no text, say): its representation is better than no line.
        line.value, line.input = repr(line.value), line.input if isinstance(line.input, str) else repr(line.input)
        return _encoder.encode(line) + b"\n"


def _shown(inline: bytes, file: str | None, whole_bytes: int) -> tuple[str, bool, bytes | msgspec.UnsetType]:
    """Bounded text of an output, whether it was cut, and the same bytes as they are if they are no UTF-8."""
    limit = limits.OUTPUT_RESULT_BYTES_MAX
    if whole_bytes <= limit and (len(inline) == whole_bytes or file is None):
        head, tail = inline, b""
    else:
        head, tail = _ends(inline, file, whole_bytes, limit // 2)
    cut = len(head) + len(tail) < whole_bytes
    try:
        if not cut:
            return head.decode(), False, msgspec.UNSET
        middle = _gap(whole_bytes - len(head) - len(tail))
        text = _text(head, at_end=True) + middle + _text(tail, at_end=False)
    except UnicodeDecodeError:
        middle = _gap(whole_bytes - len(head) - len(tail)) if cut else ""
        return head.decode(errors="replace") + middle + tail.decode(errors="replace"), cut, head + tail
    return text, cut, msgspec.UNSET


def _ends(inline: bytes, file: str | None, whole_bytes: int, half: int) -> tuple[bytes, bytes]:
    """The first and the last bytes, from the spool file if the message holds only a part."""
    if file is not None and len(inline) < whole_bytes:
        with contextlib.suppress(OSError), open(file, "rb") as stream:
            if whole_bytes <= 2 * half:
                return stream.read(2 * half), b""
            head = stream.read(half)
            stream.seek(-half, os.SEEK_END)
            return head, stream.read(half)
    return (inline, b"") if len(inline) <= 2 * half else (inline[:half], inline[-half:])


def _gap(left_out_bytes: int) -> str:
    return f"\n[... {left_out_bytes} bytes left out ...]\n"


def _text(piece: bytes, *, at_end: bool) -> str:
    """Decode a piece that may begin or end inside a character, which is not what makes a text invalid."""
    for skip in range(4):
        part = piece[: len(piece) - skip] if at_end else piece[skip:]
        try:
            return part.decode()
        except UnicodeDecodeError:
            if skip == 3:
                raise
    return ""  # pragma: no cover - the loop returns or raises


class ResultsFile:
    """The file of one run, written by one coordinator at a time."""

    def __init__(self, path: str) -> None:
        """Open or create `path` and cut off a torn last line.

        Raises:
            ResultsFileError: It cannot be opened or read.
        """
        self.path = os.path.realpath(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self.is_regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self.size_bytes = self._cut_torn_line() if self.is_regular else 0
        except OSError as error:
            raise ResultsFileError(f"cannot write the results file {path}: {error.strerror}", path=path) from None

    def append(self, lines: list[bytes]) -> None:
        """Write lines, all of them or none.

        Raises:
            ResultsFileError: None of them is in the file.
        """
        data = memoryview(b"".join(lines))
        try:
            while data:
                written = os.write(self._fd, data)
                self.size_bytes += written
                data = data[written:]
        except OSError as error:
            if self.is_regular:
                self.size_bytes -= sum(map(len, lines)) - len(data)
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self.size_bytes)
            raise ResultsFileError(
                f"cannot write the results file {self.path}: {error.strerror}", path=self.path
            ) from None

    def numbers_behind(self, base_bytes: int) -> list[int]:
        """The task numbers of all lines that begin at or behind `base_bytes`, in the order of the file.

        Raises:
            ResultsFileError: The file cannot be read.
        """
        return [number for number, _ in self._lines(base_bytes)] if self.is_regular else []

    def drop_superseded(self) -> int:
        """Leave only the last line of each task; how many were dropped. The old file stays until the new one is complete.

        Raises:
            ResultsFileError: The file is as it was.
        """
        if not self.is_regular:
            return 0
        numbers = self.numbers_behind(0)
        last = {number: at for at, number in enumerate(numbers)}
        if len(last) == len(numbers):
            return 0
        temporary = f"{self.path}.{os.getpid()}.tmp"
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
            with os.fdopen(os.dup(fd), "wb") as stream:
                for at, (number, line) in enumerate(self._lines(0)):
                    if last[number] == at:
                        stream.write(line)
                stream.flush()
                os.fsync(fd)
            os.rename(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise ResultsFileError(
                f"cannot rewrite the results file {self.path}: {error.strerror}", path=self.path
            ) from None
        os.close(self._fd)
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size
        return len(numbers) - len(last)

    def sync(self) -> None:
        """Force everything to disk. Raises ResultsFileError."""
        try:
            if self.is_regular:
                os.fsync(self._fd)
        except OSError as error:
            raise ResultsFileError(
                f"cannot write the results file {self.path}: {error.strerror}", path=self.path
            ) from None

    def close(self) -> None:
        """Let go of the file. Safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cut_torn_line(self) -> int:
        size = os.fstat(self._fd).st_size
        at = size
        while at > 0:
            start = max(0, at - _READ_BYTES)
            chunk = os.pread(self._fd, at - start, start)
            end = chunk.rfind(b"\n")
            if end >= 0:
                at = start + end + 1
                break
            at = start
        if at != size:
            os.ftruncate(self._fd, at)
        return at

    def _lines(self, base_bytes: int) -> Iterator[tuple[int, bytes]]:
        at, rest = base_bytes, b""
        while True:
            try:
                chunk = os.pread(self._fd, _READ_BYTES, at)
            except OSError as error:
                raise ResultsFileError(
                    f"cannot read the results file {self.path}: {error.strerror}", path=self.path
                ) from None
            if not chunk:
                return
            at += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                found = _NUMBER.match(line)
                if found is not None:
                    yield int(found[1]), line + b"\n"
