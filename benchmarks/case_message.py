"""One message at a time: send, receive, ack. In one process, and streamed between two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.processes import Crew, Gate
from benchmarks.redis_streams import RedisInbox
from benchmarks.setting import REDIS, fleet_store
from muster import join
from muster.bus.bus import Bus

BODY = bytes(range(256))
MUSTER_MESSAGES = 10_000
REDIS_MESSAGES = 1_000
_WARM_UP = 200
_WAIT_S = 20.0


def _check(body: bytes, count: int, seq: int) -> None:
    if body != BODY or count != seq:
        raise MeasureError(f"message {count} came as number {seq} with {len(body)} bytes")


def run_loop(call: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function on uvloop, as workers do."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(call())  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- one process


def _muster_alone(store: Path, *, awaited: bool) -> float:
    async def main() -> float:
        async with join("alice", store=store) as alice, join("bob", store=store) as bob:
            number = await _pass_messages(alice, bob, 0, _WARM_UP, awaited=awaited)
            began = time.perf_counter()
            await _pass_messages(alice, bob, number, MUSTER_MESSAGES, awaited=awaited)
            took_s = time.perf_counter() - began
            if bob.depth():
                raise MeasureError(f"{bob.depth()} messages are left")
            return took_s

    took_s: float = run_loop(main)
    return took_s


async def _pass_messages(alice: Bus, bob: Bus, number: int, count: int, *, awaited: bool) -> int:
    for _ in range(count):
        if awaited:
            await alice.send("bob", BODY)
            delivery = await bob.receive(timeout_s=_WAIT_S)
        else:
            alice.post("bob", BODY)
            delivery = bob.receive_nowait()
        number += 1
        if delivery is None:
            raise MeasureError(f"message {number} did not come")
        _check(delivery.body, number, delivery.seq)
        delivery.ack()
    return number


def _alone(*, awaited: bool) -> Figures:
    with fleet_store(["alice", "bob"]) as store, Crew() as crew:
        took_s = crew.add(lambda: _muster_alone(store, awaited=awaited)).result()
    return {"us": took_s / MUSTER_MESSAGES * 1e6}


def _redis_alone() -> Figures:
    path = REDIS.socket()

    def work() -> float:
        inbox = RedisInbox(path, "bench-alone")
        began = 0.0
        for number in range(_WARM_UP + REDIS_MESSAGES):
            if number == _WARM_UP:
                began = time.perf_counter()
            inbox.add({b"n": number, b"body": BODY})
            ((entry, fields),) = inbox.read(1)
            _check(fields[b"body"], number, int(fields[b"n"]))
            inbox.finish([entry])
        took_s = time.perf_counter() - began
        inbox.check_empty()
        return took_s

    with Crew() as crew:
        took_s = crew.add(work).result()
    return {"us": took_s / REDIS_MESSAGES * 1e6}


# ---------------------------------------------------------------------------- two processes


def _muster_pair() -> Figures:
    with fleet_store(["alice", "bob"]) as store, Crew() as crew:
        gate = crew.gate
        crew.add(lambda: run_loop(lambda: _send_all(store, gate)))
        receiver = crew.add(lambda: run_loop(lambda: _receive_all(store, gate)))
        crew.go()
        took_s = receiver.result()
        crew.children[0].result()
    return {"us": took_s / MUSTER_MESSAGES * 1e6}


async def _send_all(store: Path, gate: Gate) -> None:
    async with join("alice", store=store) as alice:
        gate.wait()
        for _ in range(MUSTER_MESSAGES):
            receipt = await alice.send("bob", BODY, wait_s=_WAIT_S)
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _receive_all(store: Path, gate: Gate) -> float:
    async with join("bob", store=store) as bob:
        gate.wait()
        began = time.perf_counter()
        for number in range(1, MUSTER_MESSAGES + 1):
            delivery = await bob.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"message {number} did not come")
            _check(delivery.body, number, delivery.seq)
            delivery.ack()
        return time.perf_counter() - began


def _redis_pair() -> Figures:
    path = REDIS.socket()
    RedisInbox(path, "bench-pair").close()

    with Crew() as crew:
        gate = crew.gate

        def send() -> None:
            inbox = RedisInbox(path, "bench-pair", keep=True)
            gate.wait()
            for number in range(REDIS_MESSAGES * 2):
                inbox.add({b"n": number, b"body": BODY})

        def receive() -> float:
            inbox = RedisInbox(path, "bench-pair", keep=True)
            gate.wait()
            began, number = time.perf_counter(), 0
            while number < REDIS_MESSAGES * 2:
                for entry, fields in inbox.read(1, wait_s=_WAIT_S):
                    _check(fields[b"body"], number, int(fields[b"n"]))
                    inbox.finish([entry])
                    number += 1
            took_s = time.perf_counter() - began
            inbox.check_empty()
            return took_s

        crew.add(send)
        receiver = crew.add(receive)
        crew.go()
        took_s = receiver.result()
        crew.children[0].result()
    return {"us": took_s / (REDIS_MESSAGES * 2) * 1e6}


def cases() -> list[Case]:
    return [
        Case(
            "message",
            "send + receive + ack, one at a time, 256 B, one process",
            [
                Contender("muster", lambda: _alone(awaited=True)),
                Contender("Redis Streams", _redis_alone),
                Contender("muster post", lambda: _alone(awaited=False)),
            ],
            [
                Goal("us", "muster", "Redis Streams", ">=", 10.0),
                Goal("us", "muster post", "Redis Streams", ">=", 10.0, label="without await"),
            ],
        ),
        Case(
            "stream",
            "the same, from one process to another",
            [Contender("muster", _muster_pair), Contender("Redis Streams", _redis_pair)],
            [Goal("us", "muster", "Redis Streams", ">=", 10.0)],
        ),
    ]
