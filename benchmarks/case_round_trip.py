"""A request of 256 bytes and its answer, between two processes: p50 and p99 of the round trip."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.case_message import BODY, run_loop
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError, MissingContenderError, percentile
from benchmarks.processes import Crew, Gate
from benchmarks.redis_streams import RedisInbox
from benchmarks.setting import REDIS, fleet_store, scratch
from muster import join
from muster.bus.bus import Bus

TRIPS = 1_500
REDIS_TRIPS = 500
_WARM_UP = 100
_WAIT_S = 20.0


def _figures(trips_us: list[float]) -> Figures:
    return {"p50_us": percentile(trips_us, 0.50), "p99_us": percentile(trips_us, 0.99)}


def _check(answer: bytes) -> None:
    if answer != BODY:
        raise MeasureError(f"an answer of {len(answer)} bytes is not what was sent")


def _time(trips: int, trip: Callable[[], bytes]) -> list[float]:
    taken = []
    for number in range(_WARM_UP + trips):
        began = time.perf_counter()
        answer = trip()
        if number >= _WARM_UP:
            taken.append((time.perf_counter() - began) * 1e6)
        _check(answer)
    return taken


# ---------------------------------------------------------------------------- muster


async def _echo(store: Path, gate: Gate, *, by_ask: bool) -> None:
    async with join("bob", store=store) as bob:
        gate.wait()
        for _ in range(_WARM_UP + TRIPS):
            delivery = await bob.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError("a request did not come")
            if by_ask:
                receipt = delivery.reply(delivery.body)
            else:
                receipt = await bob.send("alice", delivery.body)
            delivery.ack()
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _by_ask(alice: Bus) -> bytes:
    body: bytes = (await alice.ask("bob", BODY, timeout_s=_WAIT_S)).body
    return body


async def _by_message(alice: Bus) -> bytes:
    await alice.send("bob", BODY)
    delivery = await alice.receive(timeout_s=_WAIT_S)
    if delivery is None:
        raise MeasureError("an answer did not come")
    body: bytes = delivery.body
    delivery.ack()
    return body


async def _caller(store: Path, gate: Gate, trip: Callable[[Bus], Awaitable[bytes]]) -> list[float]:
    taken = []
    async with join("alice", store=store) as alice:
        gate.wait()
        for number in range(_WARM_UP + TRIPS):
            began = time.perf_counter()
            answer = await trip(alice)
            if number >= _WARM_UP:
                taken.append((time.perf_counter() - began) * 1e6)
            _check(answer)
    return taken


def _muster(*, by_ask: bool) -> Figures:
    trip = _by_ask if by_ask else _by_message
    with fleet_store(["alice", "bob"]) as store, Crew() as crew:
        gate = crew.gate
        crew.add(lambda: run_loop(lambda: _echo(store, gate, by_ask=by_ask)))
        caller = crew.add(lambda: run_loop(lambda: _caller(store, gate, trip)))
        crew.go()
        taken: list[float] = caller.result()
        crew.children[0].result()
    return _figures(taken)


# ---------------------------------------------------------------------------- peers


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes of a stream."""
    found = connection.recv(size)
    while 0 < len(found) < size:
        found += connection.recv(size - len(found))
    return found


def _socketpair() -> Figures:
    mine, theirs = socket.socketpair()
    with mine, theirs, Crew() as crew:

        def echo() -> None:
            for _ in range(_WARM_UP + TRIPS):
                theirs.sendall(receive_exactly(theirs, len(BODY)))

        def trip() -> bytes:
            mine.sendall(BODY)
            return receive_exactly(mine, len(BODY))

        crew.add(echo)
        taken = crew.add(lambda: _time(TRIPS, trip)).result()
    return _figures(taken)


def _redis() -> Figures:
    path = REDIS.socket()
    for name in ("bench-ask", "bench-answer"):
        RedisInbox(path, name).close()

    def echo() -> None:
        inbox = RedisInbox(path, "bench-ask", keep=True)
        for _ in range(_WARM_UP + REDIS_TRIPS):
            ((entry, fields),) = inbox.read(1, wait_s=_WAIT_S)
            inbox.add(fields, to="bench-answer")
            inbox.finish([entry])

    def call() -> list[float]:
        inbox = RedisInbox(path, "bench-answer", keep=True)

        def trip() -> bytes:
            inbox.add({b"body": BODY}, to="bench-ask")
            ((entry, fields),) = inbox.read(1, wait_s=_WAIT_S)
            inbox.finish([entry])
            return fields[b"body"]

        return _time(REDIS_TRIPS, trip)

    with Crew() as crew:
        crew.add(echo)
        taken = crew.add(call).result()
        crew.children[0].result()
    return _figures(taken)


def _zmq() -> Any:
    try:
        import zmq
        import zmq.asyncio
    except ImportError:
        raise MissingContenderError("pyzmq is not installed (scripts/setup.sh bench)") from None
    return zmq


def _zeromq() -> Figures:
    """REQ and REP under asyncio, as ours."""
    zmq = _zmq()
    with scratch() as directory, Crew() as crew:
        address = f"ipc://{directory}/zeromq"

        async def echo() -> None:
            with zmq.asyncio.Context() as context, context.socket(zmq.REP) as replier:
                replier.bind(address)
                for _ in range(_WARM_UP + TRIPS):
                    await replier.send(await replier.recv())
                replier.close(linger=1000)

        async def call() -> list[float]:
            taken = []
            with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as asker:
                asker.connect(address)
                for number in range(_WARM_UP + TRIPS):
                    began = time.perf_counter()
                    await asker.send(BODY)
                    answer = await asker.recv()
                    if number >= _WARM_UP:
                        taken.append((time.perf_counter() - began) * 1e6)
                    _check(answer)
            return taken

        crew.add(lambda: run_loop(echo))
        taken = crew.add(lambda: run_loop(call)).result()
        crew.children[0].result()
    return _figures(taken)


def _zeromq_blocking() -> Figures:
    """REQ and REP without an event loop: nothing but these two calls can happen in the processes."""
    zmq = _zmq()
    with scratch() as directory, Crew() as crew:
        address = f"ipc://{directory}/zeromq"

        def echo() -> None:
            with zmq.Context() as context, context.socket(zmq.REP) as replier:
                replier.bind(address)
                for _ in range(_WARM_UP + TRIPS):
                    replier.send(replier.recv())
                replier.close(linger=1000)

        def call() -> list[float]:
            with zmq.Context() as context, context.socket(zmq.REQ) as asker:
                asker.connect(address)

                def trip() -> bytes:
                    asker.send(BODY)
                    answer: bytes = asker.recv()
                    return answer

                return _time(TRIPS, trip)

        crew.add(echo)
        taken = crew.add(call).result()
        crew.children[0].result()
    return _figures(taken)


def cases() -> list[Case]:
    return [
        Case(
            "roundtrip",
            "request and reply of 256 B between two processes",
            [
                Contender("muster", lambda: _muster(by_ask=True)),
                Contender("ZeroMQ", _zeromq),
                Contender("muster send", lambda: _muster(by_ask=False)),
                Contender("ZeroMQ blocking", _zeromq_blocking),
                Contender("Redis Streams", _redis),
                Contender("socketpair", _socketpair),
            ],
            [
                Goal("p50_us", "muster", "ZeroMQ", "<=", 1.0, label="ask"),
                Goal("p99_us", "muster", "ZeroMQ", label="ask"),
                Goal("p50_us", "muster send", "ZeroMQ", "<=", 1.0, label="send"),
                Goal("p50_us", "muster", "ZeroMQ blocking", label="ask"),
                Goal("p50_us", "muster", "Redis Streams", label="ask"),
                Goal("p50_us", "muster", "socketpair", label="ask"),
                Goal("p99_us", "muster", "socketpair", label="ask"),
            ],
        )
    ]
