"""The owner socket: how what an agent's command starts speaks as that agent, without ever holding a key.

One 0600 Unix stream socket per agent, made when its first task starts. Its address (MUSTER_SOCKET) is no secret: every connection is
checked by the kernel's word on who connected (`ancestry`). Requests and answers are JSON lines, one answer per request, in order:

    {"op": "send", "to": …, "type": …, "body" | "body_b64": …, "priority": …, "message_id": …, "wait_s": …}
                                                        -> {"ok": true, "id": …, "seq": …}
    {"op": "reply", "to": …, "answers": "", …}          -> {"ok": true, "id": …, "seq": …}, to a message that was received
    {"op": "publish", "to": "@workers", …}              -> {"ok": true, "sent": [{"to", "id", "seq"}]}
    {"op": "recv", "n": 1, "wait_s": 10}                -> {"ok": true, "messages": […]}
    {"op": "ack", "handles": […]}                       -> {"ok": true, "acked": 1}
    {"op": "ask", "to": …, "body": …, "timeout_s": 30}  -> {"ok": true, "reply": {…}}
    {"op": "lock", "names": […], "patience_s": null, "ttl_s": 60}
                                                        -> {"ok": true, "lock_id": …, "token": …}, see `leases`
    {"op": "unlock", "lock_id": …}                      -> {"ok": true}
    {"op": "ls"}  {"op": "whoami"}

A refusal is {"error": {"code", "message", "retry_after_s"}} and leaves the connection open, except where who speaks or how is in doubt.
What was received and not acked when a connection ends goes to whoever asks next.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec

from muster.agent import ancestry
from muster.agent.leases import SessionLeases
from muster.agent.runner import VERBS
from muster.bus.envelope import Chain
from muster.core import limits
from muster.core.message import EXTRA_REPLY_TO
from muster.core.protocol import TYPES
from muster.errors import (
    BodyEncodingError,
    DeliveryStateError,
    ForbiddenError,
    MusterError,
    StoreUnsuitableError,
    UsageError,
)
from muster.security.permissions import make_private_dir
from muster.supervise.platform import short_path

if TYPE_CHECKING:
    from pathlib import Path

    from muster.agent.runner import Runner
    from muster.bus.delivery import Delivery
    from muster.core.message import Message

#: A body of 1 MiB as base64 with its envelope fits; more than this in one line ends the connection.
LINE_BYTES_MAX = 2 << 20
CONNECTIONS_MAX = 64
RECEIVE_MAX = 100
WAIT_S_MAX = 3600.0
#: Types that anybody may send to the coordinator; muster's other words are not for commands.
_OPEN_TYPES = frozenset({"task.submit", "fleet.status", "lock.list"})


class Request(msgspec.Struct):
    """One line from a client. Unknown fields are ignored."""

    op: str
    to: str = ""
    type: str = ""
    body: Any = None
    body_b64: str | None = None
    priority: str = "normal"
    message_id: str | None = None
    answers: str = ""
    n: int = 1
    wait_s: float | None = None
    timeout_s: float = 30.0
    handles: list[str] = []
    names: list[str] = []
    patience_s: float | None = None
    ttl_s: float = limits.LOCK_TTL_S
    within: list[str] = []
    lock_id: str = ""


_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode


def socket_path(store: Path, agent: str) -> Path:
    """Where the owner socket of `agent` is, or will be."""
    return store / "sockets" / agent


class OwnerSocket:
    """The owner socket of one agent."""

    def __init__(self, runner: Runner, *, is_alone: bool) -> None:
        """`is_alone`: this worker hosts no other agent."""
        self.runner = runner
        self.path = socket_path(runner.setting.store, runner.setting.agent)
        self._is_alone = is_alone
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen. Safe to call again.

        Raises:
            StoreUnsuitableError: The socket cannot be made there.
            UnsafePermissionsError: The sockets' directory is not safely ours.
        """
        if self._listener is not None:
            return
        make_private_dir(self.path.parent)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # of an earlier incarnation: whoever holds the identity is the only one to listen
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with short_path(self.path.parent, self.path.name) as path:
                listener.bind(path)
            os.chmod(self.path, 0o600)  # its directory is 0700, so nobody else came in before this
            listener.listen(16)
        except OSError as error:
            listener.close()
            raise StoreUnsuitableError(
                f"no socket can be made at {self.path}: {error.strerror}", path=str(self.path)
            ) from None
        self._listener = listener
        self.runner.setting.loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, end all connections and remove the socket."""
        if self._listener is None:
            return
        self.runner.setting.loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        for task in list(self._connections):
            task.cancel()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, OSError):
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            connection.close()
            return
        task = self.runner.setting.loop.create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            peer = self._identify(connection)
        except ForbiddenError as error:
            self.runner.registry.count("muster_socket_refused_total")
            with contextlib.suppress(OSError):
                connection.setblocking(False)
                connection.send(_encode({"error": error.as_dict()}) + b"\n")
            connection.close()
            return
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES_MAX)
        session = Session(self.runner, peer, reader, writer)
        try:
            await session.serve()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            session.close()
            writer.close()

    def _identify(self, connection: socket.socket) -> tuple[int, int]:
        """The (task, attempt) of the process that connected. Raises ForbiddenError."""
        agent = self.runner.setting.agent
        with contextlib.suppress(OSError):
            pid, uid = ancestry.peer_of(connection)
            attempt = None
            if uid == os.geteuid():
                attempt = ancestry.attempt_of(pid, agent, self.runner.running.values(), is_alone=self._is_alone)
            if attempt is not None and ancestry.is_alive_still(connection):
                return attempt.key
        raise ForbiddenError(f"only processes that a running task of {agent} started may speak as {agent}", agent=agent)


class Session:
    """One connection."""

    def __init__(
        self,
        runner: Runner,
        attempt: tuple[int, int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._runner = runner
        self._reader, self._writer = reader, writer
        self._ahead: asyncio.Future[bytes] | None = None
        self._leases = SessionLeases(runner.bus, lambda event: writer.write(_encode(event) + b"\n"))
        self._bus = runner.bus
        self._attempt = attempt
        self._in_hand: dict[str, Delivery] = {}
        self._next_handle = 1
        self._ops = {
            "send": self._send, "reply": self._reply, "publish": self._publish, "recv": self._receive, "ack": self._ack,
            "ask": self._ask, "ls": self._list, "whoami": self._whoami, "lock": self._lock, "unlock": self._leases.unlock,
        }  # fmt: skip

    async def serve(self) -> None:
        """Answer requests until the other side goes away or says something that is no request."""
        writer = self._writer
        while True:
            ahead, self._ahead = self._ahead, None
            try:
                line = await (ahead or self._reader.readline())
            except ValueError:  # StreamReader's word for a line over its limit
                error = UsageError(f"a request is a line of at most {LINE_BYTES_MAX:,} bytes")
                writer.write(_encode({"error": error.as_dict()}) + b"\n")
                await writer.drain()
                return
            if not line.endswith(b"\n"):
                return
            writer.write(await self._answer(line) + b"\n")
            await writer.drain()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = _decode(line)
            op = self._ops.get(request.op)
            if op is None:
                raise UsageError(f"there is no operation {request.op!r:.50}; there are: {' '.join(self._ops)}")
            return _encode({"ok": True, **await op(request)})
        except MusterError as error:
            return _encode({"error": error.as_dict()})
        except (msgspec.DecodeError, RecursionError) as error:
            return _encode({"error": UsageError(f"not a request: {error}").as_dict()})
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            return _encode({"error": BodyEncodingError(f"this cannot be shown as JSON: {error}").as_dict()})

    def close(self) -> None:
        """What was not acked goes to whoever asks next."""
        if not self._bus.closed:
            self._runner.mailbox.give_back(list(self._in_hand.values()))
            self._leases.close()
        self._in_hand.clear()
        if self._ahead is not None:
            self._ahead.cancel()

    # ------------------------------------------------------------------ operations

    def _cause(self) -> Chain | None:
        """What the attempt was started for: tasks that give each other tasks come to an end."""
        return self._runner.causes.get(self._attempt)

    async def _send(self, request: Request) -> dict[str, Any]:
        receipt = await self._bus.send(
            request.to,
            _body(request),
            wait_s=_room_wait_s(request),
            type=_type(request, "message"),
            priority=request.priority,
            message_id=request.message_id,
            cause=self._cause(),
        )
        return {"id": request.message_id or receipt.id, "seq": receipt.seq}

    async def _reply(self, request: Request) -> dict[str, Any]:
        to, envelope = self._runner.heard.find(request.to, request.answers).answer(self._bus.hops_max)
        envelope["type"] = _type(request, envelope.get("type", "message"))
        receipt = await self._bus.send(
            to, _body(request), message_id=request.message_id, wait_s=_room_wait_s(request), **envelope
        )
        return {"id": request.message_id or receipt.id, "seq": receipt.seq}

    async def _publish(self, request: Request) -> dict[str, Any]:
        receipts = await self._bus.publish(
            request.to,
            _body(request),
            type=_type(request, "message"),
            priority=request.priority,
            message_id=request.message_id,
            wait_s=_room_wait_s(request),
            cause=self._cause(),
        )
        return {"sent": [{"to": receipt.recipient, "id": receipt.id, "seq": receipt.seq} for receipt in receipts]}

    async def _ask(self, request: Request) -> dict[str, Any]:
        timeout_s = _patience(request.timeout_s)
        reply = await self._bus.ask(
            request.to, _body(request), type=_type(request, "ask"), timeout_s=timeout_s, cause=self._cause()
        )
        return {"reply": _shown(reply)}

    async def _receive(self, request: Request) -> dict[str, Any]:
        count = min(max(request.n, 1), RECEIVE_MAX)
        messages = []
        for delivery in await self._runner.mailbox.take(count, _patience(request.wait_s or 0.0)):
            handle = str(self._next_handle)
            self._next_handle += 1
            self._in_hand[handle] = delivery
            self._runner.heard.note(delivery.message)
            messages.append({"handle": handle, "attempt": delivery.attempt, **_shown(delivery.message)})
        return {"messages": messages}

    async def _ack(self, request: Request) -> dict[str, Any]:
        unknown = [handle for handle in request.handles if handle not in self._in_hand]
        if unknown:
            raise DeliveryStateError(f"this connection holds no message {unknown[0]!r:.50}; nothing was acked")
        for handle in request.handles:
            self._in_hand.pop(handle).ack()
        # An ack may let messages come that had to wait for it.
        self._runner.setting.loop.call_soon(self._runner.pump)
        return {"acked": len(request.handles)}

    async def _lock(self, request: Request) -> dict[str, Any]:
        """The wait may be long: whoever goes away meanwhile stands in line no more."""
        locking = asyncio.ensure_future(self._leases.lock(request))
        locking.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits for it may be gone
        self._ahead = asyncio.ensure_future(self._reader.readline())
        try:
            await asyncio.wait({locking, self._ahead}, return_when=asyncio.FIRST_COMPLETED)
            if self._ahead.done() and not self._ahead.exception() and not self._ahead.result():
                raise ConnectionResetError
            return await locking
        finally:
            locking.cancel()

    async def _list(self, _request: Request) -> dict[str, Any]:
        return {"agents": self._bus.roster()}

    async def _whoami(self, _request: Request) -> dict[str, Any]:
        setting = self._runner.setting
        number, attempt = self._attempt
        return {
            "agent": setting.agent, "fleet": setting.fleet.name, "store": str(setting.store), "task": number, "attempt": attempt,
        }  # fmt: skip


def _type(request: Request, default: str) -> str:
    name = request.type or default
    if (name in TYPES or name.startswith(VERBS)) and name not in _OPEN_TYPES:
        raise ForbiddenError(f"{name!r:.70} is one of muster's own words; choose another type", type=name)
    return name


def _patience(wait_s: float) -> float:
    return min(max(wait_s, 0.0), WAIT_S_MAX)


def _room_wait_s(request: Request) -> float | None:
    return None if request.wait_s is None else _patience(request.wait_s)


def _body(request: Request) -> Any:
    if request.body_b64 is None:
        return request.body
    try:
        return base64.b64decode(request.body_b64, validate=True)
    except (binascii.Error, ValueError):
        raise BodyEncodingError("body_b64 is not base64") from None


def _shown(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": message.id, "sender": message.sender, "type": message.type, "seq": message.seq, "created": message.created_ns / 1e9,
        "hops": message.hops, "asks": EXTRA_REPLY_TO in message.extras,
    }  # fmt: skip
    try:
        body = message.body
    except BodyEncodingError:
        body = message.raw
    if isinstance(body, bytes):
        shown["body_b64"] = base64.b64encode(body).decode()
    else:
        shown["body"] = body
    return shown
