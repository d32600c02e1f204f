"""Processes around a hub over socket pairs: the least that a round over that many processes can cost from Python."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.harness import MeasureError
from benchmarks.processes import LARGE_LIFE_S, Crew

_LENGTH = struct.Struct("<I")
_WAIT_S = 25.0

Pair = tuple[socket.socket, socket.socket]


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes of a stream. Raises MeasureError when it ends before."""
    found = connection.recv(size)
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise MeasureError(f"a connection ended {size - len(found)} bytes too early")
        found += part
    return found


def send_frame(connection: socket.socket, value: Any) -> None:
    body = msgspec.msgpack.encode(value)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive_frame(connection: socket.socket, as_type: Any) -> Any:
    size = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size))[0]
    return msgspec.msgpack.decode(receive_exactly(connection, size), type=as_type)


def ask_all(connections: list[socket.socket], selector: selectors.BaseSelector, work: Any, as_type: Any) -> list[Any]:
    """Send to all, take one answer of each."""
    for connection in connections:
        send_frame(connection, work)
    answers: list[Any] = []
    while len(answers) < len(connections):
        ready = selector.select(_WAIT_S)
        if not ready:
            raise MeasureError(f"{len(connections) - len(answers)} answers did not come")
        for key, _events in ready:
            assert isinstance(key.fileobj, socket.socket)
            answers.append(receive_frame(key.fileobj, as_type))
    return answers


def selector_of(connections: list[socket.socket]) -> selectors.BaseSelector:
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection, selectors.EVENT_READ)
    return selector


class Star:
    """`agents` processes that each answer `count` frames of `of` with what they got. `with` ends them."""

    def __init__(self, agents: int, of: Any, count: int) -> None:
        self._of = of
        self._count = count
        self._pairs: list[Pair] = [socket.socketpair() for _ in range(agents)]
        self._mine = [mine for mine, _theirs in self._pairs]
        self._crew = Crew(LARGE_LIFE_S)
        self._selector: selectors.BaseSelector | None = None

    def ask_all(self, work: Any) -> list[Any]:
        """In the process that `run` makes: one round."""
        self._selector = self._selector or selector_of(self._mine)
        return ask_all(self._mine, self._selector, work, self._of)

    def run(self, call: Callable[[], Any]) -> Any:
        """Let a process of its own make `call`, once all agents are ready, and return what it returned."""
        gate = self._crew.gate

        def hub() -> Any:
            gate.wait()
            return call()

        def answer(theirs: socket.socket) -> None:
            gate.wait()
            for _ in range(self._count):
                send_frame(theirs, receive_frame(theirs, self._of))

        child = self._crew.add(hub)
        for _mine, theirs in self._pairs:
            self._crew.add(answer, theirs)
        self._crew.go()
        return child.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.__exit__(kind, error, trace)
        close_pairs(self._pairs)


def close_pairs(pairs: list[Pair]) -> None:
    for pair in pairs:
        for connection in pair:
            with contextlib.suppress(OSError):
                connection.close()


class Tree:
    """A root over `shape[0]` leads, each over `shape[1]` agents. A lead answers with `types[1](work.number, answers)`."""

    def __init__(self, shape: tuple[int, int], types: tuple[Any, Any], count: int) -> None:
        self._work, self._team_answer = types
        self._count = count
        self._leads: list[Pair] = [socket.socketpair() for _ in range(shape[0])]
        self._teams: list[list[Pair]] = [[socket.socketpair() for _ in range(shape[1])] for _ in range(shape[0])]
        self._crew = Crew(LARGE_LIFE_S)
        self._mine = [mine for mine, _theirs in self._leads]
        self._selector: selectors.BaseSelector | None = None

    def ask_all(self, work: Any) -> list[Any]:
        """In the process that `run` makes: one round over the whole tree."""
        self._selector = self._selector or selector_of(self._mine)
        return ask_all(self._mine, self._selector, work, self._team_answer)

    def run(self, call: Callable[[], Any]) -> Any:
        """Let a process of its own make `call`, once everybody is ready, and return what it returned."""
        gate = self._crew.gate

        def root() -> Any:
            gate.wait()
            return call()

        def lead(up: socket.socket, team: list[Pair]) -> None:
            down = [mine for mine, _theirs in team]
            selector = selector_of(down)
            gate.wait()
            for _ in range(self._count):
                work = receive_frame(up, self._work)
                send_frame(up, self._team_answer(work.number, ask_all(down, selector, work, self._work)))

        def answer(theirs: socket.socket) -> None:
            gate.wait()
            for _ in range(self._count):
                send_frame(theirs, receive_frame(theirs, self._work))

        child = self._crew.add(root)
        for (_mine, up), team in zip(self._leads, self._teams, strict=True):
            self._crew.add(lead, up, team)
            for _down, theirs in team:
                self._crew.add(answer, theirs)
        self._crew.go()
        return child.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.__exit__(kind, error, trace)
        close_pairs([*self._leads, *(pair for team in self._teams for pair in team)])
