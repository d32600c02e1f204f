"""muster itself: the calls that its users write. Signed, counted, stored in memory that outlives every process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.harness import MeasureError
from benchmarks.peers.port import WAIT_S
from benchmarks.setting import fleet_store
from muster import join
from muster.bus.bus import Bus
from muster.bus.delivery import Delivery, Receipt


class _Sending:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._last: dict[str, Receipt] = {}

    async def send(self, to: str, bodies: list[bytes]) -> None:
        for body in bodies:
            receipt = await self._bus.send(to, body, wait_s=WAIT_S)
        self._last[to] = receipt

    async def settle(self) -> None:
        # The messages would outlive this process; waiting keeps its last moments out of the next block.
        for receipt in self._last.values():
            await receipt.wait_acked(timeout_s=WAIT_S)


class _Posting(_Sending):
    async def send(self, to: str, bodies: list[bytes]) -> None:
        for body in bodies:
            receipt = self._bus.post(to, body)
        self._last[to] = receipt


class _Receiving:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._open: list[Delivery] = []

    async def receive(self, most: int) -> list[bytes]:
        delivery = await self._bus.receive(timeout_s=WAIT_S)
        if delivery is None:
            raise MeasureError(f"nothing came for {self._bus.id}")
        found = self._open = [delivery]
        while len(found) < most and (more := self._bus.receive_nowait()) is not None:
            found.append(more)
        return [one.body for one in found]

    async def ack(self) -> None:
        for delivery in self._open:
            delivery.ack()

    async def check_empty(self) -> None:
        if self._bus.depth():
            raise MeasureError(f"{self._bus.depth()} messages are left for {self._bus.id}")


class Lanes:
    """One identity for each process. `awaited=False`: `post`, which refuses instead of waiting. `durable`: it survives a power cut."""

    def __init__(self, name: str = "muster", *, awaited: bool = True, durable: bool = False) -> None:
        self.name = name
        self._durable = durable
        self._sending = _Sending if awaited else _Posting

    def place(self, recipients: list[str], senders: list[str]) -> AbstractContextManager[Path]:
        return fleet_store([*recipients, *senders], durable=self._durable)

    @contextlib.asynccontextmanager
    async def sender(self, place: Path, me: str) -> AsyncIterator[_Sending]:
        async with join(me, store=place) as bus:
            yield self._sending(bus)

    @contextlib.asynccontextmanager
    async def receiver(self, place: Path, me: str) -> AsyncIterator[_Receiving]:
        async with join(me, store=place) as bus:
            yield _Receiving(bus)

    def server_cpu_s(self) -> float:
        return 0.0
