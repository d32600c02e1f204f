"""The guard against echo storms: who is stopped, when, and who is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.bus.bus import Bus
from muster.bus.transports.memory import MemoryHub
from muster.core import limits
from muster.core.guard import EchoGuard
from muster.errors import EchoStormError


def admitted(guard: EchoGuard, recipient: str, now_s: float) -> bool:
    try:
        guard.check_rate(recipient, now_s)
    except EchoStormError as error:
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        return False
    guard.count(recipient, now_s)
    return True


def test_a_burst_passes_and_the_next_one_is_told_when_it_fits() -> None:
    guard = EchoGuard(per_minute_max=60, burst_max=5)
    assert [admitted(guard, "bob", 100.0) for _ in range(6)] == [True] * 5 + [False]
    with pytest.raises(EchoStormError) as caught:
        guard.check_rate("bob", 100.25)
    assert caught.value.retry_after_s == pytest.approx(0.75)
    assert admitted(guard, "bob", 101.0)
    assert not admitted(guard, "bob", 101.0)


def test_another_recipient_has_its_own_rate() -> None:
    guard = EchoGuard(per_minute_max=60, burst_max=1)
    assert admitted(guard, "bob", 0.0)
    assert not admitted(guard, "bob", 0.0)
    assert admitted(guard, "carol", 0.0)


@given(steps=st.lists(st.floats(0, 5), max_size=120), rate=st.integers(1, 600), burst=st.integers(1, 20))
def test_no_window_of_time_sees_more_than_its_rate_and_one_burst(steps: list[float], rate: int, burst: int) -> None:
    guard = EchoGuard(per_minute_max=rate, burst_max=burst)
    now, passed = 0.0, []
    for step in steps:
        now += step
        if admitted(guard, "bob", now):
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window_s = passed[last] - passed[first]
            assert last - first + 1 <= burst + window_s * rate / 60 + 1e-6


def test_what_is_remembered_of_quiet_recipients_is_bounded() -> None:
    guard = EchoGuard(per_minute_max=600, burst_max=2)
    for number in range(5000):
        guard.count(f"a{number}", float(number))
    assert len(guard._due) <= 1024


@pytest.mark.parametrize("agents", [("alice", "bob"), ("alice", "bob", "carol")])
async def test_a_ring_of_agents_that_pass_on_whatever_they_hear_ends_at_the_hop_limit(agents: tuple[str, ...]) -> None:
    hub = MemoryHub()
    for agent in agents:
        hub.add_agent(agent)
    ring = [Bus(hub.transport(agent)) for agent in agents]
    sent, refused = 0, 0

    async def echo(bus: Bus, to: str) -> None:
        nonlocal sent, refused
        async for delivery in bus.inbox():
            try:
                await bus.send(to, "echo", cause=delivery)
                sent += 1
            except EchoStormError as error:
                refused += 1
                assert error.retry_after_s is None
                stopped.set()
            delivery.ack()

    stopped = asyncio.Event()
    tasks = [asyncio.create_task(echo(bus, agents[(at + 1) % len(agents)])) for at, bus in enumerate(ring)]
    await ring[0].send(agents[1], "hello")
    await asyncio.wait_for(stopped.wait(), 10)
    for bus in ring:
        await bus.close()
    await asyncio.gather(*tasks)
    assert (sent, refused) == (limits.HOPS_MAX, 1)
    assert sum(bus.stats.hops_refused for bus in ring) == 1


async def caused_message(hub: MemoryHub) -> tuple[Bus, Bus, Any]:
    for agent in ("alice", "bob"):
        hub.add_agent(agent)
    alice, bob = Bus(hub.transport("alice")), Bus(hub.transport("bob"))
    await alice.send("bob", "order", message_id="order-1", traceparent="00-1-2-01")
    delivery = await bob.receive(timeout_s=5)
    return alice, bob, delivery


async def test_a_fan_of_caused_messages_on_one_pair_meets_the_rate_and_free_ones_go_on() -> None:
    alice, bob, delivery = await caused_message(MemoryHub())
    for _ in range(limits.PAIR_BURST_MAX):
        await bob.send("alice", "part", cause=delivery)
    with pytest.raises(EchoStormError) as caught:
        for _ in range(limits.PAIR_RATE_MAX):  # a slow machine earns some more while this runs
            await bob.send("alice", "part", cause=delivery)
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 60 / limits.PAIR_RATE_MAX
    assert bob.stats.hops_refused == 1
    before = alice.depth("alice")
    await bob.send("alice", "of my own accord")
    await bob.send("bob", "another pair", cause=delivery)
    assert alice.depth("alice") == before + 1, "the refused one was written"
    await alice.close()
    await bob.close()


async def test_replies_to_asks_are_not_counted() -> None:
    hub = MemoryHub()
    for agent in ("alice", "bob"):
        hub.add_agent(agent)
    async with Bus(hub.transport("alice")) as alice, Bus(hub.transport("bob")) as bob:

        async def serve() -> None:
            async for delivery in bob.inbox():
                delivery.reply(delivery.body)
                delivery.ack()

        serving = asyncio.create_task(serve())
        for number in range(limits.PAIR_BURST_MAX * 3):
            assert (await alice.ask("bob", number, timeout_s=5)).body == number
        assert bob.stats.hops_refused == 0
        await bob.close()
        await serving


async def test_a_cause_tells_whose_consequence_a_message_is() -> None:
    alice, bob, delivery = await caused_message(MemoryHub())
    await bob.send("alice", "done", cause=delivery)
    await bob.send("alice", "now", cause=delivery.message, priority="control")
    await bob.send("alice", "mine", cause=delivery, correlation_id="case-7")
    messages = []
    for _ in range(3):
        got = await alice.receive(timeout_s=5)
        assert got is not None
        messages.append(got.message)
    told = {m.body: (m.causation_id, m.correlation_id, m.hops, m.traceparent) for m in messages}
    assert told == {
        "done": ("order-1", "order-1", 1, "00-1-2-01"),
        "now": ("order-1", None, 1, "00-1-2-01"),
        "mine": ("order-1", "case-7", 1, "00-1-2-01"),
    }
    await alice.close()
    await bob.close()


async def test_the_last_message_of_the_longest_chain_can_still_be_answered() -> None:
    hub = MemoryHub()
    for agent in ("alice", "bob"):
        hub.add_agent(agent)
    async with Bus(hub.transport("alice")) as alice, Bus(hub.transport("bob")) as bob:
        asking = asyncio.create_task(alice.ask("bob", "deep", hops=limits.HOPS_MAX, timeout_s=5))
        request = await bob.receive(timeout_s=5)
        assert request is not None
        request.reply("still heard")
        assert (await asking).body == "still heard"
