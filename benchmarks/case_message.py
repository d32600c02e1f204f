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


def _per_message(took_s: float, cpu_s: float, count: int) -> Figures:
    """Wall time, and processor time of everybody involved: the latter hardly minds what else the machine is doing."""
    return {"us": took_s / count * 1e6, "cpu_us": cpu_s / count * 1e6}


# ---------------------------------------------------------------------------- one process


def _muster_alone(store: Path, *, awaited: bool) -> tuple[float, float]:
    async def main() -> tuple[float, float]:
        async with join("alice", store=store) as alice, join("bob", store=store) as bob:
            number = await _pass_messages(alice, bob, 0, _WARM_UP, awaited=awaited)
            began, cpu = time.perf_counter(), time.process_time()
            await _pass_messages(alice, bob, number, MUSTER_MESSAGES, awaited=awaited)
            took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
            if bob.depth():
                raise MeasureError(f"{bob.depth()} messages are left")
            return took_s, cpu_s

    figures: tuple[float, float] = run_loop(main)
    return figures


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
        took_s, cpu_s = crew.add(lambda: _muster_alone(store, awaited=awaited)).result()
    return _per_message(took_s, cpu_s, MUSTER_MESSAGES)


def _redis_alone() -> Figures:
    path = REDIS.socket()

    def work() -> tuple[float, float]:
        inbox = RedisInbox(path, "bench-alone")
        began = cpu = 0.0
        for number in range(_WARM_UP + REDIS_MESSAGES):
            if number == _WARM_UP:
                began, cpu = time.perf_counter(), time.process_time() + REDIS.cpu_s()
            inbox.add({b"n": number, b"body": BODY})
            ((entry, fields),) = inbox.read(1)
            _check(fields[b"body"], number, int(fields[b"n"]))
            inbox.finish([entry])
        took_s, cpu_s = time.perf_counter() - began, time.process_time() + REDIS.cpu_s() - cpu
        inbox.check_empty()
        return took_s, cpu_s

    with Crew() as crew:
        took_s, cpu_s = crew.add(work).result()
    return _per_message(took_s, cpu_s, REDIS_MESSAGES)


# ---------------------------------------------------------------------------- two processes


def _muster_pair() -> Figures:
    with fleet_store(["alice", "bob"]) as store, Crew() as crew:
        gate = crew.gate
        crew.add(lambda: run_loop(lambda: _send_all(store, gate)))
        receiver = crew.add(lambda: run_loop(lambda: _receive_all(store, gate)))
        crew.go()
        took_s, cpu_s = receiver.result()
        cpu_s += crew.children[0].result()
    return _per_message(took_s, cpu_s, MUSTER_MESSAGES)


async def _send_all(store: Path, gate: Gate) -> float:
    async with join("alice", store=store) as alice:
        gate.wait()
        cpu = time.process_time()
        for _ in range(MUSTER_MESSAGES):
            receipt = await alice.send("bob", BODY, wait_s=_WAIT_S)
        cpu_s = time.process_time() - cpu
        await receipt.wait_acked(timeout_s=_WAIT_S)
    return cpu_s


async def _receive_all(store: Path, gate: Gate) -> tuple[float, float]:
    async with join("bob", store=store) as bob:
        gate.wait()
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(1, MUSTER_MESSAGES + 1):
            delivery = await bob.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"message {number} did not come")
            _check(delivery.body, number, delivery.seq)
            delivery.ack()
        return time.perf_counter() - began, time.process_time() - cpu


def _redis_pair() -> Figures:
    path = REDIS.socket()
    RedisInbox(path, "bench-pair").close()

    with Crew() as crew:
        gate = crew.gate

        def send() -> float:
            inbox = RedisInbox(path, "bench-pair", keep=True)
            gate.wait()
            cpu = time.process_time()
            for number in range(REDIS_MESSAGES * 2):
                inbox.add({b"n": number, b"body": BODY})
            return time.process_time() - cpu

        def receive() -> tuple[float, float]:
            inbox = RedisInbox(path, "bench-pair", keep=True)
            gate.wait()
            began, number, cpu = time.perf_counter(), 0, time.process_time() + REDIS.cpu_s()
            while number < REDIS_MESSAGES * 2:
                for entry, fields in inbox.read(1, wait_s=_WAIT_S):
                    _check(fields[b"body"], number, int(fields[b"n"]))
                    inbox.finish([entry])
                    number += 1
            took_s, cpu_s = time.perf_counter() - began, time.process_time() + REDIS.cpu_s() - cpu
            inbox.check_empty()
            return took_s, cpu_s

        crew.add(send)
        receiver = crew.add(receive)
        crew.go()
        took_s, cpu_s = receiver.result()
        cpu_s += crew.children[0].result()
    return _per_message(took_s, cpu_s, REDIS_MESSAGES * 2)


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
                Goal("us", "muster post", "Redis Streams", ">=", 10.0, label="post"),
                Goal("cpu_us", "muster", "Redis Streams", ">=", label="CPU"),
            ],
        ),
        Case(
            "stream",
            "the same, from one process to another",
            [Contender("muster", _muster_pair), Contender("Redis Streams", _redis_pair)],
            [
                Goal("us", "muster", "Redis Streams", ">=", 10.0),
                Goal("cpu_us", "muster", "Redis Streams", ">=", label="CPU"),
            ],
        ),
    ]
