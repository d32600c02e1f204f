"""A server that plays the vendors' APIs over real HTTP: streams, refusals with reset times, slowness, cut connections.

Written on plain sockets and not on the proxy's own parts, so that both cannot share a mistake.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Asked:
    """One request as it arrived."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.at = time.monotonic()

    def json(self):
        return json.loads(self.body)


class Vendor:
    """Answers with `script`'s next entry, or by path. `asked` has every request in order."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.script: deque[Callable] = deque()
        self.connections = 0
        self.pieces = 20
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.strip().split("\r\n")
                method, path, _ = line.split(" ")
                headers = {key.lower(): value.strip() for key, _, value in (entry.partition(":") for entry in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body)
                self.asked.append(asked)
                answer = self.script.popleft() if self.script else self._by_path
                if await answer(asked, writer) is False:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _by_path(self, asked, writer):
        if "/messages" in asked.path:
            return await (message_stream(self.pieces) if asked.json().get("stream") else message)(asked, writer)
        if "/chat/completions" in asked.path:
            return await (chat_stream(self.pieces) if asked.json().get("stream") else chat)(asked, writer)
        return await plain(404, {"error": {"message": "no such path"}})(asked, writer)


# --------------------------------------------------------------------------- answers


def plain(status: int, body: dict | bytes, headers: dict[str, str] | None = None):
    """A whole JSON answer."""

    async def answer(_asked, writer):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
        lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()

    return answer


def refuse(status: int = 429, **headers: str):
    """A refusal, with headers such as retry_after="1"."""
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "too much"}}
    return plain(status, error, {key.replace("_", "-"): value for key, value in headers.items()})


MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-9",
    "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {"input_tokens": 1000, "cache_read_input_tokens": 200, "output_tokens": 50},
}  # fmt: skip
CHAT: dict[str, Any] = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-5-mini-1",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "prompt_tokens_details": {"cached_tokens": 400}},
}  # fmt: skip
message, chat = plain(200, MESSAGE), plain(200, CHAT)


def events_of_message(pieces: int) -> list[bytes]:
    """The server-sent events of a streamed message."""
    start = {
        **MESSAGE,
        "content": [],
        "usage": {"input_tokens": 1000, "cache_read_input_tokens": 200, "output_tokens": 1},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    events += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"piece {n} "}}
        for n in range(pieces)
    ]
    events.append({"type": "content_block_stop", "index": 0})
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}})
    events.append({"type": "message_stop"})
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def events_of_chat(pieces: int) -> list[bytes]:
    """The server-sent events of a streamed chat completion."""
    base: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini-1"}
    chunks = [{**base, "choices": [{"index": 0, "delta": {"content": f"piece {n} "}}]} for n in range(pieces)]
    chunks.append({**base, "choices": [], "usage": CHAT["usage"]})
    return [*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"]


def streamed(
    pieces: list[bytes], *, pause_s: float = 0.0, cut_after: int | None = None, content_type: str = "text/event-stream"
):
    """A chunked answer, piece by piece; `cut_after` so many of them the connection is reset."""

    async def answer(_asked, writer):
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\nx-odd: kept\r\n\r\n".encode()
        )
        for number, piece in enumerate(pieces):
            if number == cut_after:
                writer.transport.abort()
                return False
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return None

    return answer


def message_stream(pieces: int, **options):
    return streamed(events_of_message(pieces), **options)


def chat_stream(pieces: int, **options):
    return streamed(events_of_chat(pieces), **options)


async def hang_up(_asked, writer):
    """No answer at all."""
    writer.transport.abort()
    return False
