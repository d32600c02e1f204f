"""Both transports behind one fixture: every test of this directory runs over each of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.memory import MemoryHub
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class MemoryFleet:
    """A fleet whose bus is a hub in this process."""

    name = "memory"

    def __init__(self) -> None:
        self._hub = MemoryHub()
        self.open_buses: list[Bus] = []

    def add(self, agent: str) -> None:
        self._hub.add_agent(agent)

    async def join(self, agent: str) -> Bus:
        self.add(agent)
        bus = Bus(self._hub.transport(agent))
        self.open_buses.append(bus)
        return bus

    def dead_reasons(self, _agent: str) -> list[str]:
        return [reason for _message, reason in self._hub.dead]


class LanesFleet:
    """A fleet in a directory."""

    name = "lanes"

    def __init__(self, store: Path) -> None:
        self.store = create_store(store)
        self.open_buses: list[Bus] = []

    def add(self, agent: str) -> None:
        add_agent(self.store, agent)

    async def join(self, agent: str, **options: Any) -> Bus:
        self.add(agent)
        bus = await Bus.open(self.store, agent, Keyring.from_master(load_master(self.store), agent), **options)
        self.open_buses.append(bus)
        return bus

    def dead_reasons(self, agent: str) -> list[str]:
        from muster.bus.transports.lanes.deadletters import list_letters

        return [str(letter["reason"]) for letter in list_letters(f"{self.store}/agents/{agent}/inbox")]


@pytest.fixture(params=["memory", "lanes"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    made = MemoryFleet() if request.param == "memory" else LanesFleet(tmp_path / "fleet")
    yield made
    for bus in made.open_buses:
        await bus.close()
