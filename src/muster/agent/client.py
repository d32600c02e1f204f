"""A blocking client of an owner socket, for plain scripts and the command line. Standard library only, and little of it.

    from muster.agent.client import OwnerClient

    with OwnerClient() as me:                       # the agent whose command this process belongs to
        me.send("reviewer-2", {"file": "a.py"})
        for message in me.receive(wait_s=10):
            print(message["body"])
            me.ack(message)

Errors are the classes of `muster.errors`, found by the code in the answer.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket

from muster import errors

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from muster.agent.held import Held

#: How long an answer may take beyond what the request itself allows, before its owner counts as gone.
ANSWER_S = 30.0
#: How long a send may wait for room when only the recipient says so (`limits.OVERFLOW_WAIT_S`).
_OVERFLOW_WAIT_S = 30.0
_PATH_BYTES_MAX = 100


class OwnerClient:
    """A connection to the worker that owns an agent's identity. Not for several threads at once."""

    def __init__(self, path: str | None = None) -> None:
        """Connect to `path`, by default the socket that MUSTER_SOCKET names.

        Raises:
            UsageError: Neither is given: this process was not started by an agent.
            OwnerGoneError: Nobody listens there; nothing was sent.
        """
        address = path or os.environ.get("MUSTER_SOCKET")
        if not address:
            raise errors.UsageError("MUSTER_SOCKET is not set: this process was not started by an agent of a fleet")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        #: Called with each line that is no answer: how a wait for a lock goes, and that one was lost.
        self.on_event: Callable[[dict[str, Any]], None] = lambda _event: None
        self._lost: dict[str, dict[str, Any]] = {}
        try:
            self._socket.settimeout(ANSWER_S)
            _connect(self._socket, address)
        except OSError as error:
            self._socket.close()
            raise errors.OwnerGoneError(
                f"nobody listens at {address}: {error.strerror or error}", path=address
            ) from None

    def send(
        self,
        to: str,
        body: Any = None,
        *,
        type: str = "message",
        priority: str = "normal",
        message_id: str | None = None,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Store a message in `to`'s inbox, waiting for room as `Bus.send` does; its {"id", "seq"}. Raises what that raises."""
        return self.request(
            "send",
            _patience_s=_OVERFLOW_WAIT_S if wait_s is None else wait_s,
            to=to,
            type=type,
            priority=priority,
            message_id=message_id,
            wait_s=wait_s,
            **_body(body),
        )

    def reply(
        self,
        to: str,
        body: Any = None,
        *,
        answers: str = "",
        type: str = "",
        message_id: str | None = None,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Answer the newest message that this agent took of `to`, or the one with the id `answers`; the {"id", "seq"} of what was stored.

        Whoever asked gets it as the reply. Else it is one more hop of the chain, which the fleet bounds: agents that answer each other
        come to an end.

        Raises:
            UsageError: There is no such message, or it was taken too long ago.
            EchoStormError: The chain is too long; nothing was sent. Else as `send`.
        """
        return self.request(
            "reply",
            _patience_s=_OVERFLOW_WAIT_S if wait_s is None else wait_s,
            to=to,
            answers=answers,
            type=type,
            message_id=message_id,
            wait_s=wait_s,
            **_body(body),
        )

    def publish(self, group: str, body: Any = None, *, type: str = "message", **envelope: Any) -> list[dict[str, Any]]:
        """Store a message for every agent of a group such as "@workers", as `send` does; a {"to", "id", "seq"} for each."""
        sent = self.request("publish", _patience_s=None, to=group, type=type, **envelope, **_body(body))
        answer: list[dict[str, Any]] = sent["sent"]
        return answer

    def receive(self, n: int = 1, *, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """Up to `n` messages, waiting up to `wait_s` for the first.

        Each is {"handle", "id", "sender", "type", "seq", "attempt", "created", "hops", "asks", "body"}: `created` in seconds since 1970,
        `hops` the answers that led to it, `asks` whether its sender waits for a `reply`; a body of bytes comes as bytes. They are this
        connection's until it acks them or ends; then they go to whoever asks next.
        """
        messages: list[dict[str, Any]] = self.request("recv", _patience_s=wait_s, n=n, wait_s=wait_s)["messages"]
        return [_opened(message) for message in messages]

    recv = receive

    def ack(self, *messages: dict[str, Any]) -> int:
        """The messages are handled and are never delivered again; call it after the output has been flushed. How many were acked."""
        return int(self.request("ack", handles=[message["handle"] for message in messages])["acked"])

    def ask(self, to: str, body: Any = None, *, type: str = "ask", timeout_s: float = 30.0) -> dict[str, Any]:
        """Send a request and wait for its reply, shaped like a received message. Raises AskTimeoutError."""
        return _opened(
            self.request("ask", _patience_s=timeout_s, to=to, type=type, timeout_s=timeout_s, **_body(body))["reply"]
        )

    def lock(self, *names: str, timeout_s: float | None = None, ttl_s: float = 60.0) -> Held:
        """Lock names and file globs for the whole fleet: `with me.lock("src/api/") as held:`. Waits; see `Bus.lock`.

        The agent's worker renews it. It ends with the block or with this connection, whatever ends that; it is not shared with other
        commands of the same agent. `Held.token` is its fencing token, `Held.check()` raises if it was lost.

        Raises:
            LockHeldError, LockTimeoutError, LockDeadlockError, LockTableFullError, UsageError: Nothing was locked.
        """
        from muster.agent.held import Held, around

        fields = self.request(
            "lock", _patience_s=timeout_s, names=list(names), patience_s=timeout_s, ttl_s=ttl_s, within=around()
        )
        return Held(self, fields["lock_id"], fields["token"], fields["names"])

    def lost(self, lock_id: str) -> dict[str, Any] | None:
        """Why a lock of this connection was lost, as an error's fields; None if it is not known to be. Never waits."""
        while select.select([self._socket], [], [], 0)[0]:
            try:
                self._hear(self._read_line())
            except OSError as error:
                gone = {"code": "lock.lost", "message": f"the owner of this identity went away: {error}"}
                return self._lost.get(lock_id, gone)
        return self._lost.get(lock_id)

    def fileno(self) -> int:
        """Readable when there may be news of a lock: call `lost`."""
        return self._socket.fileno()

    def submit(self, input: Any, *, timeout_s: float | None = None, **wishes: Any) -> int:
        """Give the fleet a task; its number, once the coordinator has it in its log. Wishes and errors as of `Bus.submit`."""
        body = {"input": input, "timeout_s": timeout_s, **wishes}
        done = self.ask("coordinator", body, type="task.request")["body"]
        if not done["ok"]:
            raise errors.error_of({**done["facts"], "code": done["code"], "message": done["message"]})
        return int(done["facts"]["number"])

    def ls(self) -> list[str]:
        """Every agent of the fleet."""
        agents: list[str] = self.request("ls")["agents"]
        return agents

    def whoami(self) -> dict[str, Any]:
        """{"agent", "fleet", "store", "task", "attempt"} that this connection speaks for."""
        return self.request("whoami")

    def request(self, op: str, *, _patience_s: float | None = 0.0, **fields: Any) -> dict[str, Any]:
        """Send one request and return the answer, which may take `_patience_s` and a little (None: for ever).

        Raises:
            MusterError: The answer is an error; the class is found by its code.
            OwnerGoneError: The owner went away meanwhile; whether the request was carried out is unknown.
            BodyEncodingError: A field cannot be written as JSON; nothing was sent.
        """
        try:
            line = json.dumps({"op": op, **fields}, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.BodyEncodingError(f"the body cannot be written as JSON: {error}") from None
        try:
            self._socket.settimeout(None if _patience_s is None else ANSWER_S + _patience_s)
            self._socket.sendall(line)
            while (answer := self._hear(self._read_line())) is None:
                pass
        except (OSError, ValueError) as error:
            # A refused connection is answered and closed before the request is read: the answer says why.
            answer = self._last_words()
            if answer is None:
                raise errors.OwnerGoneError(f"the owner of this identity went away: {error}") from None
        if "error" in answer:
            raise errors.error_of(answer["error"])
        del answer["ok"]
        return dict(answer)

    def _hear(self, line: bytes) -> dict[str, Any] | None:
        """A line as an answer, or None: then it was an event."""
        answer: dict[str, Any] = json.loads(line)
        if "event" not in answer:
            return answer
        if answer["event"] == "lock.lost":
            self._lost[answer["lock_id"]] = answer["error"]
        self.on_event(answer)
        return None

    def _read_line(self) -> bytes:
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            part = self._socket.recv(1 << 16)
            if not part:
                raise ConnectionResetError("the connection was closed")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _last_words(self) -> dict[str, Any] | None:
        try:
            self._socket.settimeout(1.0)
            words = json.loads(self._read_line())
        except (OSError, ValueError):
            return None
        return words if isinstance(words, dict) else None

    def close(self) -> None:
        """End the connection; what was not acked goes to whoever asks next."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _connect(connection: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        connection.connect(path)
        return
    # Longer than a socket address may be: go through a descriptor of its directory.
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _body(body: Any) -> dict[str, Any]:
    if isinstance(body, bytes | bytearray | memoryview):
        return {"body_b64": base64.b64encode(body).decode()}
    return {"body": body}


def _opened(message: dict[str, Any]) -> dict[str, Any]:
    if "body_b64" in message:
        message["body"] = base64.b64decode(message.pop("body_b64"))
    return message
