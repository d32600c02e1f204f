"""Gemini: `gemini -p … --output-format stream-json`."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from muster.agent.dialects.limits import limit_in
from muster.agent.dialects.reading import ANSWER_CHARS_MAX, Reader, count, table, text


class GeminiReader(Reader):
    """Reads one session."""

    name = "gemini"
    events: ClassVar = {
        "init": "_init",
        "message": "_message",
        "tool_use": "_tool",
        "tool_result": "_tool_result",
        "error": "_error",
        "result": "_result",
    }

    def _init(self, event: dict[str, Any]) -> None:
        self.reading.session_id = text(event.get("session_id")) or text(event.get("sessionId"))
        self.reading.model = text(event.get("model"))
        self.move("working")

    def _message(self, event: dict[str, Any]) -> None:
        if event.get("role") != "assistant":
            return
        said = text(event.get("content"), ANSWER_CHARS_MAX)
        before = self.reading.answer if event.get("delta") is True else ""
        if not event.get("delta"):
            self.reading.turns += 1
        self.reading.answer = (before + said)[:ANSWER_CHARS_MAX]
        self.move("working")

    def _tool(self, event: dict[str, Any]) -> None:
        self.move("working", text(event.get("tool_name"), 80))

    def _tool_result(self, _event: dict[str, Any]) -> None:
        self.move("working")

    def _error(self, event: dict[str, Any]) -> None:
        message = text(event.get("message"), 500)
        self.reading.error = message
        self.reading.limited = limit_in(message, time.time()) or self.reading.limited

    def _result(self, event: dict[str, Any]) -> None:
        reading = self.reading
        stats = table(event.get("stats"))
        reading.input_tokens = count(stats.get("input_tokens"))
        reading.cached_tokens = count(stats.get("cached"))
        reading.output_tokens = count(stats.get("output_tokens"))
        if event.get("status") == "success":
            reading.limited, reading.error = None, ""
            self.move("done")
            return
        message = (
            text(table(event.get("error")).get("message"), 500) or reading.error or "the session ended with an error"
        )
        self.fail(message, limit_in(message, time.time()) or reading.limited)
