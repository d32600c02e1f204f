"""All transports behind one fixture: every test of this directory runs over each of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.tombstones import Tombstone, list_tombstones
from muster.bus.transports.memory import MemoryHub
from muster.core.settings import BusSettings
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class MemoryFleet:
    """A fleet whose bus is a hub in this process."""

    name = "memory"

    def __init__(self, settings: BusSettings) -> None:
        self._hub = MemoryHub(settings=settings)
        self.open_buses: list[Bus] = []

    def add(self, agent: str) -> None:
        self._hub.add_agent(agent)

    async def join(self, agent: str, *, overflow: str | None = None) -> Bus:
        self.add(agent)
        bus = Bus(self._hub.transport(agent))
        if overflow is not None:
            bus.transport.set_overflow(overflow)
        self.open_buses.append(bus)
        return bus

    def dead_reasons(self, _agent: str) -> list[str]:
        return [reason for _message, reason in self._hub.dead]

    def tombstones(self, agent: str) -> list[Tombstone]:
        return self._hub.tombstones.get(agent, [])


class LanesFleet:
    """A fleet in a directory."""

    def __init__(self, store: Path, settings: BusSettings) -> None:
        self.name = "durable" if settings.durable else "lanes"
        self.store = create_store(store, settings)
        self.open_buses: list[Bus] = []

    def add(self, agent: str) -> None:
        add_agent(self.store, agent)

    async def join(self, agent: str, *, overflow: str | None = None, **options: Any) -> Bus:
        self.add(agent)
        bus = await Bus.open(self.store, agent, Keyring.from_master(load_master(self.store), agent), **options)
        if overflow is not None:
            bus.transport.set_overflow(overflow)
        self.open_buses.append(bus)
        return bus

    def dead_reasons(self, agent: str) -> list[str]:
        from muster.bus.transports.lanes.deadletters import list_letters

        return [str(letter["reason"]) for letter in list_letters(f"{self.store}/agents/{agent}/inbox")]

    def tombstones(self, agent: str) -> list[Tombstone]:
        return list_tombstones(f"{self.store}/agents/{agent}/inbox")


@pytest.fixture(params=["memory", "lanes", "durable"])
async def make_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes a fleet with the given settings of its bus, on each transport in turn."""
    made: list[MemoryFleet | LanesFleet] = []

    def make(**values: int) -> MemoryFleet | LanesFleet:
        settings = BusSettings(durable=request.param == "durable", **values)
        fleet = MemoryFleet(settings) if request.param == "memory" else LanesFleet(tmp_path / "fleet", settings)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        for bus in fleet.open_buses:
            await bus.close()


@pytest.fixture
def fleet(make_fleet: Callable[..., Any]) -> Any:
    """A fleet with default settings."""
    return make_fleet()
