"""Codex: `codex exec --json …`. Limits come as prose inside `error` and `turn.failed`."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from muster.agent.dialects.limits import limit_in
from muster.agent.dialects.reading import ANSWER_CHARS_MAX, Reader, count, table, text


class CodexReader(Reader):
    """Reads one session."""

    name = "codex"
    events: ClassVar = {
        "thread.started": "_thread",
        "turn.started": "_turn",
        "turn.completed": "_completed",
        "turn.failed": "_failed",
        "item.started": "_item",
        "item.updated": "_item",
        "item.completed": "_item",
        "error": "_error",
    }

    def _thread(self, event: dict[str, Any]) -> None:
        self.reading.session_id = text(event.get("thread_id"))
        self.move("working")

    def _turn(self, _event: dict[str, Any]) -> None:
        self.reading.turns += 1
        self.reading.state = "working"  # a later turn of the same session may follow an earlier one's end

    def _completed(self, event: dict[str, Any]) -> None:
        usage, reading = table(event.get("usage")), self.reading
        reading.input_tokens += count(usage.get("input_tokens"))
        reading.cached_tokens += count(usage.get("cached_input_tokens"))
        reading.output_tokens += count(usage.get("output_tokens"))
        reading.limited, reading.error = None, ""
        self.move("done")

    def _item(self, event: dict[str, Any]) -> None:
        item = table(event.get("item"))
        kind = text(item.get("type")) or text(item.get("item_type"))
        if kind in ("agent_message", "assistant_message"):
            self.reading.answer = text(item.get("text"), ANSWER_CHARS_MAX)
        elif kind == "error":
            self.reading.error = text(item.get("message"), 500)
        self.move("working", text(item.get("command"), 80) or kind)

    def _error(self, event: dict[str, Any]) -> None:
        # The turn may go on (it retries by itself); how it ends is said by the turn, or by the end of the process.
        self._note(text(event.get("message"), 500))

    def _failed(self, event: dict[str, Any]) -> None:
        message = text(table(event.get("error")).get("message"), 500) or self.reading.error or "the turn failed"
        self.fail(message, limit_in(message, time.time()) or self.reading.limited)

    def _note(self, message: str) -> None:
        self.reading.error = message
        self.reading.limited = limit_in(message, time.time()) or self.reading.limited
