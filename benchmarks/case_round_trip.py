"""A request of 256 bytes and its answer, between two processes: p50 and p99 of the round trip."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.contenders import REDIS_STREAMS
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError, percentile
from benchmarks.peers.zeromq import zmq_module
from benchmarks.processes import Crew, Gate, run_loop
from benchmarks.setting import fleet_store, scratch
from benchmarks.socket_star import receive_exactly
from muster import join
from muster.bus.bus import Bus

BODY = bytes(range(256))
_WAIT_S = 20.0


def _trips() -> int:
    return effort(1_000, 50)


def _warm_up() -> int:
    return effort(100, 5)


def _figures(trips_us: list[float]) -> Figures:
    return {"p50_us": percentile(trips_us, 0.50), "p99_us": percentile(trips_us, 0.99)}


def _check(answer: bytes) -> None:
    if answer != BODY:
        raise MeasureError(f"an answer of {len(answer)} bytes is not what was sent")


def _time(trips: int, trip: Callable[[], bytes]) -> list[float]:
    taken = []
    for number in range(_warm_up() + trips):
        began = time.perf_counter()
        answer = trip()
        if number >= _warm_up():
            taken.append((time.perf_counter() - began) * 1e6)
        _check(answer)
    return taken


# ---------------------------------------------------------------------------- muster


async def _echo(store: Path, gate: Gate, *, by_ask: bool) -> None:
    async with join("bob", store=store) as bob:
        gate.wait()
        for _ in range(_warm_up() + _trips()):
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
        for number in range(_warm_up() + _trips()):
            began = time.perf_counter()
            answer = await trip(alice)
            if number >= _warm_up():
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


def _socketpair() -> Figures:
    mine, theirs = socket.socketpair()
    with mine, theirs, Crew() as crew:

        def echo() -> None:
            for _ in range(_warm_up() + _trips()):
                theirs.sendall(receive_exactly(theirs, len(BODY)))

        def trip() -> bytes:
            mine.sendall(BODY)
            return receive_exactly(mine, len(BODY))

        crew.add(echo)
        taken = crew.add(lambda: _time(_trips(), trip)).result()
    return _figures(taken)


def _redis() -> Figures:
    """Two streams; each side reads its own and adds to the other's."""
    peer = REDIS_STREAMS
    with peer.place(["ask", "answer"], []) as place, Crew() as crew:

        async def echo() -> None:
            async with peer.receiver(place, "ask") as receiving, peer.sender(place, "echo") as sending:
                for _ in range(_warm_up() + _trips()):
                    await sending.send("answer", await receiving.receive(1))
                    await receiving.ack()

        async def call() -> list[float]:
            taken = []
            async with peer.receiver(place, "answer") as receiving, peer.sender(place, "caller") as sending:
                for number in range(_warm_up() + _trips()):
                    began = time.perf_counter()
                    await sending.send("ask", [BODY])
                    (answer,) = await receiving.receive(1)
                    await receiving.ack()
                    if number >= _warm_up():
                        taken.append((time.perf_counter() - began) * 1e6)
                    _check(answer)
            return taken

        crew.add(lambda: run_loop(echo))
        taken = crew.add(lambda: run_loop(call)).result()
        crew.children[0].result()
    return _figures(taken)


def _zeromq() -> Figures:
    """REQ and REP under asyncio, as ours."""
    zmq = zmq_module()
    with scratch() as directory, Crew() as crew:
        address = f"ipc://{directory}/zeromq"

        async def echo() -> None:
            with zmq.asyncio.Context() as context, context.socket(zmq.REP) as replier:
                replier.bind(address)
                for _ in range(_warm_up() + _trips()):
                    await replier.send(await replier.recv())
                replier.close(linger=1000)

        async def call() -> list[float]:
            taken = []
            with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as asker:
                asker.connect(address)
                for number in range(_warm_up() + _trips()):
                    began = time.perf_counter()
                    await asker.send(BODY)
                    answer = await asker.recv()
                    if number >= _warm_up():
                        taken.append((time.perf_counter() - began) * 1e6)
                    _check(answer)
            return taken

        crew.add(lambda: run_loop(echo))
        taken = crew.add(lambda: run_loop(call)).result()
        crew.children[0].result()
    return _figures(taken)


def _zeromq_blocking() -> Figures:
    """REQ and REP without an event loop: nothing but these two calls can happen in the processes."""
    zmq = zmq_module()
    with scratch() as directory, Crew() as crew:
        address = f"ipc://{directory}/zeromq"

        def echo() -> None:
            with zmq.Context() as context, context.socket(zmq.REP) as replier:
                replier.bind(address)
                for _ in range(_warm_up() + _trips()):
                    replier.send(replier.recv())
                replier.close(linger=1000)

        def call() -> list[float]:
            with zmq.Context() as context, context.socket(zmq.REQ) as asker:
                asker.connect(address)

                def trip() -> bytes:
                    asker.send(BODY)
                    answer: bytes = asker.recv()
                    return answer

                return _time(_trips(), trip)

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
