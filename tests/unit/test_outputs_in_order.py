"""Kept order over a restart of the coordinator: an output waits for every earlier one that may still come again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.coordinator.outputs import OutputFlow
from muster.core.protocol import TaskOutput
from muster.security.keys import Keyring, load_master


def output(number: int) -> TaskOutput:
    return TaskOutput(number=number, attempt=1, agent="w-1", ok=True, exit_status=0, stdout=b"out")


@pytest.fixture
async def buses(tmp_path: Path) -> AsyncIterator[tuple[Bus, Bus]]:
    """The coordinator's and the operator's."""
    store = create_store(tmp_path / "store")
    for agent in ("coordinator", "operator"):
        add_agent(store, agent)
    (store / "coordinator").mkdir(mode=0o700)  # as the log makes it, which is opened before
    master = load_master(store)
    async with (
        await Bus.open(store, "coordinator", Keyring.from_master(master, "coordinator")) as coordinator,
        await Bus.open(store, "operator", Keyring.from_master(master, "operator")) as operator,
    ):
        yield coordinator, operator


def flow_of(bus: Bus) -> OutputFlow:
    assert bus.store is not None
    return OutputFlow(bus, bus.store, keep_order=True)


def shown(operator: Bus) -> list[int]:
    """Numbers of the outputs that have arrived since the last look."""
    numbers = []
    while (delivery := operator.receive_nowait()) is not None:
        numbers.append(delivery.decode(TaskOutput).number)
        delivery.ack()
    return numbers


async def test_outputs_wait_for_those_that_come_again_after_a_restart(buses: tuple[Bus, Bus]) -> None:
    flow = flow_of(buses[0])
    flow.expect(3)
    flow.expect_again([1, 2])
    flow.end(3, output(3), None)
    assert shown(buses[1]) == []
    flow.end(1, output(1), None)
    assert shown(buses[1]) == [1]
    flow.end(2, output(2), None)
    assert shown(buses[1]) == [2, 3]


async def test_outputs_wait_no_longer_when_nothing_can_come_again(buses: tuple[Bus, Bus]) -> None:
    flow = flow_of(buses[0])
    flow.expect(3)
    flow.expect_again([1, 2])
    flow.end(3, output(3), None)
    flow.end(2, output(2), None)
    assert shown(buses[1]) == []
    flow.all_came_again()
    assert shown(buses[1]) == [2, 3]


async def test_outputs_kept_in_files_by_the_dead_keep_their_turn(buses: tuple[Bus, Bus]) -> None:
    before = flow_of(buses[0])
    before.expect(1)
    before.expect(2)
    before.end(2, output(2), None)
    after = flow_of(buses[0])
    after.expect_again([1, 2])
    after.end(1, output(1), None)
    assert shown(buses[1]) == [1]
    after.all_came_again()
    assert shown(buses[1]) == [2]
