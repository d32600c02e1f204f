"""The local API proxy: unmodified clients talk to it on loopback, and it talks to the vendor.

Each agent has a path of its own with a secret in it (`/<secret>/<api>/…`), so that a request is known by who made it and nobody else on
the machine can spend the key. Bodies of responses pass byte by byte; a response that says "limited" is held back and the request is sent
again when the gate lets it. Everything else, errors too, is the vendor's own answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import h11
import msgspec

from muster.errors import MusterError
from muster.limit.prices import PriceTable, built_in
from muster.limit.proxy.accounts import Account, Ledger
from muster.limit.proxy.gate import Gate, OpenGate, Ticket
from muster.limit.proxy.meter import Meter
from muster.limit.proxy.request import Asked, RefusedError, Route, read
from muster.limit.proxy.waits import is_limited, resets_in_s
from muster.limit.proxy.wire import READ_BYTES, PeerGoneError, Wire, end_to_end, header

#: A request's body is kept in memory up to this size and in a nameless file beyond: it may have to be sent again.
BODY_MEMORY_BYTES = 1 << 20
#: A request that was held for this long gets the vendor's refusal after all.
HOLD_S_MAX = 6 * 3600.0
#: Bytes of a refusal that are read to learn how long it holds.
REFUSAL_BYTES_MAX = 64 << 10
#: Clients at once; each may cost two descriptors and a request in memory.
CONNECTIONS_MAX = 2048
#: What a vendor says about its own address means nothing at ours.
_NOT_OURS = frozenset({b"alt-svc", b"strict-transport-security"})

T = TypeVar("T")


class Proxy:
    """Serves on one loopback port. `routes`: name in the path -> API. `recognize`: the first part of a path -> its agent, or None."""

    def __init__(
        self,
        routes: dict[str, Route],
        *,
        gate: Gate | None = None,
        prices: PriceTable | None = None,
        ledger: Ledger | None = None,
        recognize: Callable[[bytes], str | None] | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self._routes = routes
        self._gate = gate or OpenGate()
        self._prices = prices or built_in()
        self._recognize = recognize
        self._agents: dict[bytes, Account] = {}
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    def admit_agent(self, agent: str, secret: str) -> Account:
        """Let `agent` in under a path that begins with `secret`; its account fills as it works."""
        account = self._agents[_digest(secret.encode())] = self.ledger.of(agent)
        return account

    async def start(self, port: int = 0) -> int:
        """Listen on loopback; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=256, limit=READ_BYTES)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Stop listening and cut what is in progress."""
        if self._server is not None:
            self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for route in self._routes.values():
            route.upstream.close()

    # ------------------------------------------------------------------ towards the client

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        wire = Wire(h11.SERVER, reader, writer)
        try:
            if len(self._serving) > CONNECTIONS_MAX:
                await _say(
                    wire, RefusedError(503, "overloaded_error", f"there are {CONNECTIONS_MAX:,} clients already")
                )
            else:
                while await self._exchange(wire):
                    pass
            wire.close()
        except (PeerGoneError, asyncio.CancelledError):
            wire.abort()
        except BaseException:
            wire.abort()
            raise
        finally:
            self._serving.discard(task)

    async def _exchange(self, client: Wire) -> bool:
        """One request and its answer; whether the connection can be used again."""
        head = await client.next_head()
        if not isinstance(head, h11.Request):
            return False
        with tempfile.SpooledTemporaryFile(max_size=BODY_MEMORY_BYTES) as body:
            try:
                asked = await read(client, head, body, self._routes, self._account_of)
                await self._answer(client, asked)
            except RefusedError as refused:
                if not client.can_answer:
                    raise PeerGoneError(str(refused)) from None
                await _say(client, refused)
                return False
        return client.renew()

    def _account_of(self, secret: bytes) -> Account | None:
        account = self._agents.get(_digest(secret))
        if account is None and self._recognize is not None:
            agent = self._recognize(secret)
            account = None if agent is None else self.ledger.of(agent)
        return account

    # ------------------------------------------------------------------ towards the vendor

    async def _answer(self, client: Wire, asked: Asked) -> None:
        """Send the request as often as it takes, and pass on the answer."""
        account = asked.account
        began = time.monotonic()
        while True:
            ticket = await self._admitted(client, asked)
            meter = Meter(b"")
            try:
                account.requests += 1
                upstream, response = await _while_there(client, _send(asked))
                if is_limited(response.status_code) and time.monotonic() - began < HOLD_S_MAX:
                    ticket.refused(await _wait_of(upstream, response))
                    account.retried += 1
                    continue
                meter = Meter(header(list(response.headers), b"content-type") or b"")
                await _pass_on(client, upstream, response, meter)
                asked.route.upstream.keep(upstream)
                return
            except (PeerGoneError, RefusedError):
                account.failed += 1
                raise
            finally:  # what was used before a cut was used
                usage = meter.end()
                cost = self._prices.cost_usd(usage)
                account.book(usage, None if cost is None else float(cost))
                ticket.settle(usage, cost)

    async def _admitted(self, client: Wire, asked: Asked) -> Ticket:
        """Wait for the gate, or for the client to give up."""
        began = time.monotonic()
        try:
            return await _while_there(client, self._gate.admit(asked.account.agent, asked.api, asked.body_bytes // 4))
        except MusterError as error:
            raise RefusedError(403, error.code, error.message) from None
        finally:
            asked.account.held_s += time.monotonic() - began


async def _while_there(client: Wire, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless the client leaves before. A client that ends its sending half while it waits counts as gone."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(client.wait_gone())
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise PeerGoneError("the client did not wait")
        return doing.result()
    finally:
        for waiting in (doing, gone):
            waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone  # nobody else may read while it does


async def _send(asked: Asked) -> tuple[Wire, h11.Response]:
    """The request on its way and the head of its answer. A connection that had gone stale is replaced once."""
    try:
        wire, was_used = await asked.route.upstream.connect()
        try:
            return wire, await _ask(wire, asked)
        except PeerGoneError as gone:
            if not (was_used and gone.is_fresh):
                raise
        wire = await asked.route.upstream.connect_anew()
        return wire, await _ask(wire, asked)
    except PeerGoneError as error:
        raise RefusedError(502, "api_error", f"the API did not answer: {error}") from None


async def _ask(wire: Wire, asked: Asked) -> h11.Response:
    try:
        await wire.send(h11.Request(method=asked.head.method, target=asked.target, headers=asked.headers()))
        asked.body.seek(0)
        while chunk := asked.body.read(READ_BYTES):
            await wire.send(h11.Data(data=chunk))
        await wire.send(h11.EndOfMessage())
        while True:
            event = await wire.next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise PeerGoneError("it closed the connection", is_fresh=True)
    except BaseException:
        wire.abort()
        raise


async def _pass_on(client: Wire, upstream: Wire, response: h11.Response, meter: Meter) -> None:
    """The answer, piece by piece as it comes. Either side's end ends the other's."""
    headers = end_to_end(list(response.headers), _NOT_OURS)
    try:
        await client.send(h11.Response(status_code=response.status_code, headers=headers, reason=response.reason))
        async for data in _body(upstream):
            await client.send(h11.Data(data=data))
            meter.feed(data)
        await client.send(h11.EndOfMessage())
    except BaseException:
        upstream.abort()
        raise


async def _body(wire: Wire) -> AsyncIterator[bytes]:
    while True:
        event = await wire.next_event()
        if isinstance(event, h11.EndOfMessage):
            return
        if not isinstance(event, h11.Data):
            raise PeerGoneError("the API cut its answer")
        yield bytes(event.data)


async def _wait_of(wire: Wire, response: h11.Response) -> float | None:
    """How long a refusal holds, as far as it says; its connection is not used again."""
    text = bytearray()
    with contextlib.suppress(PeerGoneError, TimeoutError):
        async with asyncio.timeout(5.0):
            async for data in _body(wire):
                text += data[: REFUSAL_BYTES_MAX - len(text)]
    wire.abort()
    return resets_in_s(list(response.headers), bytes(text), time.time())


async def _say(client: Wire, refused: RefusedError) -> None:
    # Both vendors' clients read the message from error.message.
    body = msgspec.json.encode({"type": "error", "error": {"type": refused.kind, "message": f"muster: {refused}"}})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await client.send(
        h11.Response(status_code=refused.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()
    )
    await client.linger()


def _digest(secret: bytes) -> bytes:
    # Looked up by digest: how long a look-up takes says nothing about a secret.
    return hashlib.sha256(secret).digest()
