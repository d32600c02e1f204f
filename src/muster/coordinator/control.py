"""The coordinator's end of the control socket to the spawner: whole messages, a worker's grant beside a spawn order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from muster.core.orders import ToCoordinator, ToSpawner

_RECORD_BYTES_MAX = 1 << 20

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[ToCoordinator] = msgspec.msgpack.Decoder(ToCoordinator)


class Control(Protocol):
    """A coordinator's way to the spawner."""

    received: deque[ToCoordinator]

    @property
    def is_lost(self) -> bool:
        """Whether the spawner is gone."""

    def send(self, message: ToSpawner, grant: Callable[[], bytes] | None = None) -> None:
        """Send an order; `grant` makes what goes with it."""

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is sent, or the spawner is gone, or the time is over."""


class ControlSocket:
    """Messages from the spawner wait in `received`; `is_lost` once the spawner is gone. Nothing here blocks."""

    def __init__(self, fd: int, on_change: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._queue: deque[tuple[bytes, Callable[[], bytes] | None]] = deque()
        self._writing = False
        self.received: deque[ToCoordinator] = deque()
        self.is_lost = False
        self._loop.add_reader(fd, self._read)

    def send(self, message: ToSpawner, grant: Callable[[], bytes] | None = None) -> None:
        """Send now or as soon as the socket has room, in order. `grant` makes the content of a memfd when it is its turn."""
        self._queue.append((_encode(message), grant))
        if not self._writing:
            self._write()

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything is sent, or the spawner is gone, or the time is over."""
        deadline = self._loop.time() + timeout_s
        while self._queue and not self.is_lost and self._loop.time() < deadline:  # noqa: ASYNC110 -- once, at the end
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """Stop reading and writing; the spawner sees the end of the stream."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                record = self._socket.recv(_RECORD_BYTES_MAX)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                record = b""
            if not record:
                self.is_lost = True
                self._loop.remove_reader(self._socket.fileno())
                break
            self.received.append(_decoder.decode(record))
        self._on_change()

    def _write(self) -> None:
        while self._queue and not self.is_lost:
            data, grant = self._queue[0]
            try:
                if grant is None:
                    self._socket.send(data)
                else:
                    self._send_with_grant(data, grant())
            except (BlockingIOError, InterruptedError):
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._socket.fileno(), self._write)
                return
            except OSError:
                self.is_lost = True
                self._on_change()
                break
            self._queue.popleft()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    def _send_with_grant(self, data: bytes, content: bytes) -> None:
        # Keys travel in memory only: a memfd has no name, and the spawner passes it on unread.
        fd = os.memfd_create("muster-grant", os.MFD_CLOEXEC)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [data], [fd])
        finally:
            os.close(fd)
