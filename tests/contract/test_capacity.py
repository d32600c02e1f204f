"""What happens when an inbox, an outbox or a fleet is full: bounds hold exactly, refusals write nothing, and room is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from muster import errors
from muster.bus.bus import Bus
from muster.core import limits

Make = Callable[..., Any]


def fill(bus: Bus, to: str, most: int = 100_000) -> int:
    """Post until it is refused; how many were accepted."""
    for count in range(most):
        try:
            bus.post(to, count)
        except (errors.InboxFullError, errors.OutboxFullError):
            return count
    raise AssertionError(f"{most} messages and no refusal")


def fill_with(bus: Bus, to: str, body: bytes, most: int = 1000) -> None:
    """Post it until the sender's own bound is reached."""
    with contextlib.suppress(errors.OutboxFullError):
        for _ in range(most):
            bus.post(to, body)
        raise AssertionError(f"{most} messages and no refusal")


async def fill_up(bus: Bus, to: str) -> int:
    """Post until the recipient, who hears of every refusal, has nothing left to lend; how many were accepted."""
    total = 0
    while more := fill(bus, to):
        total += more
        assert total < 10_000, "it takes more and more"
        for _ in range(5):
            await asyncio.sleep(0)
    return total


def drain(bus: Bus, most: int = 100_000) -> list[Any]:
    """Take and ack what is there."""
    seen: list[Any] = []
    while len(seen) < most and (delivery := bus.receive_nowait()) is not None:
        seen.append(delivery)
        delivery.ack()
    return seen


# ------------------------------------------------------------------ credit


@pytest.mark.parametrize("senders", [1, 3, 20])
async def test_an_inbox_never_holds_more_than_its_bound_and_gives_room_for_what_is_acked(
    make_fleet: Make, senders: int
) -> None:
    cap = 4 * (senders + 1)
    fleet = make_fleet(agents_max=senders + 1, inbox_messages_max=cap, lane_messages_max=cap)
    bob = await fleet.join("bob")
    buses = [await fleet.join(f"s{number}") for number in range(senders)]
    accepted = dict.fromkeys((bus.id for bus in buses), 0)
    for turn in range(12):
        for bus in buses[turn % senders :] + buses[: turn % senders]:
            accepted[bus.id] += fill(bus, "bob")
            assert bus.depth("bob") <= cap, f"turn {turn}"
        depth = buses[0].depth("bob")
        assert depth > 0
        for delivery in drain(bob, depth // 2 + 1):
            assert delivery.seq <= accepted[delivery.sender]
        await asyncio.sleep(0)
    drain(bob)
    assert bob.stats.acked == sum(accepted.values()), "what was accepted was not all delivered"
    assert buses[0].depth("bob") == 0


async def test_an_absent_recipient_lends_up_to_the_bound_of_a_lane(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=10, inbox_messages_max=1000, lane_messages_max=150)  # a floor of 25
    fleet.add("bob")
    alice, carol = await fleet.join("alice"), await fleet.join("carol")
    assert fill(alice, "bob") == 150
    assert fill(carol, "bob") == 150
    bob = await fleet.join("bob")
    assert len(drain(bob)) == 300


async def test_what_was_lent_to_absent_senders_is_remembered_by_the_next_holder(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, inbox_messages_max=64, lane_messages_max=64)
    fleet.add("bob")
    alice, carol = await fleet.join("alice"), await fleet.join("carol")
    accepted = fill(alice, "bob")
    bob = await fleet.join("bob")
    accepted += fill(carol, "bob")
    assert carol.depth("bob") == accepted <= 64
    await bob.close()
    accepted += fill(carol, "bob") + fill(alice, "bob")
    assert accepted <= 64
    bob = await fleet.join("bob")
    assert len(drain(bob)) == accepted


async def test_a_lane_that_is_drained_gives_back_while_others_are_short(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, inbox_messages_max=160, lane_messages_max=160)  # a floor of 10, 80 to lend
    bob, alice, carol = await fleet.join("bob"), await fleet.join("alice"), await fleet.join("carol")
    first = fill(alice, "bob")
    while (more := fill(alice, "bob")) or bob.receive_nowait():  # until she has all that can be lent
        first += more
        await asyncio.sleep(0)
    await bob.close()
    bob = await fleet.join("bob")
    assert len(drain(bob)) == first
    got = 0
    for _ in range(20):
        got += fill(carol, "bob")
        bob.receive_nowait()
        await asyncio.sleep(0)
    assert got >= 50, f"alice is idle, and carol got only {got} of 80"


# ------------------------------------------------------------------ refuse


async def test_a_refused_message_is_not_written_and_uses_no_number(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=8, lane_messages_max=4)
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    accepted = fill(alice, "bob")
    for _ in range(3):
        with pytest.raises(errors.InboxFullError) as caught:
            await alice.send("bob", "refused")
        assert caught.value.retry_after_s == limits.INBOX_FULL_RETRY_S
    assert alice.depth("bob") == accepted
    drain(bob)
    assert (await alice.send("bob", "next")).seq == accepted + 1
    assert [delivery.body for delivery in drain(bob)] == ["next"]
    assert alice.stats.refused_full >= 4


async def test_a_control_message_passes_a_full_normal_lane(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=8, lane_messages_max=8)
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    fill(alice, "bob")
    await alice.send("bob", "stop", priority="control")
    assert drain(bob)[0].body in ("stop", 0)


# ------------------------------------------------------------------ wait


@pytest.fixture
def no_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is woken by a timer of the safety nets: only a bell can."""
    monkeypatch.setattr(limits, "RERING_S", 3600.0)


@pytest.mark.usefixtures("no_looking_again")
async def test_a_waiting_send_is_woken_by_the_ack_that_makes_room(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=400, lane_messages_max=100)
    alice, bob = await fleet.join("alice"), await fleet.join("bob", overflow="wait")
    accepted = await fill_up(alice, "bob")
    waiting = asyncio.create_task(alice.send("bob", "patient"))
    await asyncio.sleep(0.05)  # not for luck: it must still be waiting however long this is
    assert not waiting.done()
    delivery = await bob.receive(timeout_s=5)
    assert delivery is not None
    delivery.ack()
    receipt = await asyncio.wait_for(waiting, 5)
    assert receipt.seq == accepted + 1


@pytest.mark.usefixtures("no_looking_again")
async def test_many_waiting_sends_all_get_through(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, inbox_messages_max=40, lane_messages_max=20)
    bob = await fleet.join("bob", overflow="wait")
    buses = [await fleet.join(name) for name in ("s0", "s1", "s2")]
    sends = [asyncio.create_task(bus.send("bob", number)) for number in range(60) for bus in buses]
    seen: dict[str, list[int]] = {}
    for _ in range(180):
        delivery = await bob.receive(timeout_s=10)
        assert delivery is not None, f"{sum(map(len, seen.values()))} of 180 came"
        seen.setdefault(delivery.sender, []).append(delivery.body)
        delivery.ack()
    await asyncio.wait_for(asyncio.gather(*sends), 10)
    assert all(sorted(numbers) == list(range(60)) for numbers in seen.values())


@pytest.mark.usefixtures("no_looking_again")
@pytest.mark.parametrize("bound", [{"lane_bytes_max": 16 << 10}, {"outbox_messages_max": 12}])
async def test_a_send_that_meets_its_own_bound_waits_as_its_recipient_wants_and_is_woken_by_acks(
    make_fleet: Make, bound: dict[str, int]
) -> None:
    fleet = make_fleet(**bound)
    alice, bob = await fleet.join("alice"), await fleet.join("bob", overflow="wait")
    fill_with(alice, "bob", b"x" * 1000)

    async def send_more() -> None:
        for number in range(40):
            await alice.send("bob", [number, b"x" * 1000])

    sending = asyncio.create_task(send_more())
    numbers: list[int] = []
    while len(numbers) < 40:
        delivery = await bob.receive(timeout_s=10)
        assert delivery is not None, f"{len(numbers)} came"
        if isinstance(delivery.body, list):
            numbers.append(delivery.body[0])
        delivery.ack()
    await asyncio.wait_for(sending, 10)
    assert numbers == list(range(40))


@pytest.mark.parametrize("overflow", ["refuse", "evict_oldest"])
async def test_a_send_that_meets_its_own_bound_is_refused_at_once_where_nobody_wants_it_to_wait(
    make_fleet: Make, overflow: str
) -> None:
    fleet = make_fleet(lane_bytes_max=16 << 10)
    alice, _bob = await fleet.join("alice"), await fleet.join("bob", overflow=overflow)
    fill_with(alice, "bob", b"x" * 1000)
    refused = alice.stats.refused_full
    with pytest.raises(errors.OutboxFullError):
        await asyncio.wait_for(alice.send("bob", b"x" * 1000), 5)
    assert alice.stats.refused_full == refused + 1, "it tried again"


async def test_a_waiting_send_gives_up_at_its_deadline_and_has_written_nothing(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=8, lane_messages_max=4)
    alice, bob = await fleet.join("alice"), await fleet.join("bob", overflow="wait")
    accepted = await fill_up(alice, "bob")
    with pytest.raises(errors.InboxFullError):
        await asyncio.wait_for(alice.send("bob", "late", wait_s=0.05), 5)
    assert len(drain(bob)) == accepted


async def test_a_cancelled_waiting_send_leaves_nothing(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=8, lane_messages_max=4)
    alice, bob = await fleet.join("alice"), await fleet.join("bob", overflow="wait")
    accepted = await fill_up(alice, "bob")
    waiting = asyncio.create_task(alice.send("bob", "never"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    seen = [delivery.body for delivery in drain(bob)]
    assert len(seen) == accepted
    assert "never" not in seen
    assert (await alice.send("bob", "next")).seq == accepted + 1


async def test_an_ask_to_a_full_inbox_ends_at_its_deadline(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=8, lane_messages_max=4)
    alice, _bob = await fleet.join("alice"), await fleet.join("bob")
    await fill_up(alice, "bob")
    with pytest.raises((errors.InboxFullError, errors.AskTimeoutError)):
        await asyncio.wait_for(alice.ask("bob", 1, timeout_s=0.05), 5)


# ------------------------------------------------------------------ evict_oldest


async def test_eviction_takes_the_oldest_of_all_senders_and_leaves_tombstones_gaps_and_truth(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, inbox_messages_max=32, lane_messages_max=32)
    bob = await fleet.join("bob", overflow="evict_oldest")
    alice, carol = await fleet.join("alice"), await fleet.join("carol")
    order = await alice.send("bob", "order", priority="control")
    receipts = []
    for number in range(120):
        bus = carol if number % 3 == 0 else alice
        receipts.append((bus.id, number, await bus.send("bob", [bus.id, number])))
        assert alice.depth("bob") <= 32
    delivered = {(delivery.sender, delivery.seq) for delivery in drain(bob) if not delivery.message.control}
    evicted = [(sender, receipt) for sender, _number, receipt in receipts if receipt.state == "evicted"]
    assert order.state == "acked", "a control message was evicted"
    for sender, _number, receipt in receipts:
        assert (receipt.state == "evicted") != ((sender, receipt.seq) in delivered), "neither delivered nor told"
    assert bob.stats.evicted == len(evicted) > 60
    gone = {(sender, receipt.seq) for sender, receipt in evicted}
    gaps = {(lane, seq) for lane, first, last in bob.gaps for seq in range(first, last + 1)}
    assert gaps <= gone
    assert len(gaps) == min(len(gone), 100)
    stones = fleet.tombstones("bob")
    assert {(stone.lane, stone.seq) for stone in stones} == gone
    ids = {receipt.id for _sender, receipt in evicted}
    assert {stone.message_id for stone in stones} == ids
    assert all(stone.body_bytes > 0 and stone.evicted_ns > 0 for stone in stones)
    newest = [number for _sender, number, receipt in receipts if receipt.state != "evicted"]
    assert 119 in newest
    for name in ("alice", "carol"):  # of each sender the oldest went, not some in the middle
        seqs = sorted(receipt.seq for sender, receipt in evicted if sender == name)
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_message_in_hand_is_not_evicted_and_flooding_past_it_is_refused_or_evicts_others(
    make_fleet: Make,
) -> None:
    fleet = make_fleet(agents_max=2, inbox_messages_max=16, lane_messages_max=16)
    alice, bob = await fleet.join("alice"), await fleet.join("bob", overflow="evict_oldest")
    held_receipt = await alice.send("bob", "held")
    held = await bob.receive(timeout_s=5)
    assert held is not None
    for number in range(60):
        with contextlib.suppress(errors.InboxFullError):
            await alice.send("bob", number, wait_s=0.01)
    assert held_receipt.state == "taken"
    held.ack()
    assert held_receipt.state in ("acked", "finalised")
    await alice.send("bob", "newest")
    assert drain(bob)[-1].body == "newest"


async def test_a_sender_that_keeps_to_its_floor_loses_nothing_to_the_flood_of_another(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=3, inbox_messages_max=48, lane_messages_max=48)  # a floor of 4
    bob = await fleet.join("bob", overflow="evict_oldest")
    alice, carol = await fleet.join("alice"), await fleet.join("carol")
    quiet = [await carol.send("bob", number) for number in range(4)]
    for number in range(200):
        await alice.send("bob", number)
    assert [receipt.state for receipt in quiet] == ["stored"] * 4
    assert bob.stats.evicted > 100


async def test_what_the_coordinator_sent_is_not_evicted(make_fleet: Make) -> None:
    """It counts on what it has assigned: an assignment that vanishes would stay assigned for ever."""
    fleet = make_fleet(agents_max=3, inbox_messages_max=24, lane_messages_max=24)
    bob = await fleet.join("bob", overflow="evict_oldest")
    alice, coordinator = await fleet.join("alice"), await fleet.join("coordinator")
    assert await fill_up(coordinator, "bob") > 3  # it has borrowed, so its room could be had
    assigned = coordinator.stats.sent
    for number in range(80):
        await alice.send("bob", number)
    senders = [delivery.sender for delivery in drain(bob)]
    assert senders.count("coordinator") == assigned
    assert bob.stats.evicted > 0


async def test_an_absent_recipients_wish_to_evict_is_carried_out_on_the_senders_own_lane(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=3, inbox_messages_max=24, lane_messages_max=16)
    bob = await fleet.join("bob", overflow="evict_oldest")
    await bob.close()
    alice, carol = await fleet.join("alice"), await fleet.join("carol")
    other = await carol.send("bob", "carol's")
    receipts = [await alice.send("bob", number) for number in range(50)]
    assert other.state == "stored"
    evicted = [receipt.seq for receipt in receipts if receipt.state in ("evicted", "finalised")]
    assert evicted == list(range(1, len(evicted) + 1))
    assert len(fleet.tombstones("bob")) == len(evicted) >= 34
    bob = await fleet.join("bob")
    seen = [delivery.body for delivery in drain(bob)]
    assert "carol's" in seen
    assert [body for body in seen if body != "carol's"] == list(range(len(evicted), 50))


# ------------------------------------------------------------------ quotas


async def test_a_sender_stores_no_more_than_its_own_bound_over_all_recipients(make_fleet: Make) -> None:
    fleet = make_fleet(outbox_messages_max=30)
    alice = await fleet.join("alice")
    for name in ("bob", "carol"):
        fleet.add(name)
    assert fill(alice, "bob", 1000) == 30
    with pytest.raises(errors.OutboxFullError) as caught:
        alice.post("carol", "no room")
    assert caught.value.retry_after_s is not None
    await alice.close()
    alice = await fleet.join("alice")  # another life: what the last one stored counts
    with pytest.raises(errors.OutboxFullError):
        alice.post("carol", "no room")
    bob = await fleet.join("bob")
    assert len(drain(bob, 7)) == 7
    assert fill(alice, "carol", 1000) == 7


async def test_every_sender_has_an_equal_share_of_the_fleets_bound(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, fleet_messages_max=40)
    fleet.add("bob")
    counts = [fill(await fleet.join(name), "bob", 1000) for name in ("alice", "carol", "dave")]
    assert counts == [10, 10, 10]


@pytest.mark.parametrize("bound", ["lane_bytes_max", "outbox_bytes_max"])
async def test_bytes_are_bounded_and_freed_by_acks(make_fleet: Make, bound: str) -> None:
    fleet = make_fleet(**{bound: 64 << 10})
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for _turn in range(3):
        accepted = 0
        with contextlib.suppress(errors.OutboxFullError):
            while accepted < 1000:
                alice.post("bob", b"x" * 1000)
                accepted += 1
        assert 16 <= accepted <= 64
        assert len(drain(bob)) == accepted
        alice.receive_nowait()  # hears that segments are free


async def test_a_store_takes_as_many_agents_as_it_was_made_for(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=2)
    await fleet.join("alice")
    await fleet.join("bob")
    with pytest.raises(errors.RosterFullError):
        await fleet.join("carol")


async def test_publish_tells_who_did_not_get_it_and_everybody_else_did(make_fleet: Make) -> None:
    fleet = make_fleet(agents_max=4, inbox_messages_max=16, lane_messages_max=5)
    alice, bob, carol = await fleet.join("alice"), await fleet.join("bob"), await fleet.join("carol")
    fill(alice, "bob")
    with pytest.raises(errors.InboxFullError) as caught:
        await alice.publish("@all", "news")
    assert caught.value.facts["failed"] == "bob"
    assert [delivery.body for delivery in drain(carol)] == ["news"]
    assert "news" not in [delivery.body for delivery in drain(bob)]


# ------------------------------------------------------------------ explicit ids


async def test_an_explicit_id_is_known_after_the_ack_and_after_a_restart(make_fleet: Make) -> None:
    fleet = make_fleet()
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    first = await alice.send("bob", "pay", message_id="order-17")
    for _ in range(300):  # more than a first segment: it is reclaimed
        await alice.send("bob", b"x" * 100)
    assert len(drain(bob)) == 301
    alice.receive_nowait()
    assert (await alice.send("bob", "pay", message_id="order-17")).seq == first.seq
    await alice.close()
    alice = await fleet.join("alice")
    assert (await alice.send("bob", "pay", message_id="order-17")).seq == first.seq
    assert bob.receive_nowait() is None


async def test_the_newest_256_explicit_ids_of_a_lane_are_known(make_fleet: Make) -> None:
    fleet = make_fleet()
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for number in range(300):
        await alice.send("bob", number, message_id=f"id-{number}")
    drain(bob)
    for number in range(44, 300):
        assert (await alice.send("bob", number, message_id=f"id-{number}")).seq == number + 1
    assert bob.receive_nowait() is None
    assert (await alice.send("bob", 0, message_id="id-0")).seq == 301, "beyond the window it is a new message"
