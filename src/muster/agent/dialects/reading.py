"""One vocabulary for the event streams of coding command lines, and the reader that all dialects share.

A stream is lines of JSON on standard output. It is a peer's text: lines may be cut, hold anything, or never end. So a line is bounded, what
is no event is counted and left out, and fields are believed only when they have the type that they should have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import msgspec

from muster.core import limits

State = Literal["starting", "working", "waiting", "limited", "context_full", "done", "failed"]

#: Longest line of a stream, in bytes; the rest of a longer one is skipped. Answers travel in one line, so it is generous.
LINE_BYTES_MAX = 4 << 20
#: Characters kept of an answer and of an error's text.
ANSWER_CHARS_MAX = 64 << 10
ERROR_CHARS_MAX = 500


class Limited(msgspec.Struct, frozen=True):
    """A vendor's limit was hit. `resets_unix_s`: wall time when it ends, `retry_after_s`: the same from now; None: it did not say."""

    text: str
    resets_unix_s: float | None = None
    retry_after_s: float | None = None
    #: The vendor's name of the limit, such as "five_hour"; empty if it gave none.
    kind: str = ""

    def wait_s(self, now_unix_s: float) -> float | None:
        """Seconds until it is over, 0 to `limits.LIMITED_S_MAX`; None if it did not say."""
        wait_s = self.retry_after_s
        if wait_s is None and self.resets_unix_s is not None:
            wait_s = self.resets_unix_s - now_unix_s
        return None if wait_s is None else min(max(0.0, wait_s), limits.LIMITED_S_MAX)


class Reading(msgspec.Struct):
    """What is known of a session so far. Tokens and cost are totals of the session; None means that it was not told."""

    state: State = "starting"
    session_id: str = ""
    model: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    turns: int = 0
    #: The last tool that was called, or what is waited for.
    doing: str = ""
    answer: str = ""
    error: str = ""
    limited: Limited | None = None
    #: Share of a vendor's limit that is used up, 0 to 1; None: not told.
    utilization: float | None = None
    lines: int = 0
    lines_left_out: int = 0
    #: Why the first line that was left out was left out, in one sentence.
    complaint: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the session has said how it ended."""
        return self.state in ("done", "failed", "limited", "context_full")


class Reader:
    """Feeds bytes to one dialect and keeps its `reading`. Never raises for what a stream holds; memory is bounded."""

    #: The dialect's name in sentences.
    name: ClassVar[str] = "the command"
    #: Event type -> method that takes the event.
    events: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.reading = Reading()
        self._rest = bytearray()
        self._skipping = False
        self._number = 0
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            kind: getattr(self, method) for kind, method in self.events.items()
        }

    def feed(self, data: bytes) -> State:
        """Take in the next bytes of the stream, cut anywhere. Returns the state after them."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            self._end_line()
        self._add(rest)
        return self.reading.state

    def end(self) -> Reading:
        """The stream has ended: a last line without its newline counts if it is whole."""
        if self._rest and not self._skipping:
            self._end_line()
        return self.reading

    def _add(self, part: bytes) -> None:
        if self._skipping:
            return
        if len(self._rest) + len(part) > LINE_BYTES_MAX:
            self._skipping = True
            self._rest.clear()
        else:
            self._rest += part

    def _end_line(self) -> None:
        self._number += 1
        line, was_long = bytes(self._rest).strip(), self._skipping
        self._rest.clear()
        self._skipping = False
        if was_long:
            self._leave_out(f"is longer than {LINE_BYTES_MAX >> 20} MiB")
        elif line:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self._leave_out("is not JSON")
            return
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            self._leave_out("is no event: it has no type")
            return
        self.reading.lines += 1
        handle = self._handlers.get(event["type"])
        if handle is not None:
            handle(event)

    def _leave_out(self, why: str) -> None:
        self.reading.lines_left_out += 1
        if not self.reading.complaint:
            self.reading.complaint = (
                f"line {self._number:,} of the event stream of {self.name} {why}, so it was left out"
            )

    # ------------------------------------------------------------------ for dialects

    def move(self, state: State, doing: str = "") -> None:
        """Note what the session does now. How it ended is said once, at the end."""
        if not self.reading.is_over or state in ("done", "failed", "limited", "context_full"):
            self.reading.state = state
            self.reading.doing = doing[:80]

    def fail(self, text_of_error: str, limited: Limited | None) -> None:
        """Note an end without success, told apart by what the text says."""
        reading = self.reading
        reading.error = text_of_error[:ERROR_CHARS_MAX]
        if limited is not None:
            reading.limited = limited
            self.move("limited")
        elif says_context_full(text_of_error):
            self.move("context_full")
        else:
            self.move("failed")


def text(value: object, chars_max: int = 200) -> str:
    """`value` if it is a text, cut; else nothing."""
    return value[:chars_max] if isinstance(value, str) else ""


def number(value: object) -> float | None:
    """`value` if it is a finite number that is not negative; else None. True is not 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < float("inf") else None


def count(value: object) -> int:
    """`value` as a whole number that is not negative; 0 for anything else."""
    found = number(value)
    return int(found) if found is not None else 0


def table(value: object) -> dict[str, Any]:
    """`value` if it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}


_CONTEXT_FULL = (
    "prompt is too long",
    "context window",
    "context_length_exceeded",
    "maximum context length",
    "input token count",
)


def says_context_full(message: str) -> bool:
    """Whether an error says that the conversation no longer fits the model."""
    lowered = message.lower()
    return any(phrase in lowered for phrase in _CONTEXT_FULL)
