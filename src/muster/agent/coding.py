"""Attempts of coding command lines: their event stream is read while they work, and believed about how it ended.

Their exit statuses are not worth much: one that was refused by its API says success and exits with 0, one that did its work exits with 1
because some tool was not there. The stream knows. It is read from the file that the command writes to anyway, a little at a time;
nothing is added between the command and its output.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muster.agent.attempt import Ending
from muster.agent.dialects import READERS
from muster.agent.dialects.limits import limit_in
from muster.agent.output import Captured
from muster.core.presets import PRESETS
from muster.limit.prices import Usage, built_in

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from muster.agent.attempt import Attempt
    from muster.agent.dialects import Limited, Reading
    from muster.core.spec import CodingSpec

#: Pause between two looks at the stream of a command that works.
LOOK_S = 0.5
#: Bytes read in one look; the loop has its turn between two of them.
LOOK_BYTES = 256 << 10
#: A refusal that names no time is tried again after so long.
LIMITED_S = 30.0


class Session:
    """The event stream of one attempt. `moved(state)` is called when the command begins to wait, or works again."""

    def __init__(
        self, coding: CodingSpec, fd: int, loop: asyncio.AbstractEventLoop, moved: Callable[[str], None]
    ) -> None:
        self._coding = coding
        self._reader = READERS[PRESETS[coding.preset].dialect]()
        self._fd, self._at = fd, 0
        self._loop, self._moved = loop, moved
        self._shown = ""
        self._timer: asyncio.TimerHandle | None = loop.call_later(LOOK_S, self._look)
        self._digest = hashlib.sha256()

    @property
    def reading(self) -> Reading:
        """What the stream has told so far."""
        return self._reader.reading

    def _look(self) -> None:
        more = self._read_on()
        state = self.reading.state
        shown = state if state in ("waiting", "limited") else "busy"
        if shown != self._shown:
            self._shown = shown
            self._moved(shown)
        self._timer = self._loop.call_later(0.0 if more else LOOK_S, self._look)

    def _read_on(self) -> bool:
        data = os.pread(self._fd, LOOK_BYTES, self._at)
        self._at += len(data)
        if data:
            self._digest.update(data)
            self._reader.feed(data)
        return len(data) == LOOK_BYTES

    def end(self) -> None:
        """The command is gone: read the rest. Before its output is taken away."""
        self.cancel()
        with contextlib.suppress(OSError):
            while self._read_on():
                pass
        self._reader.end()

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def keep(self, attempt: Attempt) -> dict[str, Any] | None:
        """Copy the stream into the directory for transcripts; where it is, and its digest. None: none is kept, or it could not be."""
        if self._coding.transcripts is None:
            return None
        path = Path(self._coding.transcripts) / f"task-{attempt.number}.{attempt.attempt}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                at = 0
                while data := os.pread(self._fd, LOOK_BYTES, at):
                    file.write(data)
                    at += len(data)
        except OSError as error:
            return {"error": f"{path} could not be written: {error.strerror}"}
        return {"file": str(path), "bytes": at, "sha256": self._digest.hexdigest()}

    # ------------------------------------------------------------------ the verdict

    def judge(self, ending: Ending, transcript: dict[str, Any] | None) -> Ending:
        """The ending as the stream tells it. What muster itself ended (timeout, cancel, limits) stays what it was."""
        reading = self.reading
        ending.session, ending.tokens = reading.session_id, reading.input_tokens + reading.output_tokens
        ending.cost_usd = self._cost_usd()
        ending.value = self._summary(transcript, ending.cost_usd)
        if ending.outputs is not None:
            answer = (reading.answer.rstrip("\n") + "\n").encode(errors="replace") if reading.answer else b""
            forget(ending.outputs[0])
            ending.outputs = (Captured(answer, len(answer), None), ending.outputs[1])
        if ending.error is not None or ending.outcome in ("timeout", "cancelled"):
            return ending
        limited = self._limited(ending)
        if limited is not None:
            wait_s = limited.wait_s(time.time())
            ending.outcome, ending.resets_in_s = "limited", LIMITED_S if wait_s is None else wait_s
            ending.error = {"code": "limit.vendor", "message": limited.text}
        elif reading.state == "done":
            ending.outcome = "done"
        else:
            ending.outcome = "killed" if ending.outcome == "killed" else "failed"
            ending.error = self._why(ending)
        return ending

    def _cost_usd(self) -> float | None:
        """As the stream tells it, else by the price table, as far as that knows the model."""
        reading = self.reading
        if reading.cost_usd is not None or not reading.model:
            return reading.cost_usd
        fresh = max(0, reading.input_tokens - reading.cached_tokens)
        cost = built_in().cost_usd(Usage(reading.model, fresh, reading.cached_tokens, reading.output_tokens))
        return None if cost is None else float(cost)

    def _limited(self, ending: Ending) -> Limited | None:
        reading = self.reading
        if reading.state == "done":
            return None
        if reading.limited is not None and (reading.state == "limited" or not reading.is_over):
            return reading.limited
        if not reading.is_over and ending.outputs is not None:  # it ended before it could speak its own language
            return limit_in(ending.outputs[1].head[-4096:].decode(errors="replace"), time.time())
        return None

    def _why(self, ending: Ending) -> dict[str, Any]:
        reading, name = self.reading, self._coding.preset
        if reading.state == "context_full":
            return {
                "code": "session.context_full",
                "message": f"{name}'s conversation no longer fits its model: {reading.error}",
            }
        if reading.state == "failed":
            return {"code": "session.failed", "message": f"{name} says: {reading.error}"}
        how = f"signal {ending.signal}" if ending.signal is not None else f"status {ending.exit_status}"
        told = f" ({reading.complaint})" if reading.complaint else ""
        return {
            "code": "session.no_end",
            "message": f"{name} ended with {how} without saying how its session ended{told}",
        }

    def _summary(self, transcript: dict[str, Any] | None, cost_usd: float | None) -> dict[str, Any]:
        reading = self.reading
        summary: dict[str, Any] = {
            "answer": reading.answer,
            "session": reading.session_id,
            "model": reading.model,
            "turns": reading.turns,
            "tokens": {
                "input": reading.input_tokens,
                "cached": reading.cached_tokens,
                "output": reading.output_tokens,
            },
            "cost_usd": cost_usd,
        }
        if reading.complaint:
            summary["left_out"] = {"lines": reading.lines_left_out, "first": reading.complaint}
        if transcript is not None:
            summary["transcript"] = transcript
        return summary


def forget(captured: Captured) -> None:
    """Remove an output's file: the stream is not what people want to read."""
    if captured.file is not None:
        with contextlib.suppress(OSError):
            os.unlink(captured.file)
