"""What a command line says on the bus for a moment: heard at once, and as patient as the recipient wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.core.settings import BusSettings
from muster.errors import InboxFullError
from muster.fleet import speak
from muster.security.keys import Keyring, load_master


async def join(store: Path, agent: str, overflow: str = "refuse", *, consume: bool = True) -> Bus:
    add_agent(store, agent)
    bus = await Bus.open(store, agent, Keyring.from_master(load_master(store), agent), consume=consume)
    if consume:
        bus.transport.set_overflow(overflow)
    return bus


def small_store(folder: Path, **bounds: int) -> Path:
    return create_store(
        folder / "fleet", BusSettings(agents_max=4, inbox_messages_max=16, lane_messages_max=4, **bounds)
    )


async def fill_up(send: Callable[[int], Awaitable[object]]) -> int:
    """Send until the recipient, who hears of every refusal, has nothing left to lend; how many were accepted."""
    sent = refused = 0
    while refused < 5:
        try:
            await send(sent)
        except InboxFullError:
            refused += 1
            await asyncio.sleep(0.01)  # the recipient's turn
        else:
            sent, refused = sent + 1, 0
    return sent


async def test_in_a_durable_store_the_recipient_hears_of_it_at_once(tmp_path: Path) -> None:
    store = small_store(tmp_path, durable=True)
    async with await join(store, "bob") as bob:
        await asyncio.to_thread(speak.send, speak.Speaker("operator", store=store), "bob", "hello")
        delivery = await bob.receive(timeout_s=10)  # long before a sweep
        assert delivery is not None
        assert delivery.body == "hello"
        delivery.ack()


async def test_a_full_inbox_that_wants_it_is_waited_for_and_any_other_refuses(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    who = speak.Speaker("operator", store=store)
    async with await join(store, "bob", "wait") as bob:
        sent = await fill_up(lambda number: asyncio.to_thread(speak.send, who, "bob", number, wait_s=0.0))
        waiting = asyncio.create_task(asyncio.to_thread(speak.send, who, "bob", "patient"))
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done(), "it was refused"
        heard = []
        while "patient" not in heard:
            delivery = await bob.receive(timeout_s=10)
            assert delivery is not None
            heard.append(delivery.body)
            delivery.ack()
        await waiting
        assert heard == [*range(sent), "patient"]


async def test_an_inbox_that_evicts_makes_room_for_a_command_line_too(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    async with await join(store, "bob", "evict_oldest") as bob:
        for number in range(30):
            await asyncio.to_thread(speak.send, speak.Speaker("operator", store=store), "bob", number)
        bob.receive_nowait()
        assert bob.stats.evicted > 0


async def test_who_has_no_bell_looks_ever_more_rarely_while_it_waits(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    async with await join(store, "bob"), await join(store, "alice", consume=False) as alice:
        await fill_up(lambda number: alice.send("bob", number))
        tries = alice.stats.refused_full
        with pytest.raises(InboxFullError):
            await alice.send("bob", "x", wait_s=1.5)
        assert alice.stats.refused_full - tries <= 15, "at the first pace it would be 150"
