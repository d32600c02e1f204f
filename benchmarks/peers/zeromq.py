"""ZeroMQ: PUSH and PULL over Unix sockets, without an event loop in its way. Nothing is stored and nothing is acked.

`send` returns once the message is in this process's memory; what a dead process had not written yet is gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import MeasureError, MissingContenderError
from benchmarks.peers.port import WAIT_S
from benchmarks.setting import scratch

_WAIT_MS = int(WAIT_S * 1000)


def zmq_module() -> Any:
    """The module, with its asyncio part. Raises MissingContenderError."""
    try:
        import zmq
        import zmq.asyncio
    except ImportError:
        raise MissingContenderError("pyzmq is not installed (scripts/setup.sh bench)") from None
    return zmq


def _done_file(place: Path, recipient: str) -> Path:
    """There once the recipient has received everything."""
    return place / f"{recipient}.done"


class _Sending:
    def __init__(self, context: Any, place: Path) -> None:
        self._context = context
        self._place = place
        self._sockets: dict[str, Any] = {}

    async def send(self, to: str, bodies: list[bytes]) -> None:
        socket = self._sockets.get(to) or self._open(to)
        for body in bodies:
            socket.send(body)

    def _open(self, to: str) -> Any:
        zmq = zmq_module()
        socket = self._sockets[to] = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDTIMEO, _WAIT_MS)
        socket.connect(f"ipc://{self._place}/{to}")
        return socket

    async def settle(self) -> None:
        # Whoever leaves while the recipient is behind loses what it sent last (seen here: up to a thousand messages, now and then).
        deadline = time.monotonic() + WAIT_S
        while any(not _done_file(self._place, to).exists() for to in self._sockets) and time.monotonic() < deadline:
            time.sleep(0.005)
        for socket in self._sockets.values():
            socket.close(linger=_WAIT_MS)


class _Receiving:
    def __init__(self, socket: Any, done: Path) -> None:
        self._socket = socket
        self._done = done
        self._zmq = zmq_module()

    async def receive(self, most: int) -> list[bytes]:
        zmq, socket = self._zmq, self._socket
        try:
            bodies = [socket.recv()]
        except zmq.Again:
            raise MeasureError("nothing came over ZeroMQ") from None
        while len(bodies) < most:
            try:
                bodies.append(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
        return bodies

    async def ack(self) -> None:
        pass

    async def check_empty(self) -> None:
        if self._socket.poll(0):
            raise MeasureError("something is left in the socket")
        self._done.touch()


class ZeroMq:
    """A PULL socket for each inbox, a PUSH socket for each pair, high-water marks as they come."""

    name = "ZeroMQ"

    @contextlib.contextmanager
    def place(self, recipients: list[str], senders: list[str]) -> Iterator[Path]:
        zmq_module()
        with scratch() as directory:
            yield directory

    @contextlib.asynccontextmanager
    async def sender(self, place: Path, me: str) -> AsyncIterator[_Sending]:
        with zmq_module().Context() as context:
            sending = _Sending(context, place)
            yield sending

    @contextlib.asynccontextmanager
    async def receiver(self, place: Path, me: str) -> AsyncIterator[_Receiving]:
        zmq = zmq_module()
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.setsockopt(zmq.RCVTIMEO, _WAIT_MS)
            socket.bind(f"ipc://{place}/{me}")
            yield _Receiving(socket, _done_file(place, me))

    def server_cpu_s(self) -> float:
        return 0.0
