"""Fifty agents that stream from an API at once: a server that plays it, and the clients, on plain asyncio streams.

Each piece carries the time at which it was written (CLOCK_MONOTONIC, one for the whole machine), so a piece's way is measured by who gets
it. The last piece is the digest of all before it: a stream that was changed on the way is found out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from urllib.parse import urlsplit

#: Pause between two pieces of a stream: as fast models write.
PAUSE_S = 0.04
_LAST = b"data: sha256 "


async def serve(write_fd: int) -> None:
    """Answer every request with a stream, until killed; the port goes to `write_fd`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                asked = json.loads(await reader.readexactly(int(lengths[0].partition(b":")[2])))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                await _stream(writer, asked["pieces"])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
    os.write(write_fd, str(server.sockets[0].getsockname()[1]).encode())
    os.close(write_fd)
    await server.serve_forever()


async def _stream(writer: asyncio.StreamWriter, pieces: int) -> None:
    digest = hashlib.sha256()
    for number in range(pieces):
        piece = b'data: {"at": %d, "number": %d, "text": "%s"}\n\n' % (time.monotonic_ns(), number, b"x" * 60)
        digest.update(piece)
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(PAUSE_S)
    last = _LAST + digest.hexdigest().encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))
    await writer.drain()


async def _client(url: str, pieces: int, delay_s: float) -> tuple[float, list[float]]:
    """One stream: milliseconds from the request to the head of the answer, and of each piece's way. Raises ValueError if it was changed."""
    await asyncio.sleep(delay_s)
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"stream": True, "model": "claude-sonnet-9", "pieces": pieces}).encode()
    asked = time.monotonic_ns()
    writer.write(
        f"POST {parts.path}/v1/messages HTTP/1.1\r\nhost: localhost:{parts.port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = await reader.readuntil(b"\r\n\r\n")
    first_ms = (time.monotonic_ns() - asked) / 1e6
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"refused: {head[:80]!r}")
    digest, ways, told = hashlib.sha256(), [], b""
    while size := int(await reader.readline(), 16):
        piece = (await reader.readexactly(size + 2))[:-2]
        now = time.monotonic_ns()
        for event in piece.splitlines(keepends=True):
            if event.startswith(_LAST):
                told = event.removeprefix(_LAST).strip()
            elif not told:
                digest.update(event)
            if event.startswith(b'data: {"at"'):
                ways.append((now - int(event[12 : event.index(b",")])) / 1e6)
    writer.close()
    if told != digest.hexdigest().encode() or len(ways) != pieces:
        raise ValueError(f"a stream was changed on its way: {len(ways)} of {pieces} pieces")
    return first_ms, ways


async def _all(url: str, streams: int, pieces: int) -> tuple[list[float], list[float]]:
    ends = await asyncio.gather(
        *(_client(url, pieces, number * PAUSE_S / streams * 7 % 0.5) for number in range(streams))
    )
    return [first for first, _ in ends], [way for _, ways in ends for way in ways]


def clients(straight: str, through: str, streams: int, pieces: int, turns: int) -> None:
    """In turns straight and through the proxy; prints every time as JSON."""
    told: dict[str, list[list[float]]] = {"straight": [], "straight_first": [], "through": [], "through_first": []}
    for _ in range(turns):
        for name, url in (("straight", straight), ("through", through)):
            first, ways = asyncio.run(_all(url, streams, pieces))
            told[name].append(ways)
            told[f"{name}_first"].append(first)
    print(json.dumps(told))


if __name__ == "__main__":
    clients(sys.argv[1], os.environ["ANTHROPIC_BASE_URL"], *map(int, sys.argv[2:5]))
