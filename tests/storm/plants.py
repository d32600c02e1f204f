"""Bugs that are planted into a storm on purpose, to see that it finds them. Each breaks the engine in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.transports.lanes import bell, cursor, segment


def tail_not_walked() -> contextlib.AbstractContextManager[object]:
    """The sender believes its cached tail: after a restart it writes over frames that were committed."""
    return mock.patch.object(segment.SegmentWriter, "settle", lambda self: self.next_seq)


def ack_before_take() -> contextlib.AbstractContextManager[object]:
    """A message is finalised when it is handed out, not when it was handled."""
    real = Bus.receive_nowait

    def receive_nowait(self: Bus) -> Delivery | None:
        delivery = real(self)
        if delivery is not None:
            self.transport.ack(delivery._inbound)
        return delivery

    return mock.patch.object(Bus, "receive_nowait", receive_nowait)


def cursor_reset() -> contextlib.AbstractContextManager[object]:
    """A recipient that comes back begins with a new cursor."""
    import os

    real = cursor.CursorShelf.open

    def open_(self: cursor.CursorShelf, lane: str, lane_id: bytes) -> cursor.Cursor:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._inbox}/{lane}.cursor")
        return real(self, lane, lane_id)

    return mock.patch.object(cursor.CursorShelf, "open", open_)


def bell_never_rung() -> contextlib.AbstractContextManager[object]:
    """Nobody is woken: what comes is only found by whoever is looking anyway."""
    return mock.patch.object(bell.PeerBells, "ring", lambda _self, _path, _record: True)


def attempt_not_counted() -> contextlib.AbstractContextManager[object]:
    """The attempts counter does not move before a delivery."""
    return mock.patch.object(cursor.Cursor, "count_attempt", lambda _self, _seq: 1)


PLANTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    plant.__name__: plant
    for plant in (tail_not_walked, ack_before_take, cursor_reset, bell_never_rung, attempt_not_counted)
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The engine with the bug `name`, or as it is."""
    with PLANTS[name]() if name else contextlib.nullcontext():
        yield
