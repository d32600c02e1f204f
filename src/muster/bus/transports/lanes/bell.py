"""Bells: FIFOs that carry wake-up hints, never data (rule B of docs/lane-format.md)."""

from __future__ import annotations

import contextlib
import fcntl
import os

from muster.security.permissions import open_private

_F_GETPIPE_SZ = getattr(fcntl, "F_GETPIPE_SZ", 1032)
MESSAGES, ACKED = "m", "a"


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

    def drain(self) -> tuple[list[tuple[str, str]], bool]:
        """Every record ([(kind, lane name)], unparsed hints) and whether records may have been lost (then all lanes are to be scanned)."""
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while True:
                chunk = os.read(self.fd, 65536)
                chunks.append(chunk)
                if len(chunk) < 4096:
                    break
        data = b"".join(chunks)
        lines = [line for line in data.split(b"\n") if len(line) > 2 and line[1:2] == b" "]
        records = [(chr(line[0]), line[2:].decode("ascii", "replace")) for line in lines]
        return records, len(data) >= self._overflow_bytes

    def close(self) -> None:
        os.close(self.fd)


class PeerBells:
    """The senders' end of everybody's bells; descriptors are kept, and reopened once when the reader behind them changed."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def ring(self, path: str, record: bytes) -> bool:
        """Ring the bell at `path`. False if nobody listens or the pipe is full; the recipient scans in both cases."""
        for fresh in (False, True):
            fd = self._fds.get(path, -1)
            if fd < 0:
                try:
                    fd = self._fds[path] = open_private(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # ENXIO: no reader; ENOENT: not on the roster any more
                    return False
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

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
