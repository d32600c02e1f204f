"""Asking a running spawner: a small blocking client for command lines. Standard library only, quick to import."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal, Self

from muster.errors import FleetError, FleetNotRunningError, ForbiddenError, MusterError, UsageError
from muster.supervise import platform

_ERRORS: dict[str, type[MusterError]] = {error.code: error for error in (ForbiddenError, UsageError)}


class SpawnerClient:
    """A connection to the living spawner of one fleet. Not for use by several threads at once."""

    def __init__(self, connection: socket.socket, pid: int, *, is_parent: bool = False) -> None:
        self.pid = pid
        self._socket = connection
        self._is_parent = is_parent
        self._received = b""
        self._waits = False
        self._exit_status: int | None = None

    @classmethod
    def connect(cls, store: Path, timeout_s: float = 5.0) -> SpawnerClient:
        """Connect to the spawner that holds `store`.

        Raises:
            FleetNotRunningError: No living spawner holds it.
            ForbiddenError: It is another user's.
            TimeoutError: It lives, but does not answer.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with platform.short_path(store, "spawner.sock") as address:
                connection.settimeout(timeout_s)
                connection.connect(address)
            client = cls(connection, 0)
            client.pid = int(client.ping(timeout_s)["pid"])
        except TimeoutError:
            connection.close()
            raise
        except PermissionError as error:
            connection.close()
            raise ForbiddenError(f"the fleet {store.name!r} belongs to another user", store=str(store)) from error
        except (OSError, FleetNotRunningError) as error:
            connection.close()
            raise FleetNotRunningError(f"the fleet {store.name!r} is not running", store=str(store)) from error
        return client

    def ping(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the spawner knows: `pid`, `start_time`, `stopping` (None, "drain" or "now"), `coordinator` (`pid` or
        None, `restarts`) and `workers` (each `worker`, `incarnation`, `pid`, `start_time`).

        Raises:
            FleetNotRunningError: The spawner has ended.
            TimeoutError: It did not answer in time.
        """
        return self._ask({"op": "ping"}, timeout_s)

    def stop(self, mode: Literal["drain", "now"] = "drain", reason: str = "", timeout_s: float = 10.0) -> None:
        """Ask for the fleet's end and return at once; `wait` waits for it. `now` after `drain` shortens it.

        Raises:
            FleetNotRunningError: The spawner has ended (which may be what was wanted).
            TimeoutError: It did not answer in time; it may still have heard.
        """
        self._ask({"op": "stop", "mode": mode, "reason": reason}, timeout_s)

    def hold(self, timeout_s: float = 10.0) -> None:
        """From now on the fleet is drained when this connection is closed or this process dies."""
        self._ask({"op": "hold"}, timeout_s)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the fleet has ended and everything of it is gone; return its exit status.

        Raises:
            TimeoutError: It has not ended yet; wait again.
            FleetNotRunningError: The spawner was killed, so nobody knows how the fleet ended.
        """
        self._request_end()
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while self._exit_status is None:
            try:
                self._note(self._read_line(ends))
            except FleetNotRunningError:
                self._exit_status = self._status_of_child()
                if self._exit_status is None:
                    raise
        self._reap_child(2.0)
        return self._exit_status

    def fileno(self) -> int:
        """A descriptor for an event loop: readable when the fleet has ended (`wait(0)` then returns) or the spawner is
        dead.
        """
        self._request_end()
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection. If it holds the fleet (started in the foreground, or `hold`), the fleet is drained."""
        self._socket.close()
        self._reap_child(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request_end(self) -> None:
        if not self._waits:
            self._send({"op": "wait"}, 10.0)
            self._waits = True

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        ends = time.monotonic() + timeout_s
        self._send(request, timeout_s)
        while True:
            reply = self._read_line(ends)
            if reply.get("op") == request["op"]:
                return reply
            self._note(reply)

    def _note(self, reply: dict[str, Any]) -> None:
        if reply.get("op") == "wait":
            self._exit_status = int(reply["exit_status"])
        elif "error" in reply:
            error = reply["error"]
            raise _ERRORS.get(error["code"], FleetError)(error["message"])

    def _send(self, request: dict[str, Any], timeout_s: float) -> None:
        try:
            self._socket.settimeout(max(0.001, timeout_s))
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise TimeoutError("the spawner did not answer in time") from None
        except OSError:
            pass  # it hung up; its last words, if any, and the end of the stream are read next

    def _read_line(self, ends: float | None) -> dict[str, Any]:
        while b"\n" not in self._received:
            if ends is None:
                self._socket.settimeout(None)
            else:
                self._socket.settimeout(max(0.001, ends - time.monotonic()))
            try:
                part = self._socket.recv(1 << 16)
            except TimeoutError:
                raise TimeoutError("the spawner did not answer in time") from None
            except OSError:
                part = b""
            if not part:
                raise self._not_running()
            self._received += part
        line, self._received = self._received.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _not_running(self) -> FleetNotRunningError:
        return FleetNotRunningError(f"the spawner (process {self.pid}) has ended", pid=self.pid)

    def _status_of_child(self) -> int | None:
        """How the spawner ended, when it is our child and ended by itself."""
        if not self._is_parent:
            return None
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
            self._is_parent = False
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None
        return None

    def _reap_child(self, timeout_s: float) -> None:
        """No zombie stays behind when this process started the spawner."""
        if not self._is_parent:
            return
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                platform.wait_for_exits([self.pid], timeout_s)
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                    return
        self._is_parent = False
