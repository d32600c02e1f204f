"""Redis Streams as inboxes: redis-py with hiredis over a Unix socket, consumer groups, entries deleted once acked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from benchmarks.harness import MeasureError
from benchmarks.peers.port import WAIT_S
from benchmarks.servers import REDIS

_GROUP = b"readers"
_BODY = b"b"


def _connect(path: str) -> Any:
    import redis

    return redis.Redis(unix_socket_path=path, protocol=2)


class _Sending:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, to: str, bodies: list[bytes]) -> None:
        if len(bodies) == 1:
            self._client.xadd(to, {_BODY: bodies[0]})
            return
        pipe = self._client.pipeline(transaction=False)
        for body in bodies:
            pipe.xadd(to, {_BODY: body})
        pipe.execute()

    async def settle(self) -> None:
        pass


class _Receiving:
    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name
        self._open: list[bytes] = []

    async def receive(self, most: int) -> list[bytes]:
        streams = {self._name: ">"}
        answer = self._client.xreadgroup(_GROUP, b"reader", streams, count=most, block=int(WAIT_S * 1000))
        if not answer:
            raise MeasureError(f"nothing came on {self._name}")
        entries: list[tuple[bytes, dict[bytes, bytes]]] = answer[0][1]
        self._open = [entry for entry, _fields in entries]
        return [fields[_BODY] for _entry, fields in entries]

    async def ack(self) -> None:
        """Ack and delete, in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        pipe.xack(self._name, _GROUP, *self._open)
        pipe.xdel(self._name, *self._open)
        acked, deleted = pipe.execute()
        if acked != len(self._open) or deleted != len(self._open):
            raise MeasureError(f"{len(self._open)} entries: {acked} acked, {deleted} deleted")

    async def check_empty(self) -> None:
        left = self._client.xlen(self._name)
        if left:
            raise MeasureError(f"{left} entries are left on {self._name}")


class RedisStreams:
    """A stream with one consumer group for each inbox, nothing written to disk."""

    name = "Redis Streams"

    @contextlib.contextmanager
    def place(self, recipients: list[str], senders: list[str]) -> Iterator[str]:
        path = REDIS.address()
        client = _connect(path)
        try:
            for name in recipients:
                client.delete(name)
                client.xgroup_create(name, _GROUP, id="0", mkstream=True)
            yield path
            client.delete(*recipients)
        finally:
            client.close()

    @contextlib.asynccontextmanager
    async def sender(self, place: str, me: str) -> AsyncIterator[_Sending]:
        yield _Sending(_connect(place))

    @contextlib.asynccontextmanager
    async def receiver(self, place: str, me: str) -> AsyncIterator[_Receiving]:
        yield _Receiving(_connect(place), me)

    def server_cpu_s(self) -> float:
        return REDIS.cpu_s()
