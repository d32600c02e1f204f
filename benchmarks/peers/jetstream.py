"""NATS JetStream as inboxes: nats-py under uvloop, one work-queue stream, a durable push consumer with explicit acks for each inbox.

A push consumer, because it needs no request for each message. An ack is not waited for, as `msg.ack()` is written by its users; that all
of them arrived is checked at the end. A batch is published without waiting in between, then its confirmations are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from benchmarks.harness import MeasureError
from benchmarks.peers.port import WAIT_S
from benchmarks.processes import run_loop
from benchmarks.servers import NATS, NatsServer

_STREAM = "bench"
#: Messages pushed to a consumer ahead of its acks.
_AHEAD = 256


class _Sending:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, to: str, bodies: list[bytes]) -> None:
        subject = f"in.{to}"
        if len(bodies) == 1:
            await self._stream.publish(subject, bodies[0])
            return
        confirmed = [await self._stream.publish_async(subject, body) for body in bodies]
        await asyncio.gather(*confirmed)

    async def settle(self) -> None:
        pass


class _Receiving:
    def __init__(self, stream: Any, me: str) -> None:
        self._stream = stream
        self._me = me
        self._come: deque[Any] = deque()
        self._news = asyncio.Event()
        self._open: list[Any] = []

    async def hear(self, message: Any) -> None:
        self._come.append(message)
        self._news.set()

    async def receive(self, most: int) -> list[bytes]:
        if not self._come:
            self._news.clear()
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._news.wait()
            except TimeoutError:
                raise MeasureError(f"nothing came for {self._me}") from None
        self._open = [self._come.popleft() for _ in range(min(most, len(self._come)))]
        return [message.data for message in self._open]

    async def ack(self) -> None:
        for message in self._open:
            await message.ack()

    async def check_empty(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while left := await self._unfinished():
            if time.monotonic() > deadline:
                raise MeasureError(f"{left} messages are left for {self._me}")
            await asyncio.sleep(0.01)

    async def _unfinished(self) -> int:
        info = await self._stream.consumer_info(_STREAM, self._me)
        return int(info.num_ack_pending + info.num_pending)


class JetStream:
    """`storage` "memory" or "file"; the server says how often files are synced."""

    def __init__(self, storage: str, server: NatsServer = NATS) -> None:
        self.name = f"JetStream {storage}" + (", synced" if server.sync_interval == "always" else "")
        self.storage = storage
        self.server = server

    @contextlib.asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[Any]:
        import nats

        client = await nats.connect(address, allow_reconnect=False)
        try:
            yield client.jetstream(timeout=WAIT_S)
        finally:
            await client.close()

    @contextlib.contextmanager
    def place(self, recipients: list[str], senders: list[str]) -> Iterator[str]:
        address = self.server.address()
        run_loop(lambda: self._make(address, recipients))
        yield address
        run_loop(lambda: self._remove(address))

    async def _make(self, address: str, recipients: list[str]) -> None:
        from nats.js import api

        async with self.connected(address) as stream:
            await self._delete(stream)
            await stream.add_stream(
                name=_STREAM,
                subjects=["in.*"],
                storage=api.StorageType(self.storage),
                retention=api.RetentionPolicy.WORK_QUEUE,
            )
            for name in recipients:
                config = api.ConsumerConfig(
                    durable_name=name,
                    filter_subject=f"in.{name}",
                    deliver_subject=f"to.{name}",
                    ack_policy=api.AckPolicy.EXPLICIT,
                    max_ack_pending=_AHEAD,
                )
                await stream.add_consumer(_STREAM, config)

    async def _remove(self, address: str) -> None:
        async with self.connected(address) as stream:
            await self._delete(stream)

    async def _delete(self, stream: Any) -> None:
        from nats.js.errors import NotFoundError

        with contextlib.suppress(NotFoundError):
            await stream.delete_stream(_STREAM)

    @contextlib.asynccontextmanager
    async def sender(self, place: str, me: str) -> AsyncIterator[_Sending]:
        async with self.connected(place) as stream:
            yield _Sending(stream)

    @contextlib.asynccontextmanager
    async def receiver(self, place: str, me: str) -> AsyncIterator[_Receiving]:
        async with self.connected(place) as stream:
            receiving = _Receiving(stream, me)
            info = await stream.consumer_info(_STREAM, me)
            await stream.subscribe_bind(
                _STREAM, info.config, me, cb=receiving.hear, manual_ack=True, pending_bytes_limit=1 << 31
            )
            yield receiving

    def server_cpu_s(self) -> float:
        return self.server.cpu_s()
