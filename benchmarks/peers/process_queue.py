"""multiprocessing.Queue: one for each inbox, inherited by fork. Nothing is stored: what is in it dies with its processes.

There is no ack. A batch is put as one list, which is how a program that has many items to pass should use it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

from benchmarks.harness import MeasureError
from benchmarks.peers.port import WAIT_S

_ITEMS_MAX = 1000


class _Sending:
    def __init__(self, inboxes: dict[str, Any]) -> None:
        self._inboxes = inboxes
        self._used: set[str] = set()

    async def send(self, to: str, bodies: list[bytes]) -> None:
        self._used.add(to)
        self._inboxes[to].put(bodies)

    async def settle(self) -> None:
        for name in self._used:
            self._inboxes[name].close()
            self._inboxes[name].join_thread()


class _Receiving:
    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    async def receive(self, most: int) -> list[bytes]:
        try:
            bodies: list[bytes] = self._inbox.get(timeout=WAIT_S)
        except queue.Empty:
            raise MeasureError("nothing came through the queue") from None
        return bodies

    async def ack(self) -> None:
        pass

    async def check_empty(self) -> None:
        if not self._inbox.empty():
            raise MeasureError("something is left in the queue")


class ProcessQueue:
    """Bounded like a lane, in items: else a sender that is ahead fills its own memory, and a block lasts until that is drained."""

    name = "multiprocessing.Queue"

    @contextlib.contextmanager
    def place(self, recipients: list[str], senders: list[str]) -> Iterator[dict[str, Any]]:
        context = multiprocessing.get_context("fork")
        inboxes = {name: context.Queue(_ITEMS_MAX) for name in recipients}
        try:
            yield inboxes
        finally:
            for inbox in inboxes.values():
                inbox.close()

    @contextlib.asynccontextmanager
    async def sender(self, place: dict[str, Any], me: str) -> AsyncIterator[_Sending]:
        yield _Sending(place)

    @contextlib.asynccontextmanager
    async def receiver(self, place: dict[str, Any], me: str) -> AsyncIterator[_Receiving]:
        yield _Receiving(place[me])

    def server_cpu_s(self) -> float:
        return 0.0
