"""What every verb prints with: JSON, aligned columns, one-sentence errors. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import sys

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn, TextIO

    from muster.errors import MusterError

_PAINT = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


def colored(stream: TextIO) -> bool:
    """Whether `stream` takes colours: a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, color: str, stream: TextIO | None = None) -> str:
    """`text` in a colour if the stream takes any."""
    return f"\x1b[{_PAINT[color]}m{text}\x1b[0m" if color and colored(stream or sys.stdout) else text


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def safe(text: object) -> str:
    """`text` without characters that control a terminal; newlines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def columns(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, colors: dict[str, str] | None = None
) -> list[str]:
    """Rows as aligned lines that fit the terminal; numbers to the right. `colors` paints cells that are exactly such a word."""
    cells = [list(row) for row in rows]
    table = [["" if cell is None else safe(cell).replace("\n", " ") for cell in row] for row in cells]
    right = [
        bool(cells) and all(row[at] is None or isinstance(row[at], int | float) for row in cells)
        for at in range(len(head))
    ]
    widths = [
        max(len(title), *(len(row[at]) for row in table)) if table else len(title) for at, title in enumerate(head)
    ]
    room = _width()
    lines = [_line(list(head), widths, right, room, {})]
    if colored(sys.stdout):
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    lines += [_line(row, widths, right, room, colors or {}) for row in table]
    return lines


def _line(cells: list[str], widths: list[int], right: list[bool], room: int, colors: dict[str, str]) -> str:
    padded = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    text = "  ".join(padded).rstrip()
    if len(text) > room:
        return text[: room - 1] + "…"
    if colors:
        padded = [
            part.replace(cell, paint(cell, colors[cell])) if cell in colors else part
            for part, cell in zip(padded, cells, strict=True)
        ]
        text = "  ".join(padded).rstrip()
    return text


def _width() -> int:
    if not sys.stdout.isatty():
        return 10_000  # whoever reads a pipe wants all of it
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def say(line: str) -> None:
    """One line on standard error. A terminal that went away takes nothing but the line: the exit status still tells."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def report_error(error: MusterError, *, as_json: bool) -> None:
    """One sentence on standard error, or `{"error": {…}}` on standard output."""
    if as_json:
        print_json({"error": error.as_dict()})
        sys.stdout.flush()
    else:
        say(f"muster: {safe(error.message)}")


def leave(status: int) -> NoReturn:
    """End the process now: flushed, without waiting for threads that wait for nothing any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 141
    os._exit(status)
