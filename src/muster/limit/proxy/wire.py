"""HTTP/1.1 over asyncio streams, both sides of it, on h11 (which knows the protocol and does no I/O).

Bodies are passed on as they come: nothing is decoded, joined or kept. Everything that a peer can make large is bounded by h11 (headers) or
by the flow control of the streams (bodies).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import h11

#: Bytes read at once: large enough for throughput, small enough that fifty streams stay small.
READ_BYTES = 16 << 10
#: Request line and headers together.
HEAD_BYTES_MAX = 64 << 10

#: A connection that says nothing is kept so long; a request that has begun must have come so far in this time; an answer to a client that
#: still sends is followed by so long a look at what it sends, or the kernel would take the answer back.
IDLE_S, HEAD_S, BODY_S, LINGER_S = 600.0, 10.0, 300.0, 1.0
#: What a client may send ahead while its request is held.
AHEAD_BYTES_MAX = 64 << 10

#: RFC 9110, 7.6.1: these belong to one connection and are not passed on.
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
        b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip

Headers = list[tuple[bytes, bytes]]


class PeerGoneError(Exception):
    """The other side closed the connection, or broke the protocol. `is_fresh`: before it said anything on this exchange."""

    def __init__(self, text: str, *, is_fresh: bool = False) -> None:
        super().__init__(text)
        self.is_fresh = is_fresh


class Wire:
    """One connection, as server (`h11.SERVER`) or as client (`h11.CLIENT`)."""

    def __init__(
        self, role: type[h11.CLIENT | h11.SERVER], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._h11 = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._reader, self._writer = reader, writer
        self._has_said = False

    @contextlib.asynccontextmanager
    async def within(self, seconds: float, late: str) -> AsyncIterator[None]:
        """A block that must be done in time. Raises PeerGoneError, saying `late`."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise PeerGoneError(late) from None

    async def next_head(self) -> Any:
        """A client's next request, or what else comes. It may begin late, but once begun it has to come soon. Raises PeerGoneError."""
        if self._h11.trailing_data[0] == b"":
            async with self.within(IDLE_S, "the connection was idle"):
                await self._receive()
        async with self.within(HEAD_S, "the request did not come in time"):
            return await self.next_event()

    async def next_event(self) -> Any:
        """The next event of h11. Raises PeerGoneError."""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise PeerGoneError(f"it does not speak HTTP/1.1: {error}", is_fresh=not self._has_said) from None
            if event is not h11.NEED_DATA:
                self._has_said = True
                return event
            if self._h11.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._receive()

    async def _receive(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise PeerGoneError(str(error), is_fresh=not self._has_said) from None
        self._h11.receive_data(data)

    async def send(self, *events: Any) -> None:
        """Write events out and wait for room, so that a slow reader slows the other side down. Raises PeerGoneError."""
        try:
            for event in events:
                data = self._h11.send(event)
                if data:
                    self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise PeerGoneError(str(error), is_fresh=not self._has_said) from None

    async def wait_gone(self) -> None:
        """Return when the other side has closed the connection; what it sends meanwhile is kept for the next exchange."""
        ahead = 0
        with contextlib.suppress(OSError):
            while ahead <= AHEAD_BYTES_MAX and (data := await self._reader.read(READ_BYTES)):
                ahead += len(data)
                self._h11.receive_data(data)

    async def linger(self) -> None:
        """Take what a client still sends after its answer, for a moment (RFC 9112, 9.6)."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(READ_BYTES):
                    pass

    def renew(self) -> bool:
        """Get ready for the next exchange on this connection; False if there can be none."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._has_said = False
            return True
        return False

    @property
    def is_idle_and_open(self) -> bool:
        """Whether nothing came since the last exchange: a server that closes an idle connection says so by its end."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    @property
    def can_answer(self) -> bool:
        """Whether a response can still be begun."""
        return self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def close(self) -> None:
        """Close orderly."""
        self._writer.close()

    def abort(self) -> None:
        """Cut the connection: the other side must see that the message is not whole."""
        with contextlib.suppress(Exception):
            self._writer.transport.abort()


def end_to_end(headers: Headers, drop: frozenset[bytes] = frozenset()) -> Headers:
    """`headers` without those that belong to one connection, and without `drop` (lower case)."""
    named = frozenset(
        name.strip().lower() for key, value in headers if key.lower() == b"connection" for name in value.split(b",")
    )
    return [
        (key, value)
        for key, value in headers
        if (low := key.lower()) not in HOP_BY_HOP and low not in named and low not in drop
    ]


def header(headers: Headers, name: bytes) -> bytes | None:
    """The value of the first header `name` (lower case), or None."""
    return next((value for key, value in headers if key.lower() == name), None)
