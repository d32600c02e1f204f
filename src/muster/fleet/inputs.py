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

from muster.core import limits
from muster.errors import BodyTooLargeError, ConfigError, InputFileError

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

    def batches(self) -> Iterator[list[str]]:
        """Inputs in order, in lists of 1 to `SUBMIT_BATCH`; a list holds what one read gave, so a slow source is not held back.

        Raises:
            InputFileError: A source cannot be read, or holds something that is no text. Inputs before it have been yielded.
            BodyTooLargeError: An input does not fit into a message.
        """
        if self.words is not None:
            for at in range(0, len(self.words), limits.SUBMIT_BATCH):
                yield [_checked(word, "argument") for word in self.words[at : at + limits.SUBMIT_BATCH]]
            return
        for file in self.files:
            yield from _lines(file, b"\0" if self.null else b"\n")

    def check(self) -> None:
        """Open every file once, so that a missing one is reported before anything starts.

        Raises:
            InputFileError: A file cannot be opened, or is a directory.
        """
        for file in self.files:
            if file != "-":
                with _opened(file) as fd:
                    if stat.S_ISDIR(os.fstat(fd).st_mode):
                        raise InputFileError(f"cannot read inputs from {file!r:.200}: it is a directory", path=file)


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


def choose(words: tuple[str, ...] | None, files: Sequence[str], *, null: bool) -> Inputs:
    """The source that a command line means.

    Raises:
        ConfigError: There is none, or there are two kinds at once.
    """
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


def _lines(file: str, end: bytes) -> Iterator[list[str]]:
    where = "standard input" if file == "-" else file
    rest = b""
    number = 0
    with _opened(file) as fd:
        while True:
            try:
                chunk = os.read(fd, READ_BYTES)
            except OSError as error:
                raise InputFileError(f"cannot read inputs from {where}: {error.strerror}", path=file) from None
            *lines, rest = (rest + chunk).split(end) if chunk else (rest, b"")
            texts = []
            for line in lines:
                number += 1
                if line:
                    texts.append(_text(line, where, number))
            for at in range(0, len(texts), limits.SUBMIT_BATCH):
                yield texts[at : at + limits.SUBMIT_BATCH]
            if not chunk:
                return
            if len(rest) > INPUT_BYTES_MAX:
                raise BodyTooLargeError(
                    f"{where}: input {number + 1} is longer than {INPUT_BYTES_MAX} bytes", path=file
                )


def _text(line: bytes, where: str, number: int) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InputFileError(
            f"{where}: line {number} is not UTF-8 text: {line[:40]!r}", path=where, line=number
        ) from None
    return _checked(text, f"{where}: line {number}")


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
