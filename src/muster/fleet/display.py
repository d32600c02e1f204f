"""Progress for a person, on standard error: one live line on a terminal, a plain line every few seconds elsewhere.

The live line is composed here rather than by a widget library: it is drawn a few times a second beside two cores of real work, and task
output has to be put above it byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from muster.core.protocol import Progress

#: Shortest time between two drawings of the live line.
DRAW_INTERVAL_S = 0.1
#: First plain line and time between plain lines.
PLAIN_FIRST_S = 2.0
PLAIN_INTERVAL_S = 5.0
BAR_CELLS_MAX = 40
BAR_CELLS_MIN = 8

_GREEN, _RED, _YELLOW, _DIM, _RESET = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


def compose(progress: Progress, width: int, *, color: bool) -> str:
    """The live line, at most `width` cells wide; what matters least is left out first."""
    total, ended = progress.total, progress.done + progress.failed
    if total is None:
        counts = f"{ended:,} of {progress.submitted:,} so far"
    else:
        counts = f"{ended:,}/{total:,} {_percent(ended, total)}"
    parts = [(counts, "")]
    if progress.failed:
        parts.append((f"{progress.failed:,} failed", _RED))
    parts += [(text, _YELLOW) for text in _paused(progress)]
    parts += [(text, _DIM) for text in _rest(progress)]
    room = width - 1  # the last cell stays empty: some terminals wrap as soon as it is written
    while len(parts) > 1 and _cells(parts) > room:
        parts.pop()
    text = " · ".join(f"{paint}{text}{_RESET}" if color and paint else text for text, paint in parts)
    cells = min(BAR_CELLS_MAX, room - _cells(parts) - 1)
    if total is None or cells < BAR_CELLS_MIN:
        return text if _cells(parts) <= room else counts[:room]
    return f"{_bar(ended, total, cells, color=color)} {text}"


def _paused(progress: Progress) -> list[str]:
    """Limits that are waited for, and how long still: the answer to "why does nothing happen?"."""
    left = {name: until - time.time() for name, until in progress.paused_limits.items()}
    return [
        *(["held back: no room on this machine"] if progress.held_back else []),
        *(
            f"{name} limited, {clock(wait_s)} left" if wait_s > 0 else f"{name} limited, probing"
            for name, wait_s in left.items()
        ),
    ]


def _rest(progress: Progress) -> list[str]:
    """The less important parts, most important first."""
    if progress.agents_ready < progress.agents and not progress.done and not progress.failed:
        return [f"{progress.agents_ready}/{progress.agents} agents ready"]
    rest = [f"{progress.running} running"]
    if progress.eta_s is not None and progress.total is not None:
        rest.append(f"{clock(progress.eta_s)} left")
    if progress.rate_per_s > 0:
        rest.append(rate(progress.rate_per_s))
    if progress.restarts:
        rest.append(f"{progress.restarts} restarted")
    if progress.reassigned:
        rest.append(f"{progress.reassigned} reassigned")
    rest.append(clock(progress.elapsed_s))
    return rest


def plain(progress: Progress) -> str:
    """The same as one line of text for a log."""
    total, ended = progress.total, progress.done + progress.failed
    counts = (
        f"{ended:,} of {progress.submitted:,} so far"
        if total is None
        else f"{ended:,}/{total:,} {_percent(ended, total)}"
    )
    failed = [f"{progress.failed:,} failed"] if progress.failed else []
    return "muster: " + ", ".join([counts, *failed, *_paused(progress), *_rest(progress)])


def rate(per_s: float) -> str:
    """A rate with about three digits: `311/s`, `4.2/s`, `18/min`."""
    if per_s >= 10:
        return f"{per_s:,.0f}/s"
    return f"{per_s:.1f}/s" if per_s >= 1 else f"{per_s * 60:.0f}/min"


def clock(seconds: float) -> str:
    """`0:07`, `12:31`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _percent(part: int, whole: int) -> str:
    # Rounded down: 100% is said when it is true, and not before.
    return f"{100 * part // whole}%" if whole else "100%"


def _cells(parts: list[tuple[str, str]]) -> int:
    return sum(len(text) for text, _ in parts) + 3 * (len(parts) - 1)


def _bar(part: int, whole: int, cells: int, *, color: bool) -> str:
    full = cells * part // whole if whole else cells
    left, right = "━" * full, "─" * (cells - full)
    return f"{_GREEN}{left}{_RESET}{_DIM}{right}{_RESET}" if color else left + right


class Display:
    """Shows the latest `Progress`. `kind`: "live", "plain" or "none". Methods may be called from several threads."""

    def __init__(self, kind: str, stream: TextIO | None = None) -> None:
        self.kind = kind
        self._stream = stream or sys.stderr
        self._lock = threading.RLock()
        self._latest: Progress | None = None
        self._drawn = False
        self._drawn_at = 0.0
        self._said_at = time.monotonic() + PLAIN_FIRST_S - PLAIN_INTERVAL_S
        self._color = kind == "live" and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @classmethod
    def fitting(cls, *, wanted: bool, stream: TextIO | None = None) -> Display:
        """Live on a terminal, plain elsewhere, nothing if it is not wanted."""
        stream = stream or sys.stderr
        if not wanted:
            return cls("none", stream)
        return cls("live" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain", stream)

    def update(self, progress: Progress) -> None:
        """Take the newest figures, and show them if it is time."""
        with self._lock:
            self._latest = progress
            now = time.monotonic()
            if self.kind == "live" and now - self._drawn_at >= DRAW_INTERVAL_S:
                self._draw(now)
            elif self.kind == "plain" and now - self._said_at >= PLAIN_INTERVAL_S:
                self._said_at = now
                self._write(plain(progress) + "\n")

    def say(self, line: str) -> None:
        """Put a line above the live line."""
        with self.hidden():
            self._write(line + "\n")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the live line away while something else is written to the terminal."""
        with self._lock:
            self._erase()
            yield
            if self.kind == "live" and self._latest is not None:
                self._draw(time.monotonic())

    def close(self) -> None:
        """Take the live line away for good."""
        with self._lock:
            self._erase()
            self.kind = "none"

    def _draw(self, now: float) -> None:
        assert self._latest is not None
        self._drawn_at, self._drawn = now, True
        self._write(_CLEAR_LINE + compose(self._latest, _width(self._stream), color=self._color))

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        # A terminal that went away must not end the run: its results are still wanted.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
