"""Group commit for durable stores: everybody who sends in one turn of the loop shares one wait for the disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from muster.errors import BusClosedError, MusterError, StoreError

if TYPE_CHECKING:
    from muster.bus.transport import Transport


class GroupCommit:
    """One bus has one. While the disk works in a thread, the loop goes on and gathers the next group."""

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._next: asyncio.Future[None] | None = None
        self._underway: asyncio.Future[list[Any]] | None = None
        self.closed = False

    async def wait(self) -> None:
        """Until what was put before this call is on the disk.

        Raises:
            StoreError: The disk refused; what was put was not accepted, though it may still be delivered.
            BusClosedError: The bus was closed first; the same holds.
        """
        if self._next is None:
            self._next = self._loop.create_future()
            if self._underway is None:
                self._loop.call_soon(self._begin)
        await asyncio.shield(self._next)

    def _begin(self) -> None:
        group, self._next = self._next, None
        if group is None:
            return
        if self.closed:
            group.set_exception(BusClosedError("this bus was closed before the disk had the message"))
            return
        try:
            begun = self._transport.begin_flush()
        except OSError as error:
            group.set_exception(StoreError(f"the disk refused to keep what was sent: {error.strerror}"))
            return
        self._underway = self._loop.run_in_executor(None, _wait_for_disk, begun)
        self._underway.add_done_callback(lambda waited: self._end(group, waited))

    def _end(self, group: asyncio.Future[None], waited: asyncio.Future[list[Any]]) -> None:
        self._underway = None
        if self.closed:
            group.set_exception(BusClosedError("this bus was closed before the disk had the message"))
        else:
            try:
                self._transport.end_flush(waited.result())
            except MusterError as error:
                group.set_exception(error)
            else:
                group.set_result(None)
        self._begin()


def _wait_for_disk(begun: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(lane, pending and pending.wait()) for lane, pending in begun]
