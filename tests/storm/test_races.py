"""First use of a lane by many processes at once, and two consumers of one inbox."""

from __future__ import annotations

import mmap
import os
from functools import partial
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import IdentityBusyError
from muster.security.keys import Keyring, load_master
from muster.testing import eventually

from .racing import race

SENDERS, ROUNDS, WAIT_S = 50, 20, 30.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = create_store(tmp_path / "fleet")
    for agent in ("operator", "bob"):
        add_agent(made, agent)
    return made


def open_bus(store: Path, agent: str, *, consume: bool = True, send: bool = True, wait_s: float = 0.0) -> Bus:
    keyring = Keyring.from_master(load_master(store), agent)
    return Bus(LanesTransport(store, agent, keyring, consume=consume, send=send, wait_s=wait_s))


def send_once(store: Path, body: int) -> tuple[int, str]:
    bus = open_bus(store, "operator", consume=False, wait_s=WAIT_S)
    receipt = bus.post("bob", body)
    bus.transport.close()
    return receipt.seq, receipt.id


def test_fifty_processes_that_first_use_a_lane_at_once_get_fifty_numbers(store: Path) -> None:
    found = race([partial(send_once, store, body) for body in range(SENDERS)])
    assert sorted(seq for seq, _ in found) == list(range(1, SENDERS + 1)), "a number twice, or one missing"
    assert len({message_id for _, message_id in found}) == SENDERS
    bob = open_bus(store, "bob")
    came = []
    while (delivery := bob.receive_nowait()) is not None:
        came.append((delivery.seq, delivery.body))
        delivery.ack()
    bob.transport.close()
    assert came == sorted((seq, body) for body, (seq, _) in enumerate(found))


def consume_once(store: Path, tried: mmap.mmap, at: int) -> str:
    """Who wins stays until the other has tried."""
    try:
        bus = open_bus(store, "bob", send=False)
    except IdentityBusyError as error:
        tried[at] = 1
        assert error.retry_after_s is not None
        return "busy"
    tried[at] = 1
    eventually(lambda: tried[0] and tried[1], 20.0, "the other one tried")
    bus.transport.close()
    return "won"


def test_of_two_consumers_that_race_for_an_inbox_one_wins_and_the_other_is_told(store: Path) -> None:
    for _ in range(ROUNDS):
        tried = mmap.mmap(-1, mmap.PAGESIZE)
        assert sorted(race([partial(consume_once, store, tried, at) for at in (0, 1)])) == ["busy", "won"]
    left = [name for name in os.listdir(store / "agents/bob/inbox") if name.startswith("tmp-")]
    assert left == []
