"""What a response cost: read beside the stream, which it never changes or holds up.

Server-sent events and plain JSON of the two APIs: Messages (`message_start`, `message_delta`), Chat Completions (`usage` of the last chunk)
and Responses (`response.completed`). What is no such thing counts as a request with no tokens.
"""

from __future__ import annotations

import msgspec

from muster.limit.prices import Usage

#: Bytes of a line or of a JSON body that are kept to be read; what is larger is not counted.
KEEP_BYTES_MAX = 256 << 10
JSON_BYTES_MAX = 4 << 20


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _UsageFields(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Inner(msgspec.Struct):
    model: str | None = None
    usage: _UsageFields | None = None


class _Event(msgspec.Struct):
    model: str | None = None
    usage: _UsageFields | None = None
    message: _Inner | None = None
    response: _Inner | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Meter:
    """Reads one response's usage. `feed` takes the body as it passes; `usage` is what is known so far."""

    def __init__(self, content_type: bytes) -> None:
        self.usage = Usage()
        self._is_events = content_type.startswith(b"text/event-stream")
        self._is_json = content_type.startswith(b"application/json")
        self._rest = bytearray()
        self._is_skipping = False

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        if self._is_events:
            self._feed_lines(data)
        elif self._is_json and not self._is_skipping:
            if len(self._rest) + len(data) > JSON_BYTES_MAX:
                self._is_skipping = True
                self._rest.clear()
            else:
                self._rest += data

    def end(self) -> Usage:
        """The body is over."""
        if self._is_json and self._rest:
            self._take(bytes(self._rest))
        return self.usage

    def _feed_lines(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._is_skipping:
                self._is_skipping = False
            else:
                whole = bytes(self._rest) + line
                # Only lines that can hold a usage are parsed: most are pieces of text.
                if whole.startswith(b"data:") and b'"usage"' in whole:
                    self._take(whole[5:])
            self._rest.clear()
        if self._is_skipping or len(self._rest) + len(rest) > KEEP_BYTES_MAX:
            self._is_skipping = True
            self._rest.clear()
        else:
            self._rest += rest

    def _take(self, text: bytes) -> None:
        try:
            event = _decode(text)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            return
        for part in (event, event.message, event.response):
            if part is not None:
                self._note(part.model, part.usage)

    def _note(self, model: str | None, fields: _UsageFields | None) -> None:
        usage = self.usage
        if model:
            usage.model = model[:200]
        if fields is None:
            return
        cached = fields.cache_read_input_tokens or 0
        fresh = (fields.input_tokens or 0) + (fields.cache_creation_input_tokens or 0)
        if fields.prompt_tokens is not None or fields.input_tokens_details is not None:
            # OpenAI's input includes what came from the cache; Anthropic's does not.
            details = fields.prompt_tokens_details or fields.input_tokens_details
            cached = details.cached_tokens if details is not None else 0
            fresh = (fields.prompt_tokens if fields.prompt_tokens is not None else fields.input_tokens or 0) - cached
        if fresh > 0 or cached > 0:
            usage.input_tokens, usage.cached_tokens = max(0, fresh), max(0, cached)
        out = fields.output_tokens if fields.output_tokens is not None else fields.completion_tokens
        if out is not None:
            usage.output_tokens = max(0, out)
