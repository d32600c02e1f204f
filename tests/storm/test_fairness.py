"""A flooder fills its own lane and nobody else's: others keep their turns, and the recipient its memory. Turns are counted, not seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import InboxFullError
from muster.security.keys import Keyring, load_master

from .racing import race

#: What a recipient may grow by while ten lanes are full: buffers of 64 KiB for each lane, and what Python keeps.
GROWTH_BYTES_MAX = 16 << 20


class Crowd:
    """Buses of one store, closed at the end."""

    def __init__(self, store: Path) -> None:
        self.store = create_store(store)
        self.buses: list[Bus] = []

    def join(self, agent: str) -> Bus:
        add_agent(self.store, agent)
        keyring = Keyring.from_master(load_master(self.store), agent)
        self.buses.append(Bus(LanesTransport(self.store, agent, keyring)))
        return self.buses[-1]


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    made = Crowd(tmp_path / "fleet")
    yield made
    for bus in made.buses:
        bus.transport.close()


def flood(bus: Bus, to: str, size: int = 64) -> int:
    """Send until the inbox refuses."""
    count = 0
    while True:
        try:
            bus.post(to, bytes(size))
        except InboxFullError:
            return count
        count += 1


@pytest.mark.parametrize("flooders", [1, 10])
def test_an_ordinary_pair_keeps_more_than_half_of_its_fair_share(crowd: Crowd, flooders: int) -> None:
    """The flooders refill their lanes at every turn; the ordinary sender sends one message and waits for it to be handled."""
    bob = crowd.join("bob")
    loud = [crowd.join(f"loud-{n}") for n in range(flooders)]
    calm = crowd.join("calm")
    for bus in loud:
        assert flood(bus, "bob") >= 10
    receipt = calm.post("bob", b"calm")
    deliveries, handled = 100 * (flooders + 1), 0
    for turn in range(deliveries):
        delivery = bob.receive_nowait()
        assert delivery is not None
        delivery.ack()
        if delivery.sender == "calm":
            handled += 1
            receipt = calm.post("bob", b"calm")
        else:
            flood(loud[turn % flooders], "bob")
    assert receipt.seq == handled + 1
    assert handled > deliveries / (flooders + 1) / 2, f"{handled} of {deliveries} deliveries with {flooders} flooders"


@pytest.mark.parametrize("flooders", [1, 10])
def test_a_pair_beside_the_flood_is_refused_nothing_and_waits_for_nothing(crowd: Crowd, flooders: int) -> None:
    """Another inbox than the flooded one: every message is there at the first look."""
    crowd.join("bob")
    for n in range(flooders):
        flood(crowd.join(f"loud-{n}"), "bob")
    calm, carol = crowd.join("calm"), crowd.join("carol")
    for n in range(500):
        calm.post("carol", n)
        delivery = carol.receive_nowait()
        assert delivery is not None
        assert delivery.body == n
        delivery.ack()


def test_a_flooded_recipient_stays_within_its_memory(crowd: Crowd) -> None:
    """Ten full lanes of 4 KiB messages, tens of megabytes, are read through by a process that grows by less than the bound."""
    crowd.join("bob")
    stored = sum(flood(crowd.join(f"loud-{n}"), "bob", 4096) for n in range(10))
    crowd.buses[0].transport.close()
    assert stored * 4096 > GROWTH_BYTES_MAX, "too little to tell"

    def read_through() -> list[int]:
        before = resident_bytes()
        bob = crowd.join("bob")
        seen, most = 0, before
        while (delivery := bob.receive_nowait()) is not None:
            delivery.ack()
            seen += 1
            if seen % 256 == 0:
                most = max(most, resident_bytes())
        return [seen, most - before]

    ((seen, grown),) = race([read_through])
    assert seen == stored
    assert grown <= GROWTH_BYTES_MAX


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
