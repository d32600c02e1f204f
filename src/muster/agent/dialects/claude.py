"""Claude Code: `claude -p … --output-format stream-json --verbose`.

Its result event says `subtype: "success"` even when the request was refused, and the process may exit with 0; only `is_error` is
believed. A `rate_limit_event` comes with every answer; only `status: "rejected"` means that the limit is hit.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from muster.agent.dialects.limits import limit_in
from muster.agent.dialects.reading import ANSWER_CHARS_MAX, Limited, Reader, count, number, table, text


class ClaudeReader(Reader):
    """Reads one session."""

    name = "claude"
    events: ClassVar = {
        "system": "_system",
        "assistant": "_assistant",
        "user": "_user",
        "control_request": "_asks",
        "rate_limit_event": "_rate_limit",
        "result": "_result",
    }

    def _system(self, event: dict[str, Any]) -> None:
        reading = self.reading
        kind = event.get("subtype")
        if kind == "init":
            reading.session_id = text(event.get("session_id"))
            reading.model = text(event.get("model"))
            self.move("working")
        elif kind == "api_retry":
            self.move("working", f"retrying: {text(event.get('error')) or 'the API refused a request'}")

    def _assistant(self, event: dict[str, Any]) -> None:
        message = table(event.get("message"))
        content = message.get("content")
        blocks = [table(block) for block in content] if isinstance(content, list) else []
        calls = [text(block.get("name")) for block in blocks if block.get("type") == "tool_use"]
        if not event.get("parent_tool_use_id"):
            self.reading.turns += 1
        self.move("working", calls[-1] if calls else "")

    def _user(self, _event: dict[str, Any]) -> None:
        self.move("working")

    def _asks(self, event: dict[str, Any]) -> None:
        request = table(event.get("request"))
        if request.get("subtype") == "can_use_tool":
            self.move("waiting", f"permission for {text(request.get('tool_name')) or 'a tool'}")

    def _rate_limit(self, event: dict[str, Any]) -> None:
        info = table(event.get("rate_limit_info"))
        used = number(info.get("utilization"))
        if used is not None:
            self.reading.utilization = min(1.0, used)
        if info.get("status") == "rejected":
            kind = text(info.get("rateLimitType"))
            self.reading.limited = Limited(
                f"claude's {kind or 'usage'} limit is used up", resets_unix_s=number(info.get("resetsAt")), kind=kind
            )

    def _result(self, event: dict[str, Any]) -> None:
        reading = self.reading
        usage = table(event.get("usage"))
        reading.session_id = text(event.get("session_id")) or reading.session_id
        reading.cached_tokens = count(usage.get("cache_read_input_tokens"))
        reading.input_tokens = (
            count(usage.get("input_tokens")) + count(usage.get("cache_creation_input_tokens")) + reading.cached_tokens
        )
        reading.output_tokens = count(usage.get("output_tokens"))
        reading.cost_usd = number(event.get("total_cost_usd"))
        reading.turns = count(event.get("num_turns")) or reading.turns
        said = text(event.get("result"), ANSWER_CHARS_MAX)
        if event.get("is_error") is False and event.get("subtype") == "success":
            reading.answer = said
            reading.limited = None  # it went on after all
            self.move("done")
            return
        why = said or text(event.get("subtype")) or "the session ended with an error"
        self.fail(why, reading.limited or limit_in(why, time.time()))
