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
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import IO, Any

import h11
import msgspec

from muster.errors import MusterError
from muster.limit.prices import PriceTable, Usage, built_in
from muster.limit.proxy.gate import Gate, OpenGate
from muster.limit.proxy.meter import Meter
from muster.limit.proxy.upstream import Upstream
from muster.limit.proxy.waits import is_limited, resets_in_s
from muster.limit.proxy.wire import READ_BYTES, Headers, PeerGoneError, Wire, end_to_end, header

#: A request's body is kept in memory up to this size and in a nameless file beyond: it may have to be sent again.
BODY_MEMORY_BYTES = 1 << 20
BODY_BYTES_MAX = 64 << 20
#: A request that was held for this long gets the vendor's refusal after all.
HOLD_S_MAX = 6 * 3600.0
#: Bytes of a refusal that are read to learn how long it holds.
REFUSAL_BYTES_MAX = 64 << 10


@dataclass
class Route:
    """One API. `key`: (header name, value) that replaces the client's own, if the key stays with the proxy."""

    upstream: Upstream
    key: tuple[bytes, bytes] | None = None


@dataclass
class Account:
    """What one agent has used."""

    agent: str
    requests: int = 0
    retried: int = 0
    failed: int = 0
    held_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0
    #: Requests to models without a price.
    unpriced: int = 0


@dataclass
class _Asked:
    """One request of a client, whole."""

    account: Account
    api: str
    route: Route
    head: h11.Request
    target: bytes
    body: IO[bytes]
    body_bytes: int


class _RefusedError(Exception):
    """The proxy itself answers."""

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind = status, kind


class Proxy:
    """Serves on one loopback port. `routes`: name in the path -> API."""

    def __init__(self, routes: dict[str, Route], *, gate: Gate | None = None, prices: PriceTable | None = None) -> None:
        self._routes = routes
        self._gate = gate or OpenGate()
        self._prices = prices or built_in()
        self._agents: dict[bytes, Account] = {}
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    def admit_agent(self, agent: str, secret: str) -> Account:
        """Let `agent` in under a path that begins with `secret`; its account fills as it works."""
        account = self._agents[_digest(secret.encode())] = Account(agent)
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        wire = Wire(h11.SERVER, reader, writer)
        try:
            while await self._exchange(wire):
                pass
            wire.close()
        except PeerGoneError:
            wire.abort()
        except asyncio.CancelledError:
            wire.abort()
        finally:
            self._serving.discard(task)

    async def _exchange(self, client: Wire) -> bool:
        """One request and its answer; whether the connection can be used again."""
        head = await client.next_event()
        if not isinstance(head, h11.Request):
            return False
        with tempfile.SpooledTemporaryFile(max_size=BODY_MEMORY_BYTES) as body:
            try:
                asked = await self._read(client, head, body)
                await self._answer(client, asked)
            except _RefusedError as refused:
                if not client.can_answer:
                    raise PeerGoneError(str(refused)) from None
                await _say(client, refused)
                return False
        return client.renew()

    async def _read(self, client: Wire, head: h11.Request, body: IO[bytes]) -> _Asked:
        _, _, path = head.target.partition(b"/")
        secret, _, rest = path.partition(b"/")
        name, slash, rest = rest.partition(b"/")
        account = self._agents.get(_digest(secret))
        if account is None:
            raise _RefusedError(403, "permission_error", "this path belongs to no agent of the fleet")
        route = self._routes.get(name.decode("ascii", "replace"))
        if route is None:
            raise _RefusedError(
                404, "not_found_error", f"there is no API {name[:40].decode('ascii', 'replace')!r} here"
            )
        size = 0
        while True:
            event = await client.next_event()
            if isinstance(event, h11.EndOfMessage):
                break
            if not isinstance(event, h11.Data):
                raise PeerGoneError("the client went away while it was asking")
            size += len(event.data)
            if size > BODY_BYTES_MAX:
                raise _RefusedError(413, "request_too_large", f"a request has at most {BODY_BYTES_MAX >> 20} MiB")
            body.write(event.data)
        target = route.upstream.path + slash + rest
        return _Asked(account, name.decode(), route, head, target or b"/", body, size)

    # ------------------------------------------------------------------ towards the vendor

    async def _answer(self, client: Wire, asked: _Asked) -> None:
        """Send the request as often as it takes, and pass on the answer."""
        account = asked.account
        began = time.monotonic()
        while True:
            ticket = await self._admitted(client, asked)
            meter = Meter(b"")
            try:
                account.requests += 1
                upstream, response = await self._send(asked)
                if is_limited(response.status_code) and time.monotonic() - began < HOLD_S_MAX:
                    text = await _refusal(upstream)
                    upstream.abort()
                    wait_s = resets_in_s(list(response.headers), text, time.time())
                    self._gate.refused(account.agent, asked.api, wait_s)
                    account.retried += 1
                    continue
                meter = Meter(header(list(response.headers), b"content-type") or b"")
                await _pass_on(client, upstream, response, meter)
                asked.route.upstream.keep(upstream)
                return
            except PeerGoneError:
                account.failed += 1
                raise
            finally:  # what was used before a cut was used
                usage = meter.end()
                cost = self._prices.cost_usd(usage)
                _book(account, usage, None if cost is None else float(cost))
                ticket.settle(usage, cost)

    async def _admitted(self, client: Wire, asked: _Asked) -> Any:
        """Wait for the gate, or for the client to give up."""
        began = time.monotonic()
        admission = asyncio.ensure_future(self._gate.admit(asked.account.agent, asked.api, asked.body_bytes // 4))
        gone = asyncio.ensure_future(client.wait_gone())
        try:
            await asyncio.wait((admission, gone), return_when=asyncio.FIRST_COMPLETED)
            if not admission.done():
                raise PeerGoneError("the client did not wait")
            return admission.result()
        except MusterError as error:
            raise _RefusedError(403, error.code, error.message) from None
        finally:
            asked.account.held_s += time.monotonic() - began
            for waiting in (admission, gone):
                waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone  # nobody else may read while it does

    async def _send(self, asked: _Asked) -> tuple[Wire, h11.Response]:
        """The request on its way and the head of its answer. A connection that had gone stale is replaced once."""
        try:
            wire, was_used = await asked.route.upstream.connect()
            try:
                return wire, await self._ask(wire, asked)
            except PeerGoneError as gone:
                wire.abort()
                if not (was_used and gone.is_fresh):
                    raise
            wire = await asked.route.upstream.connect_anew()
            return wire, await self._ask(wire, asked)
        except PeerGoneError as error:
            raise _RefusedError(502, "api_error", f"the API did not answer: {error}") from None

    async def _ask(self, wire: Wire, asked: _Asked) -> h11.Response:
        try:
            await wire.send(h11.Request(method=asked.head.method, target=asked.target, headers=_request_headers(asked)))
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
    headers = end_to_end(list(response.headers))
    try:
        await client.send(h11.Response(status_code=response.status_code, headers=headers, reason=response.reason))
        async for data in _body(upstream):
            await client.send(h11.Data(data=data))
            meter.feed(data)
        await client.send(h11.EndOfMessage())
    except BaseException:
        upstream.abort()
        raise


def _request_headers(asked: _Asked) -> Headers:
    # Compressed streams cannot be counted on their way; the vendor is asked for plain ones.
    drop = {b"host", b"accept-encoding", b"content-length", b"expect"}
    key = asked.route.key
    if key is not None:
        drop |= {b"authorization", b"x-api-key"}
    headers = [(b"host", asked.route.upstream.authority), *end_to_end(list(asked.head.headers), frozenset(drop))]
    headers.append((b"accept-encoding", b"identity"))
    if asked.body_bytes or asked.head.method not in (b"GET", b"HEAD", b"DELETE"):
        headers.append((b"content-length", str(asked.body_bytes).encode()))
    return [*headers, key] if key is not None else headers


async def _body(wire: Wire) -> AsyncIterator[bytes]:
    while True:
        event = await wire.next_event()
        if isinstance(event, h11.EndOfMessage):
            return
        if not isinstance(event, h11.Data):
            raise PeerGoneError("the API cut its answer")
        yield bytes(event.data)


async def _refusal(wire: Wire) -> bytes:
    """The text of a refusal, as far as it can be had."""
    text = bytearray()
    with contextlib.suppress(PeerGoneError, TimeoutError):
        async with asyncio.timeout(5.0):
            async for data in _body(wire):
                text += data[: REFUSAL_BYTES_MAX - len(text)]
    return bytes(text)


async def _say(client: Wire, refused: _RefusedError) -> None:
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


def _book(account: Account, usage: Usage, cost_usd: float | None) -> None:
    total = account.usage
    total.input_tokens += usage.input_tokens
    total.cached_tokens += usage.cached_tokens
    total.output_tokens += usage.output_tokens
    total.model = usage.model or total.model
    if cost_usd is not None:
        account.cost_usd += cost_usd
    elif usage.tokens:
        account.unpriced += 1


def _digest(secret: bytes) -> bytes:
    # Looked up by digest: how long a look-up takes says nothing about a secret.
    return hashlib.sha256(secret).digest()
