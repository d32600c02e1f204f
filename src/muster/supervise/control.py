"""The spawner's end of the control socket: whole messages, file descriptors beside them, never a wait.

One message of `core.protocol` (msgpack) is one SEQPACKET record. A coordinator that does not read fills its socket
buffer; what does not fit waits here in order. The queue dies with the coordinator: what must not be lost is kept in the
ledger.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Iterator

import msgspec

from muster.core.orders import ToCoordinator, ToSpawner, WorkerList

#: Largest record that is taken from a coordinator; its messages are short.
_RECORD_BYTES_MAX = 64 << 10
#: A spawn brings one descriptor; more than this in a record are closed by the kernel.
_FDS_MAX = 4

_decoder = msgspec.msgpack.Decoder(ToSpawner)
_encoder = msgspec.msgpack.Encoder()


class ControlLink:
    """Messages to and from the one living coordinator."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._queue: deque[bytes] = deque()
        self.is_open = True

    def fileno(self) -> int:
        """For the poll loop."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether messages wait for room in the socket."""
        return bool(self._queue)

    def send(self, message: ToCoordinator) -> None:
        """Send now, or as soon as there is room; after the coordinator's death: not at all."""
        if self.is_open:
            self._queue.append(_encoder.encode(message))
            self.flush()

    def send_list(self, listing: WorkerList) -> None:
        """Send `listing`; exits that make it too large for one record follow as single messages."""
        size_max = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - 4096
        exits = listing.exited
        short = exits
        while len(_encoder.encode(msgspec.structs.replace(listing, exited=short))) > size_max and short:
            short = short[: len(short) // 2]
        self.send(msgspec.structs.replace(listing, exited=short))
        for exit_ in exits[len(short) :]:
            self.send(exit_)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        while self._queue and self.is_open:
            try:
                self._socket.send(self._queue[0])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.EINTR):
                    return
                self.is_open = False  # the reader is gone; its death is seen when it is reaped
                self._queue.clear()
                return
            self._queue.popleft()

    def receive(self, records_max: int) -> Iterator[tuple[ToSpawner | None, list[int]]]:
        """Up to `records_max` messages that have arrived, with their descriptors; None for a record that is no message."""
        for _ in range(records_max):
            try:
                record, fds, flags, _ = socket.recv_fds(self._socket, _RECORD_BYTES_MAX, _FDS_MAX)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.is_open = False
                return
            if not record and not fds:
                self.is_open = False
                return
            for fd in fds:
                os.set_inheritable(fd, False)
            try:
                yield (None if flags & socket.MSG_TRUNC else _decoder.decode(record)), fds
            except msgspec.MsgspecError:
                yield None, fds

    def close(self) -> None:
        """Close this end; a coordinator that still lives reads the end of the stream."""
        self.is_open = False
        self._queue.clear()
        self._socket.close()

    def detach(self) -> None:
        """In a forked child: forget the descriptor, which is closed there by number."""
        self._socket.detach()
