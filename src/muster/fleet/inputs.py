"""Inputs of a run: from `::: a b c`, from files (`-a FILE`, `-` for standard input), else from a standard input that is no terminal.

Streamed: a source is read as the run takes its inputs, so that `tail -f list | muster run …` starts each line as it comes and an endless
list costs no memory. Lines end in a newline (or NUL with `--null`); the last one may lack it; empty lines are no inputs.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from muster.core import limits
from muster.core.protocol import TaskInput
from muster.errors import BodyTooLargeError, ConfigError, InputFileError
from muster.fleet.task_lines import parse

#: An input: a text, or a task with wishes.
Item: TypeAlias = str | TaskInput

#: One read of a source; a pipe holds this much.
READ_BYTES = 64 << 10
#: Longest input: what fits into a message, with room for the rest of a batch of one.
INPUT_BYTES_MAX = limits.BODY_BYTES_MAX - 1024
SEPARATOR = ":::"


@dataclass(frozen=True)
class Inputs:
    """Where a run's inputs come from. With `words` there are no files."""

    words: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    null: bool = False
    #: Lines are tasks with wishes of their own (see `task_lines`).
    are_tasks: bool = False

    def batches(self) -> Iterator[list[Item]]:
        """Inputs in order, in lists of 1 to `SUBMIT_BATCH`; a list holds what one read gave, so a slow source is not held back.

        Raises:
            InputFileError: A source cannot be read, or holds something that is no text. Inputs before it have been yielded.
            BodyTooLargeError: An input does not fit into a message.
        """
        if self.words is not None:
            for at in range(0, len(self.words), limits.SUBMIT_BATCH):
                yield [_checked(word, "argument") for word in self.words[at : at + limits.SUBMIT_BATCH]]
            return
        if self.are_tasks:
            number = 0
            for file in self.files:
                for batch in _lines(file, b"\n"):
                    yield [
                        parse(line, number + at, f"{_name(file)}: line {place}")
                        for at, (line, place) in enumerate(batch, 1)
                    ]
                    number += len(batch)
            return
        for file in self.files:
            for batch in _lines(file, b"\0" if self.null else b"\n"):
                yield [_text(line, file, place) for line, place in batch]

    def check(self) -> None:
        """Open every file once, so that a missing one is reported before anything starts; tasks in files are read once.

        Raises:
            InputFileError: A file cannot be opened, is a directory, or holds what is no task.
            BodyTooLargeError: A task does not fit into a message.
        """
        can_be_read_twice = True
        for file in self.files:
            if file == "-":
                can_be_read_twice = False
                continue
            with _opened(file) as fd:
                mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise InputFileError(f"cannot read inputs from {file!r:.200}: it is a directory", path=file)
            can_be_read_twice = can_be_read_twice and stat.S_ISREG(mode)
        if self.are_tasks and can_be_read_twice:
            for _ in self.batches():
                pass


def split_words(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The words behind the options as (command, inputs behind `:::`); inputs are None without a `:::`.

    Raises:
        ConfigError: There is more than one `:::`.
    """
    if SEPARATOR not in words:
        return tuple(words), None
    at = list(words).index(SEPARATOR)
    inputs = tuple(words[at + 1 :])
    if SEPARATOR in inputs:
        raise ConfigError(
            "only one ::: is understood; write the combinations into a file and give it with -a", key=SEPARATOR
        )
    return tuple(words[:at]), inputs


def choose(
    words: tuple[str, ...] | None, files: Sequence[str], *, null: bool = False, tasks: Sequence[str] = ()
) -> Inputs:
    """The source that a command line means.

    Raises:
        ConfigError: There is none, or there are two kinds at once.
    """
    if tasks:
        if words is not None or files or null:
            raise ConfigError("--tasks goes with neither ::: nor -a nor --null", key="tasks")
        if list(tasks).count("-") > 1:
            raise ConfigError("standard input (--tasks -) can be read only once", key="tasks")
        return Inputs(files=tuple(tasks), are_tasks=True)
    if words is not None and files:
        raise ConfigError("inputs come either from ::: or from -a FILE, not from both", key="inputs")
    if words is not None:
        return Inputs(words=words)
    if files:
        if list(files).count("-") > 1:
            raise ConfigError("standard input (-a -) can be read only once", key="inputs")
        return Inputs(files=tuple(files), null=null)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ConfigError("no inputs: give them behind :::, in a file with -a FILE, or on standard input", key="inputs")
    return Inputs(files=("-",), null=null)


@contextmanager
def _opened(file: str) -> Iterator[int]:
    """A descriptor to read `file` from. The raw one: a buffered reader that blocks in a thread cannot be closed at exit."""
    if file == "-":
        yield 0
        return
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputFileError(f"cannot read inputs from {file!r:.200}: {reason}", path=file) from None
    try:
        yield fd
    finally:
        os.close(fd)


def text_of(item: Item) -> Any:
    """What a handler or command is given of an input."""
    return item if isinstance(item, str) else item.input


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _lines(file: str, end: bytes) -> Iterator[list[tuple[bytes, int]]]:
    """The lines of a file that hold something, with their numbers."""
    where = _name(file)
    rest = b""
    number = 0
    with _opened(file) as fd:
        while True:
            try:
                chunk = os.read(fd, READ_BYTES)
            except OSError as error:
                raise InputFileError(f"cannot read inputs from {where}: {error.strerror}", path=file) from None
            *lines, rest = (rest + chunk).split(end) if chunk else (rest, b"")
            found = []
            for line in lines:
                number += 1
                if line:
                    found.append((line, number))
            for at in range(0, len(found), limits.SUBMIT_BATCH):
                yield found[at : at + limits.SUBMIT_BATCH]
            if not chunk:
                return
            if len(rest) > INPUT_BYTES_MAX:
                raise BodyTooLargeError(
                    f"{where}: input {number + 1} is longer than {INPUT_BYTES_MAX} bytes", path=file
                )


def _text(line: bytes, file: str, number: int) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InputFileError(
            f"{_name(file)}: line {number} is not UTF-8 text: {line[:40]!r}", path=_name(file), line=number
        ) from None
    return _checked(text, f"{_name(file)}: line {number}")


def _checked(text: str, where: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputFileError(f"{where}: {text!r:.60} is not UTF-8 text") from None
    if size > INPUT_BYTES_MAX:
        raise BodyTooLargeError(f"{where}: an input of {size} bytes is longer than {INPUT_BYTES_MAX}")
    if "\0" in text:
        raise InputFileError(f"{where}: {text!r:.60} contains a NUL byte; read such lists with --null")
    return text
