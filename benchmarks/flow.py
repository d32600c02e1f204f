"""One block of messages flowing: some processes send for a while, others receive and ack until the last message is handled."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.harness import Figures, MeasureError
from benchmarks.peers.port import Peer, Receiving, Sending
from benchmarks.processes import Crew, Gate, run_loop

_HEADER = struct.Struct("<IIQ")
#: Smallest body: number of the sender, number of the message, and in the last message how many there were.
BODY_BYTES_MIN = _HEADER.size
#: What one block may put into the memory of a peer that stores without bound.
_BLOCK_BYTES_MAX = 256 << 20


class Bodies:
    """The bodies of one sender: made before the clock runs, told apart by a number that repeats after `cycle` messages."""

    def __init__(self, sender: int, body_bytes: int, batch: int = 1) -> None:
        self.cycle = batch * (200 // batch) if body_bytes <= 4096 else 16
        self._sender = sender
        self._filler = (bytes(range(256)) * (body_bytes // 256 + 1))[: body_bytes - BODY_BYTES_MIN]
        self._made = [self._make(number, 0) for number in range(self.cycle)]
        self._batch = batch

    def _make(self, number: int, total: int) -> bytes:
        return _HEADER.pack(self._sender, number, total) + self._filler

    def batches(self) -> Iterator[list[bytes]]:
        """For ever: the next `batch` bodies."""
        return itertools.cycle([self._made[at : at + self._batch] for at in range(0, self.cycle, self._batch)])

    def last(self, sent: int) -> bytes:
        """The body that ends the flow after `sent` others."""
        return self._make(sent % self.cycle, sent + 1)


class Audit:
    """What a recipient holds every message against: whole, in order, none missing. Raises MeasureError at the first that is not."""

    def __init__(self, senders: int, body_bytes: int, batch: int = 1) -> None:
        like = Bodies(0, body_bytes, batch)
        self._cycle, self._bytes, self._filler = like.cycle, body_bytes, like._filler
        self._seen = [0] * senders
        self._open = senders

    @property
    def is_complete(self) -> bool:
        return self._open == 0

    @property
    def count(self) -> int:
        return sum(self._seen)

    def check(self, body: bytes) -> None:
        sender, number, total = _HEADER.unpack_from(body)
        seen = self._seen[sender]
        if number != seen % self._cycle or len(body) != self._bytes or not body.endswith(self._filler):
            raise MeasureError(f"message {seen} of sender {sender} came as number {number} with {len(body)} bytes")
        self._seen[sender] = seen + 1
        if total:
            if total != seen + 1:
                raise MeasureError(f"{total - seen - 1} of {total} messages of sender {sender} did not come")
            self._open -= 1


@dataclass(frozen=True)
class Shape:
    """Who sends to whom, and what."""

    senders: int
    recipients: int
    batch: int = 1
    body_bytes: int = 256


class Part(NamedTuple):
    """One process's share of a block."""

    began: float
    ended: float
    cpu_s: float
    messages: int


async def _send_for(sending: Sending, number: int, to: list[str], shape: Shape, gate: Gate, send_s: float) -> Part:
    bodies = Bodies(number, shape.body_bytes, shape.batch)
    batches, sent = bodies.batches(), 0
    most = max(1, _BLOCK_BYTES_MAX // shape.body_bytes // shape.senders // shape.recipients)
    gate.wait()
    began, cpu = time.perf_counter(), time.process_time()
    until = began + send_s
    while sent < most and time.perf_counter() < until:
        batch = next(batches)
        for recipient in to:
            await sending.send(recipient, batch)
        sent += len(batch)
    for recipient in to:
        await sending.send(recipient, [bodies.last(sent)])
    ended, cpu_s = time.perf_counter(), time.process_time() - cpu
    await sending.settle()
    return Part(began, ended, cpu_s, 0)


async def _receive_all(receiving: Receiving, peer: Peer, shape: Shape, gate: Gate) -> Part:
    audit = Audit(shape.senders, shape.body_bytes, shape.batch)
    gate.wait()
    began, cpu = time.perf_counter(), time.process_time()
    while not audit.is_complete:
        for body in await receiving.receive(shape.batch):
            audit.check(body)
        await receiving.ack()
    part = Part(began, time.perf_counter(), time.process_time() - cpu, audit.count)
    await receiving.check_empty()
    return part


def flow(peer: Peer, shape: Shape, send_s: float) -> Figures:
    """Messages per second from the start to the last ack, and processor time per message of everybody involved, a server included.

    Senders send for `send_s` seconds, so that a block takes about as long whoever is measured.
    """
    senders = [f"s-{number}" for number in range(shape.senders)]
    recipients = [f"r-{number}" for number in range(shape.recipients)]
    with peer.place(recipients, senders) as place, Crew() as crew:
        for name in recipients:
            crew.add(_receiver(peer, place, name, shape, crew.gate))
        for number, name in enumerate(senders):
            crew.add(_sender(peer, place, (number, name), recipients, shape, (crew.gate, send_s)))
        server_s = peer.server_cpu_s()
        crew.go()
        parts: list[Part] = crew.results()
        server_s = peer.server_cpu_s() - server_s
    received = parts[: shape.recipients]
    count = sum(part.messages for part in received)
    took_s = max(part.ended for part in received) - min(part.began for part in parts)
    return {"per_s": count / took_s, "cpu_us": (sum(part.cpu_s for part in parts) + server_s) / count * 1e6}


def _receiver(peer: Peer, place: Any, me: str, shape: Shape, gate: Gate) -> Callable[[], Any]:
    async def main() -> Part:
        async with peer.receiver(place, me) as receiving:
            return await _receive_all(receiving, peer, shape, gate)

    return lambda: run_loop(main)


def _sender(
    peer: Peer, place: Any, me: tuple[int, str], to: list[str], shape: Shape, timing: tuple[Gate, float]
) -> Callable[[], Any]:
    async def main() -> Part:
        async with peer.sender(place, me[1]) as sending:
            return await _send_for(sending, me[0], to, shape, *timing)

    return lambda: run_loop(main)


def one_at_a_time(peer: Peer, body_bytes: int, for_s: float) -> Figures:
    """Send, receive and ack one message before the next is sent, in one process: wall and processor time of one message."""
    shape = Shape(1, 1, 1, body_bytes)

    async def main(place: Any) -> tuple[float, float, int]:
        async with peer.receiver(place, "bob") as receiving, peer.sender(place, "alice") as sending:
            await _pass_for(sending, receiving, shape, for_s / 10)
            server_s = peer.server_cpu_s()
            took_s, cpu_s, count = await _pass_for(sending, receiving, shape, for_s)
            await receiving.check_empty()
            await sending.settle()
            return took_s, cpu_s + peer.server_cpu_s() - server_s, count

    with peer.place(["bob"], ["alice"]) as place, Crew() as crew:
        took_s, cpu_s, count = crew.add(lambda: run_loop(lambda: main(place))).result()
    return {"us": took_s / count * 1e6, "cpu_us": cpu_s / count * 1e6}


async def _pass_for(sending: Sending, receiving: Receiving, shape: Shape, for_s: float) -> tuple[float, float, int]:
    bodies, audit = Bodies(0, shape.body_bytes), Audit(1, shape.body_bytes)
    began, cpu = time.perf_counter(), time.process_time()
    until = began + for_s
    for batch in bodies.batches():
        await sending.send("bob", batch)
        (body,) = await receiving.receive(1)
        audit.check(body)
        await receiving.ack()
        if time.perf_counter() >= until:
            return time.perf_counter() - began, time.process_time() - cpu, audit.count
    raise AssertionError("batches() does not end")
