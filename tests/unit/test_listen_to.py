"""An identity may take from some senders only; what the others store waits, and nothing about it is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.memory import MemoryHub
from muster.security.keys import Keyring, load_master

AGENTS = ("coordinator", "alice", "bob")


@pytest.fixture(params=["lanes", "memory"])
async def buses(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[dict[str, Bus]]:
    opened: dict[str, Bus] = {}
    if request.param == "memory":
        hub = MemoryHub()
        for agent in AGENTS:
            hub.add_agent(agent)
        opened = {agent: Bus(hub.transport(agent)) for agent in AGENTS}
    else:
        store = create_store(tmp_path / "store")
        for agent in AGENTS:
            add_agent(store, agent)
        for agent in AGENTS:
            opened[agent] = await Bus.open(store, agent, Keyring.from_master(load_master(store), agent))
    yield opened
    for bus in opened.values():
        await bus.close()


async def test_normal_messages_of_others_wait_untaken(buses: dict[str, Bus]) -> None:
    alice = buses["alice"]
    alice.listen_to(("coordinator",))
    receipt = buses["bob"].post("alice", "later")
    buses["coordinator"].post("alice", "now")
    first = await alice.receive(timeout_s=5)
    assert first is not None
    assert first.body == "now"
    first.ack()
    assert await alice.receive(timeout_s=0.05) is None
    assert receipt.state == "stored"
    assert alice.depth() == 1 or alice.store is None


async def test_control_messages_of_others_come(buses: dict[str, Bus]) -> None:
    buses["alice"].listen_to(("coordinator",))
    buses["bob"].post("alice", "urgent", priority="control")
    found = await buses["alice"].receive(timeout_s=5)
    assert found is not None
    assert found.body == "urgent"
    found.ack()


async def test_what_waited_comes_first_when_everybody_is_heard_again(buses: dict[str, Bus]) -> None:
    alice = buses["alice"]
    alice.listen_to(())
    for number in range(3):
        buses["bob"].post("alice", number)
    assert await alice.receive(timeout_s=0.05) is None
    alice.listen_to(None)
    for number in range(3):
        found = await alice.receive(timeout_s=5)
        assert found is not None
        assert (found.body, found.attempt) == (number, 1)
        found.ack()


async def test_ones_own_depth_is_what_everybody_else_sees(buses: dict[str, Bus]) -> None:
    alice, bob = buses["alice"], buses["bob"]
    alice.listen_to(())
    for number in range(4):
        bob.post("alice", number)
    bob.post("alice", "urgent", priority="control")
    urgent = await alice.receive(timeout_s=5)
    assert urgent is not None
    assert alice.depth() == bob.depth("alice") == 5
    urgent.ack()
    assert alice.depth() == bob.depth("alice") == 4
    alice.listen_to(None)
    taken = [await alice.receive(timeout_s=5) for _ in range(4)]
    assert alice.depth() == bob.depth("alice") == 4
    for delivery in taken:
        assert delivery is not None
        delivery.ack()
    assert alice.depth() == bob.depth("alice") == 0
