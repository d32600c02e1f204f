"""Fifty processes: all of them write to one inbox, and one of them asks all of them and waits for every answer."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.case_message import BODY, run_loop
from benchmarks.case_round_trip import receive_exactly
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError, percentile
from benchmarks.processes import Crew, Gate
from benchmarks.redis_streams import RedisInbox
from benchmarks.setting import REDIS, fleet_store
from muster import join

AGENTS = 50
#: Messages of each sender in one block.
MUSTER_EACH = 200
REDIS_EACH = 60
ROUNDS = 120
_WARM_UP = 5
_WAIT_S = 25.0
_LENGTH = struct.Struct("<I")

IDS = [f"w-{number}" for number in range(1, AGENTS + 1)]


class Work(msgspec.Struct):
    """What the round sends, and gets back."""

    number: int
    input: bytes


# ---------------------------------------------------------------------------- fan-in


async def _send_many(store: Path, agent: str, gate: Gate) -> None:
    async with join(agent, store=store) as bus:
        gate.wait()
        for _ in range(MUSTER_EACH):
            receipt = await bus.send("hub", BODY, wait_s=_WAIT_S)
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _receive_many(store: Path, gate: Gate) -> float:
    seen: dict[str, int] = dict.fromkeys(IDS, 0)
    async with join("hub", store=store) as hub:
        gate.wait()
        began = time.perf_counter()
        for number in range(AGENTS * MUSTER_EACH):
            delivery = await hub.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"{AGENTS * MUSTER_EACH - number} messages did not come")
            seen[delivery.sender] += 1
            if delivery.seq != seen[delivery.sender] or delivery.body != BODY:
                raise MeasureError(
                    f"message {seen[delivery.sender]} of {delivery.sender} came as number {delivery.seq}"
                )
            delivery.ack()
        took_s = time.perf_counter() - began
        if hub.depth() or set(seen.values()) != {MUSTER_EACH}:
            raise MeasureError(f"{hub.depth()} messages are left")
    return took_s


def _muster_fan_in() -> Figures:
    with fleet_store(["hub", *IDS]) as store, Crew() as crew:
        gate = crew.gate
        hub = crew.add(lambda: run_loop(lambda: _receive_many(store, gate)))
        for agent in IDS:
            crew.add(_bound(lambda agent: run_loop(lambda: _send_many(store, agent, gate)), agent))
        crew.go()
        took_s: float = hub.result()
        for child in crew.children[1:]:
            child.result()
    return {"per_s": AGENTS * MUSTER_EACH / took_s}


def _bound(call: Callable[[str], Any], agent: str) -> Callable[[], Any]:
    return lambda: call(agent)


def _redis_fan_in(batch: int) -> Figures:
    path = REDIS.socket()
    RedisInbox(path, "bench-hub").close()

    with Crew() as crew:
        gate = crew.gate

        def send(agent: str) -> None:
            inbox = RedisInbox(path, "bench-hub", keep=True)
            gate.wait()
            for number in range(REDIS_EACH):
                inbox.add({b"from": agent, b"n": number, b"body": BODY})

        def receive() -> float:
            inbox = RedisInbox(path, "bench-hub", keep=True)
            seen: dict[bytes, int] = {}
            gate.wait()
            began, count = time.perf_counter(), 0
            while count < AGENTS * REDIS_EACH:
                entries = inbox.read(batch, wait_s=_WAIT_S)
                for _entry, fields in entries:
                    if int(fields[b"n"]) != seen.get(fields[b"from"], 0) or fields[b"body"] != BODY:
                        raise MeasureError(f"a message of {fields[b'from']!r} came out of order")
                    seen[fields[b"from"]] = seen.get(fields[b"from"], 0) + 1
                inbox.finish([entry for entry, _fields in entries])
                count += len(entries)
            took_s = time.perf_counter() - began
            inbox.check_empty()
            return took_s

        hub = crew.add(receive)
        for agent in IDS:
            crew.add(_bound(send, agent))
        crew.go()
        took_s: float = hub.result()
        for child in crew.children[1:]:
            child.result()
    return {"per_s": AGENTS * REDIS_EACH / took_s}


# ---------------------------------------------------------------------------- the round


def _figures(taken_ms: list[float]) -> Figures:
    return {"p50_ms": percentile(taken_ms, 0.50), "p99_ms": percentile(taken_ms, 0.99)}


async def _answer(store: Path, agent: str, gate: Gate, *, by_ask: bool) -> None:
    async with join(agent, store=store) as bus:
        gate.wait()
        for _ in range(_WARM_UP + ROUNDS):
            delivery = await bus.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"{agent} was not asked")
            work = delivery.decode(Work)
            receipt = delivery.reply(work) if by_ask else await bus.send("hub", work)
            delivery.ack()
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _round_by_messages(store: Path, gate: Gate) -> list[float]:
    taken = []
    async with join("hub", store=store) as hub:
        gate.wait()
        for number in range(_WARM_UP + ROUNDS):
            work = Work(number, BODY)
            began = time.perf_counter()
            for agent in IDS:
                await hub.send(agent, work)
            heard: set[str] = set()
            for _ in IDS:
                delivery = await hub.receive(timeout_s=_WAIT_S)
                if delivery is None or delivery.decode(Work) != work:
                    raise MeasureError(f"{AGENTS - len(heard)} answers of round {number} did not come")
                heard.add(delivery.sender)
                delivery.ack()
            if number >= _WARM_UP:
                taken.append((time.perf_counter() - began) * 1e3)
            if len(heard) != AGENTS:
                raise MeasureError(f"{len(heard)} of {AGENTS} answered")
    return taken


async def _round_by_asks(store: Path, gate: Gate) -> list[float]:
    import asyncio

    taken = []
    async with join("hub", store=store) as hub:
        gate.wait()
        for number in range(_WARM_UP + ROUNDS):
            work = Work(number, BODY)
            began = time.perf_counter()
            answers = await asyncio.gather(*(hub.ask(agent, work, timeout_s=_WAIT_S) for agent in IDS))
            values = [(answer.sender, answer.decode(Work)) for answer in answers]
            if number >= _WARM_UP:
                taken.append((time.perf_counter() - began) * 1e3)
            if values != [(agent, work) for agent in IDS]:
                raise MeasureError("an answer is not what was asked for")
    return taken


def _muster_round(*, by_ask: bool) -> Figures:
    with fleet_store(["hub", *IDS]) as store, Crew() as crew:
        gate = crew.gate
        ask_all = _round_by_asks if by_ask else _round_by_messages
        hub = crew.add(lambda: run_loop(lambda: ask_all(store, gate)))
        for agent in IDS:
            crew.add(_bound(lambda agent: run_loop(lambda: _answer(store, agent, gate, by_ask=by_ask)), agent))
        crew.go()
        taken: list[float] = hub.result()
        for child in crew.children[1:]:
            child.result()
    return _figures(taken)


def _send_frame(connection: socket.socket, work: Work) -> None:
    body = msgspec.msgpack.encode(work)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def _receive_frame(connection: socket.socket) -> Work:
    size = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size))[0]
    return msgspec.msgpack.decode(receive_exactly(connection, size), type=Work)


def _star() -> Figures:
    """The same round over a socket pair for each agent, msgpack with a length in front, blocking agents, an epoll loop in the middle."""
    pairs = [socket.socketpair() for _ in IDS]

    def answer(connection: socket.socket, gate: Gate) -> None:
        gate.wait()
        for _ in range(_WARM_UP + ROUNDS):
            _send_frame(connection, _receive_frame(connection))

    def ask_all(gate: Gate) -> list[float]:
        selector = selectors.DefaultSelector()
        for mine, _theirs in pairs:
            selector.register(mine, selectors.EVENT_READ)
        gate.wait()
        taken = []
        for number in range(_WARM_UP + ROUNDS):
            work = Work(number, BODY)
            began = time.perf_counter()
            for mine, _theirs in pairs:
                _send_frame(mine, work)
            open_answers = AGENTS
            while open_answers:
                for key, _events in selector.select(_WAIT_S):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if _receive_frame(connection) != work:
                        raise MeasureError("an answer is not what was sent")
                    open_answers -= 1
            if number >= _WARM_UP:
                taken.append((time.perf_counter() - began) * 1e3)
        return taken

    try:
        with Crew() as crew:
            gate = crew.gate
            hub = crew.add(lambda: ask_all(gate))
            for _mine, theirs in pairs:
                crew.add(_with(answer, theirs, gate))
            crew.go()
            taken: list[float] = hub.result()
    finally:
        for pair in pairs:
            for connection in pair:
                connection.close()
    return _figures(taken)


def _with(call: Callable[[socket.socket, Gate], None], connection: socket.socket, gate: Gate) -> Callable[[], None]:
    return lambda: call(connection, gate)


def cases() -> list[Case]:
    return [
        Case(
            "fanin",
            "50 processes write to one inbox, 256 B, until the last is acked",
            [
                Contender("muster", _muster_fan_in),
                Contender("Redis Streams", lambda: _redis_fan_in(1)),
                Contender("Redis, read by 100", lambda: _redis_fan_in(100)),
            ],
            [
                Goal("per_s", "muster", "Redis Streams", ">=", 5.0),
                Goal("per_s", "muster", "Redis, read by 100", ">="),
            ],
            rounds=3,
        ),
        Case(
            "round",
            "one process sends to 50 and waits for every answer",
            [
                Contender("muster", lambda: _muster_round(by_ask=False)),
                Contender("socketpair star", _star),
                Contender("muster ask", lambda: _muster_round(by_ask=True)),
            ],
            [
                Goal("p50_ms", "muster", "socketpair star", "<=", 3.0),
                Goal("p99_ms", "muster", "socketpair star"),
                Goal("p50_ms", "muster ask", "socketpair star", "<=", 3.0, label="ask"),
                Goal("p99_ms", "muster ask", "socketpair star", label="ask"),
            ],
            rounds=3,
        ),
    ]
