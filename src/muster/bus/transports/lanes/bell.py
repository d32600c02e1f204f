"""Bells: FIFOs that carry wake-up hints, never data (rule B of docs/lane-format.md)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from muster.core import limits
from muster.security.permissions import open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_F_GETPIPE_SZ = getattr(fcntl, "F_GETPIPE_SZ", 1032)
#: Kinds of records: I stored messages for you; your messages were acked; my credit is used up; dead letters came back to you.
MESSAGES, ACKED, FULL, REDRIVE = "m", "a", "f", "r"

_KNOWN_BYTES, _KNOWN_MAX = 160, 512


def record_of(kind: str, lane: str) -> bytes:
    """One line of the bell: short enough to be written whole or not at all (PIPE_BUF)."""
    return f"{kind} {lane}\n".encode()


class OwnBell:
    """The recipient's end: opened for reading and writing, so that it never sees end-of-file and senders never ENXIO while it lives."""

    def __init__(self, path: str) -> None:
        self.fd = open_private(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            capacity = fcntl.fcntl(self.fd, _F_GETPIPE_SZ)
        except OSError:
            capacity = 65536
        self._overflow_bytes = capacity // 4
        self._known: dict[bytes, tuple[tuple[str, str], ...]] = {}

    def drain(self) -> tuple[Sequence[tuple[str, str]], bool]:
        """Every record ([(kind, lane name)], unparsed hints) and whether records may have been lost (then all lanes are to be scanned)."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return (), False
        if len(data) < 4096:
            return self._known.get(data) or self._parse(data), False
        chunks = [data]
        with contextlib.suppress(BlockingIOError):
            while len(chunks[-1]) >= 4096:
                chunks.append(os.read(self.fd, 65536))
        data = b"".join(chunks)
        return self._parse(data), len(data) >= self._overflow_bytes

    def _parse(self, data: bytes) -> tuple[tuple[str, str], ...]:
        lines = [line for line in data.split(b"\n") if len(line) > 2 and line[1:2] == b" "]
        records = tuple((chr(line[0]), line[2:].decode("ascii", "replace")) for line in lines)
        if len(data) < _KNOWN_BYTES and len(self._known) < _KNOWN_MAX:
            self._known[data] = records  # the same few lanes ring all day
        return records

    def close(self) -> None:
        os.close(self.fd)


class PeerBells:
    """The senders' end of everybody's bells; descriptors are kept, and reopened once when the reader behind them changed."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def ringer(self, path: str, record: bytes) -> Callable[[], bool]:
        """A call that rings the bell at `path` with `record`: made once for each lane, because it runs for every message."""
        fds, write, ring = self._fds, os.write, self.ring

        def ring_now() -> bool:
            fd = fds.get(path)
            if fd is not None:
                try:
                    write(fd, record)
                except OSError:
                    return ring(path, record)
                return True
            return ring(path, record)

        return ring_now

    def ring(self, path: str, record: bytes) -> bool:
        """Ring the bell at `path`. False if nobody listens or the pipe is full; the recipient scans in both cases."""
        for fresh in (False, True):
            fd = self._fds.get(path, -1)
            if fd < 0:
                try:
                    fd = open_private(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # ENXIO: no reader; ENOENT: not on the roster any more
                    return False
                self._keep(path, fd)
            try:
                os.write(fd, record)
            except BlockingIOError:
                return False
            except OSError:  # EPIPE: the reader died; a new one may have come
                os.close(self._fds.pop(path))
                if fresh:
                    return False
                continue
            return True
        return False

    def _keep(self, path: str, fd: int) -> None:
        """Keep the descriptor; the one that was opened first goes when there are too many."""
        if len(self._fds) >= limits.OPEN_LANES_MAX:
            os.close(self._fds.pop(next(iter(self._fds))))
        self._fds[path] = fd

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
