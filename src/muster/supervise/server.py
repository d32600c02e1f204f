"""The spawner's door: a Unix socket that speaks JSON lines with this user's command lines.

    {"op": "ping"}                                     {"ok": true, "op": "ping", "pid": …, "workers": […], …}
    {"op": "stop", "mode": "drain", "reason": "…"}     {"ok": true, "op": "stop"}
    {"op": "hold"}                                     {"ok": true, "op": "hold"}; the fleet is drained when this
                                                       connection ends
    {"op": "wait"}                                     {"ok": true, "op": "wait", "exit_status": N}, when the fleet has
                                                       ended; everybody still connected then is told, asked for or not

Whatever a client sends, or fails to read, harms that connection only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.errors import FleetError, ForbiddenError, MusterError, UsageError
from muster.supervise import platform, spare

NAME = "spawner.sock"
_LINE_BYTES_MAX = 64 << 10
#: Replies a client has not read; a client beyond it is dropped.
_UNREAD_BYTES_MAX = 4 << 20
_CLIENTS_MAX = 128


class Connection:
    """One client."""

    def __init__(self, end: socket.socket, *, holds: bool = False) -> None:
        end.setblocking(False)
        self.socket = end
        self.holds = holds
        self.closing = False
        self.received = bytearray()
        self.unsent = bytearray()

    def say(self, reply: dict[str, Any]) -> None:
        """Queue one line and send what the socket takes."""
        self.unsent += json.dumps(reply, separators=(",", ":")).encode() + b"\n"
        if len(self.unsent) > _UNREAD_BYTES_MAX:
            self.closing = True
            self.unsent.clear()
        self.flush()

    def say_error(self, error: MusterError) -> None:
        """Queue a refusal."""
        self.say({"error": error.as_dict()})

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.closing = True
            self.unsent.clear()

    def read(self) -> list[bytes]:
        """The whole lines that have arrived; marks the connection as closing at its end or when a line is too long."""
        try:
            part = self.socket.recv(_LINE_BYTES_MAX)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            part = b""
        if not part:
            self.closing = True
            return []
        self.received += part
        *lines, rest = self.received.split(b"\n")
        self.received = rest
        if any(len(line) > _LINE_BYTES_MAX for line in (*lines, rest)):
            self.say_error(UsageError(f"a request is longer than {_LINE_BYTES_MAX} bytes"))
            self.closing = True
            return []
        return [bytes(line) for line in lines]


class ClientServer:
    """The listening socket and its clients; driven by the spawner's poll loop.

    `status()` answers a ping; `stop(mode, reason)` asks for the fleet's end; `holder_gone()` says that a holding client
    went away.
    """

    def __init__(
        self,
        store: Path,
        *,
        status: Callable[[], dict[str, Any]],
        stop: Callable[[str, str], None],
        holder_gone: Callable[[], None],
    ) -> None:
        self._path = store / NAME
        self._status = status
        self._stop = stop
        self._holder_gone = holder_gone
        self._clients: dict[int, Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        # A leftover of a dead spawner: the lock, which we hold, says that nobody listens there.
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        with platform.short_path(store, NAME) as address:
            self._listener.bind(address)
        os.chmod(self._path, 0o600)
        self._listener.listen(64)
        self._is_listening = True

    def adopt(self, end: socket.socket, *, holds: bool) -> Connection:
        """Serve `end`, the pair of the socket that the starting process holds, like an accepted connection."""
        client = Connection(end, holds=holds)
        self._clients[end.fileno()] = client
        return client

    @property
    def is_held(self) -> bool:
        """Whether a holding client is connected."""
        return any(client.holds and not client.closing for client in self._clients.values())

    def interests(self) -> dict[int, int]:
        """Descriptor -> poll events that the loop waits for."""
        wanted = {fd: select.POLLIN | (select.POLLOUT if client.unsent else 0) for fd, client in self._clients.items()}
        if self._is_listening and len(self._clients) < _CLIENTS_MAX:  # beyond it connections wait in the kernel's queue
            wanted[self._listener.fileno()] = select.POLLIN
        return wanted

    def serve(self, fd: int) -> None:
        """Something happened at `fd`, one of `interests`."""
        if fd == self._listener.fileno():
            self._accept()
            return
        client = self._clients.get(fd)
        if client is None:
            return
        client.flush()
        for line in client.read():
            self._answer(client, line)
        self._drop_if_closing(client)

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return  # or the client went away again
        client = Connection(end)
        if platform.peer_uid(end) != os.geteuid():
            client.say_error(ForbiddenError("this fleet belongs to another user"))
            end.close()
            return
        self._clients[end.fileno()] = client

    def _turn_away(self) -> None:
        """No descriptor is free. A client that was left waiting would keep the loop turning for it."""
        with spare.released(), contextlib.suppress(OSError):
            end, _ = self._listener.accept()
            Connection(end).say_error(FleetError("the spawner has no descriptor free; try again", retry_after_s=1.0))
            end.close()

    def _answer(self, client: Connection, line: bytes) -> None:
        try:
            self._carry_out(client, _request(line))
        except MusterError as error:
            client.say_error(error)

    def _carry_out(self, client: Connection, request: dict[str, Any]) -> None:
        match request.get("op"):
            case "ping":
                client.say({"ok": True, "op": "ping", **self._status()})
            case "stop":
                mode, reason = request.get("mode", "drain"), request.get("reason", "")
                if mode not in ("drain", "now") or not isinstance(reason, str):
                    raise UsageError('stop needs a "mode" of "drain" or "now", and a text as "reason"')
                client.say({"ok": True, "op": "stop"})
                self._stop(mode, reason[:200])
            case "wait":
                pass  # answered by `announce_end`
            case "hold":
                client.holds = True
                client.say({"ok": True, "op": "hold"})
            case other:
                raise UsageError(f'no such "op": {str(other)!r:.60}; there are ping, stop, wait and hold')

    def _drop_if_closing(self, client: Connection) -> None:
        if not client.closing:
            return
        self._clients.pop(client.socket.fileno(), None)
        client.socket.close()
        if client.holds:
            self._holder_gone()

    def close(self) -> None:
        """Stop listening and remove the socket; connected clients stay to hear the end."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._listener.close()
        self._is_listening = False

    def announce_end(self, exit_status: int) -> None:
        """Tell everybody how the fleet ended, and hang up: who has not asked yet may be about to."""
        for client in self._clients.values():
            client.say({"ok": True, "op": "wait", "exit_status": exit_status})
            with contextlib.suppress(OSError):
                client.socket.close()
        self._clients.clear()

    def detach(self) -> None:
        """In a forked child: forget all descriptors, which are closed there by number."""
        self._listener.detach()
        for client in self._clients.values():
            client.socket.detach()


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("a request is one line with a JSON object")
    return request
