"""What the tests of lanes that were left half done share: buses without a loop, and hands that damage files and swallow bells."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.transports.lanes import segment
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, load_master

BODY = b"x" * 1000  # seven of them fill the first segment
DEADLINE_S = 20.0


class Joined:
    """Buses of a test without a loop, closed at its end. What must happen later, a test does by hand."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.buses: list[Bus] = []

    def __call__(self, agent: str, *, send: bool = True) -> Bus:
        keyring = Keyring.from_master(load_master(self.store), agent)
        bus = Bus(LanesTransport(self.store, agent, keyring, send=send))
        self.buses.append(bus)
        return bus


def lanes(bus: Bus) -> LanesTransport:
    assert isinstance(bus.transport, LanesTransport)
    return bus.transport


def die(bus: Bus) -> None:
    """What a process leaves behind: its descriptors closed, everything in hand neither finalised nor given back."""
    bus.transport.close()


def take_all(bus: Bus) -> list[Delivery]:
    """What can be received now, in hand."""
    return list(iter(bus.receive_nowait, None))


def finish_all(bus: Bus) -> list[Any]:
    """Receive and ack one at a time until nothing is left; the bodies."""
    bodies = []
    while (delivery := bus.receive_nowait()) is not None:
        bodies.append(delivery.body)
        delivery.ack()
    return bodies


def segments(lane: Path) -> list[int]:
    return segment.list_segments(str(lane))


def frame_offsets(path: Path) -> tuple[dict[int, int], int]:
    """(number -> offset of each frame, offset of the seal or of the first empty word) of a segment."""
    data, first = path.read_bytes(), int(path.name[:20])
    at, offsets = segment.HEADER_BYTES, dict[int, int]()
    while (stored := int.from_bytes(data[at : at + 8], "little")) and (stored >> 32) & 0xFF == segment.DATA:
        offsets[first + len(offsets)] = at
        at += 8 + segment.padded(stored & 0xFFFFFFFF)
    return offsets, at


def overwrite(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)


def damage(lane: Path, *seqs: int) -> None:
    """Wipe whole frames of the first segment, commit words and all."""
    path = lane / segment.segment_name(segments(lane)[0])
    offsets, end = frame_offsets(path)
    for seq in seqs:
        overwrite(path, offsets[seq], offsets.get(seq + 1, end) - offsets[seq])


def swallow_bell(store: Path, agent: str) -> int:
    """Take every record out of an agent's bell before it hears them; how many bytes there were."""
    fd = os.open(store / "agents" / agent / "bell", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return len(os.read(fd, 65536))
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


def heard(bus: Bus) -> bool:
    """Whether the bell holds a record."""
    return bool(select.select([bus.transport.fileno()], [], [], 0)[0])
