"""Clients and APIs that mean no good, or break off, or are slow: the proxy passes on what it got and holds no more than it must."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from tests.proxy import vendor as play
from tests.proxy.test_proxy import SECRET, WaitingGate, between, raw
from tests.proxy.vendor import Vendor

from muster.testing import eventually_async


def unchunked(answer: bytes) -> bytes:
    rest, joined = answer.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        joined, rest = joined + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return joined


STREAMS = {
    "a line of 10 MB": [b"data: ", *[b"x" * 65_536] * 160, b"\n\n"],
    "binary": [bytes(range(256)) * 40],
    "lines cut in the middle": [b'data: {"type": "mess', b'age_delta", "usage"', b": {\n\n", b"data: [\n\n"],
    "events that are no objects": [b"data: 7\n\ndata: null\n\ndata: [[]]\n\nevent: message_delta\ndata: true\n\n"],
}


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_stream_that_makes_no_sense_passes_byte_by_byte_and_costs_nothing(stream):
    gate = WaitingGate()
    async with Vendor() as vendor, between(vendor, gate=gate) as (proxy, account):
        vendor.script.append(play.streamed(STREAMS[stream]))
        assert unchunked(await raw(proxy)) == b"".join(STREAMS[stream])
        await eventually_async(lambda: len(gate.settled) == 1, 10)
        assert (account.requests, account.usage.tokens) == (1, 0)


TWICE = [
    b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"content-length: 2\r\ncontent-length: 40\r\n\r\n{}",
    b"content-length: -1\r\n\r\n{}",
    b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("tail", TWICE)
async def test_a_request_whose_length_is_ambiguous_reaches_no_api(tail):
    smuggled = f"POST /{SECRET}/anthropic/v1/smuggled HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}"
    async with Vendor() as vendor, between(vendor) as (proxy, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.base.rpartition(":")[2]))
        head = f"POST /{SECRET}/anthropic/v1/messages HTTP/1.1\r\nhost: localhost\r\n"
        writer.write(head.encode() + tail + smuggled.encode())
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        assert b" 200 " not in answer
        assert vendor.asked == []


async def test_a_slow_reader_of_a_fast_stream_is_waited_for_and_not_stored():
    piece, pieces = b"data: " + b"x" * 65_530 + b"\n\n", 1000
    sent = 0

    async def answer(_asked, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(pieces):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with Vendor() as vendor, between(vendor) as (proxy, _):
        vendor.script.append(answer)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.base.rpartition(":")[2]), limit=65_536)
        writer.write(
            f"POST /{SECRET}/anthropic/v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            "content-length: 2\r\n\r\n{}".encode()
        )
        tracemalloc.start()
        try:
            # Until the server has stood still for many turns of the loop: everything on the way is full.
            still, before = 0, -1
            async with asyncio.timeout(20):
                while still < 20:
                    await asyncio.sleep(0.02)
                    still, before = (still + 1, sent) if sent == before else (0, sent)
            assert 0 < sent < pieces, "the server was made to wait"
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
        answered = b""
        while part := await reader.read(1 << 20):
            answered += part
        writer.close()
        assert sent == pieces
        assert len(answered) > pieces * len(piece)
