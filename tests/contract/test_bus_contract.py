"""What every transport promises. Each test's name is the claim."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from muster import errors
from muster.bus.bus import Bus
from muster.core import limits
from muster.testing import eventually_async

BAD_NAMES = ["", "..", ".", "a/b", "/etc/x", "abc\n", "a" * 65, "\u0430dmin", "a b", "a\0b", "-lead", "café"]


async def take(bus: Bus, timeout_s: float = 5.0) -> Any:
    delivery = await bus.receive(timeout_s=timeout_s)
    assert delivery is not None, "no delivery before the deadline"
    return delivery


async def test_a_message_arrives_with_its_body_sender_and_type(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", {"n": 1, "deep": [1.5, None, "ü"]}, type="greeting")
    delivery = await take(bob)
    assert (delivery.sender, delivery.type, delivery.body) == ("alice", "greeting", {"n": 1, "deep": [1.5, None, "ü"]})
    assert (delivery.seq, delivery.attempt, delivery.redelivered) == (1, 1, False)


async def test_bytes_arrive_as_bytes_up_to_one_mebibyte(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for body in (b"", b"\x00\xff" * 10, b"x" * limits.BODY_BYTES_MAX):
        await alice.send("bob", body)
        delivery = await take(bob)
        assert delivery.body == body
        delivery.ack()


async def test_a_body_is_decoded_into_the_type_that_is_asked_for(fleet: Any) -> None:
    class Point(msgspec.Struct):
        x: int
        y: int

    @dataclass
    class Name:
        first: str

    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", Point(1, 2))
    await alice.send("bob", Name("a"))
    assert (await take(bob)).decode(Point) == Point(1, 2)
    delivery = await take(bob)
    assert delivery.decode(Name) == Name("a")
    with pytest.raises(errors.BodyEncodingError):
        delivery.decode(Point)
    assert delivery.is_open


async def test_a_receipt_tells_stored_taken_acked(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    receipt = await alice.send("bob", 1)
    assert receipt.state == "stored"
    delivery = await take(bob)
    assert receipt.state == "taken"
    delivery.ack()
    assert receipt.state == "acked"


async def test_wait_acked_ends_with_the_ack_and_not_before(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    receipts = [await alice.send("bob", n) for n in range(3)]
    deliveries = [await take(bob) for _ in range(3)]
    with pytest.raises(errors.AskTimeoutError):
        await receipts[2].wait_acked(timeout_s=0.05)
    waits = [asyncio.create_task(receipt.wait_acked(timeout_s=5)) for receipt in receipts]
    await asyncio.sleep(0)
    for delivery in reversed(deliveries):
        delivery.ack()
    await asyncio.gather(*waits)


async def test_wait_acked_tells_that_a_message_became_a_dead_letter(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    receipt = await alice.send("bob", 1)
    (await take(bob)).dead_letter("nobody wants it")
    with pytest.raises(errors.BusError, match="dead"):
        await receipt.wait_acked(timeout_s=1)
    assert receipt.state == "dead"
    assert fleet.dead_reasons("bob") == ["nobody wants it"]


async def test_messages_of_one_sender_keep_their_order_and_number_without_gaps(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(700):
        await alice.send("bob", n)
    for n in range(700):
        delivery = await take(bob)
        assert (delivery.body, delivery.seq) == (n, n + 1)
        delivery.ack()


async def test_fifty_senders_at_once_lose_nothing(fleet: Any) -> None:
    bob = await fleet.join("bob")
    senders = [await fleet.join(f"s{n}") for n in range(50)]

    async def send_all(bus: Bus) -> None:
        for n in range(20):
            await bus.send("bob", [bus.id, n])
            await asyncio.sleep(0)

    seen: dict[str, list[int]] = {}

    async def receive_all() -> None:
        for _ in range(50 * 20):
            delivery = await take(bob)
            async with delivery:
                sender, n = delivery.body
                assert sender == delivery.sender
                seen.setdefault(sender, []).append(n)

    await asyncio.gather(receive_all(), *(send_all(bus) for bus in senders))
    assert seen == {f"s{n}": list(range(20)) for n in range(50)}


async def test_nack_delivers_again_with_the_same_number_and_a_higher_attempt(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", "x")
    (await take(bob)).nack("not now")
    again = await take(bob)
    assert (again.seq, again.attempt, again.redelivered) == (1, 2, True)


async def test_nack_with_a_delay_does_not_hold_up_the_messages_behind_it(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", "first")
    await alice.send("bob", "second")
    (await take(bob)).nack(delay_s=0.05)
    second = await take(bob)
    assert second.body == "second"
    second.ack()
    assert (await take(bob)).body == "first"


async def test_a_message_given_back_too_often_becomes_a_dead_letter_and_its_neighbour_is_unharmed(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    poison = await alice.send("bob", "poison")
    await alice.send("bob", "good")
    seen = []
    while "good" not in seen:
        delivery = await take(bob)
        seen.append(delivery.body)
        delivery.ack() if delivery.body == "good" else delivery.nack("cannot")
    for _ in range(limits.ATTEMPTS_MAX):
        if poison.state == "dead":
            break
        (await take(bob)).nack("cannot")
    assert poison.state == "dead"
    assert fleet.dead_reasons("bob") == ["cannot"]


async def test_release_counts_no_attempt(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", "x")
    for _ in range(limits.ATTEMPTS_MAX * 2):
        (await take(bob)).release()
    assert (await take(bob)).attempt == 1


async def test_the_context_manager_acks_on_success_and_nacks_on_an_exception(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    receipt = await alice.send("bob", "x")
    with pytest.raises(ZeroDivisionError):
        async with await take(bob):
            raise ZeroDivisionError
    assert receipt.state == "taken"
    async with await take(bob) as delivery:
        assert delivery.attempt == 2
    assert receipt.state == "acked"


async def test_cancellation_in_the_context_manager_gives_back_and_counts_no_attempt(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", "x")
    entered = asyncio.Event()

    async def handle() -> None:
        async with await take(bob):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(handle())
    await asyncio.wait_for(entered.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await take(bob)).attempt == 1


async def test_a_delivery_is_finished_once(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", "x")
    delivery = await take(bob)
    delivery.ack()
    for call in (delivery.ack, delivery.nack, delivery.release):
        with pytest.raises(errors.DeliveryStateError):
            call()


async def test_ask_gets_the_reply_that_belongs_to_it(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")

    async def serve() -> None:
        waiting = []
        for _ in range(10):
            waiting.append(await take(bob))
        for delivery in reversed(waiting):  # replies cross on purpose
            delivery.reply(delivery.body * 2)
            delivery.ack()

    server = asyncio.create_task(serve())
    replies = await asyncio.gather(*(alice.ask("bob", n, timeout_s=5) for n in range(10)))
    await server
    assert [reply.body for reply in replies] == [n * 2 for n in range(10)]


async def test_ask_without_a_reply_ends_at_its_deadline_as_a_timeout_error(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    with pytest.raises(TimeoutError) as caught:
        await alice.ask("bob", 1, timeout_s=0.05)
    assert isinstance(caught.value, errors.AskTimeoutError)
    request = await take(bob)
    request.reply("too late")
    await alice.send("alice", "marker")
    assert (await take(alice)).body == "marker"
    assert alice.stats.late_replies == 1


async def test_ask_works_while_the_handler_of_the_inbox_is_busy_asking(fleet: Any) -> None:
    """Two agents that ask each other from inside their handlers do not deadlock: replies have a class of their own."""
    alice, bob = await fleet.join("alice"), await fleet.join("bob")

    async def serve_bob() -> None:
        async with await take(bob) as delivery:
            inner = await bob.ask("alice", "inner", timeout_s=5)
            delivery.reply(inner.body)

    async def serve_alice() -> None:
        async with await take(alice) as delivery:
            delivery.reply("from alice")

    reply, _, _ = await asyncio.gather(alice.ask("bob", "outer", timeout_s=5), serve_bob(), serve_alice())
    assert reply.body == "from alice"


async def test_control_messages_overtake_normal_ones(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(50):
        await alice.send("bob", n)
    await alice.send("bob", "now", priority="control")
    # The first message may have been taken before; the second at the latest is the control message.
    assert "now" in [(await take(bob)).body, (await take(bob)).body]


async def test_an_explicit_id_sent_again_adds_no_second_copy(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    first = await alice.send("bob", "x", message_id="order-17")
    second = await alice.send("bob", "x", message_id="order-17")
    assert first.seq == second.seq
    delivery = await take(bob)
    assert delivery.id == "order-17"
    delivery.ack()
    assert await bob.receive(timeout_s=0.02) is None


async def test_an_expired_message_is_not_delivered(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    receipt = await alice.send("bob", "stale", expires_in_s=-1)
    await alice.send("bob", "fresh")
    assert (await take(bob)).body == "fresh"
    assert receipt.state == "expired"


async def test_a_full_lane_refuses_and_everything_accepted_is_delivered(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(limits.LANE_CREDIT):
        await alice.send("bob", n)
    with pytest.raises(errors.InboxFullError) as caught:
        await alice.send("bob", "one too many")
    assert caught.value.retry_after_s is not None
    for n in range(limits.LANE_CREDIT):
        delivery = await take(bob)
        assert delivery.body == n
        delivery.ack()
    await alice.send("bob", "again")
    assert (await take(bob)).body == "again"


async def test_a_full_lane_does_not_hinder_another_sender(fleet: Any) -> None:
    alice, carol, bob = await fleet.join("alice"), await fleet.join("carol"), await fleet.join("bob")
    with pytest.raises(errors.InboxFullError):
        for n in range(limits.LANE_CREDIT + 1):
            await alice.send("bob", n)
    await carol.send("bob", "me too")
    assert "me too" in [(await take(bob)).body, (await take(bob)).body]


async def test_send_with_a_wait_goes_on_when_there_is_room_again(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(limits.LANE_CREDIT):
        await alice.send("bob", n)
    waiting = asyncio.create_task(alice.send("bob", "patient", wait_s=5))
    for _ in range(3):
        (await take(bob)).ack()
    assert (await waiting).seq == limits.LANE_CREDIT + 1


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_bad_recipient_name_is_refused_and_nothing_is_written(fleet: Any, name: str) -> None:
    alice = await fleet.join("alice")
    with pytest.raises(errors.InvalidNameError):
        await alice.send(name, 1)
    assert alice.stats.sent == 0


async def test_an_unknown_recipient_is_refused(fleet: Any) -> None:
    alice = await fleet.join("alice")
    with pytest.raises(errors.UnknownAgentError):
        await alice.send("nobody", 1)


async def test_bodies_that_are_too_large_or_cannot_be_encoded_are_refused(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    with pytest.raises(errors.BodyTooLargeError):
        await alice.send("bob", b"x" * (limits.BODY_BYTES_MAX + 1))
    with pytest.raises(errors.BodyTooLargeError):
        await alice.send("bob", "é" * (limits.BODY_BYTES_MAX // 2 + 1))  # characters fit, bytes do not
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for body in (object(), {1, object()}, deep):
        with pytest.raises(errors.BodyEncodingError):
            await alice.send("bob", body)
    assert await bob.receive(timeout_s=0.02) is None


async def test_an_identity_has_one_holder_at_a_time_and_can_be_taken_again_after_close(fleet: Any) -> None:
    alice = await fleet.join("alice")
    with pytest.raises(errors.IdentityBusyError):
        await fleet.join("alice")
    await alice.close()
    await (await fleet.join("alice")).send("alice", "still here")


async def test_messages_in_hand_at_close_go_to_the_next_holder_without_a_counted_attempt(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(5):
        await alice.send("bob", n)
    first = await take(bob)
    first.ack()
    await take(bob)
    await bob.close()
    bob = await fleet.join("bob")
    seen = []
    for _ in range(4):
        delivery = await take(bob)
        seen.append((delivery.body, delivery.attempt))
        delivery.ack()
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 1)]


async def test_a_closed_bus_refuses_to_send_and_ends_its_inbox(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", 1)

    async def read() -> list[Any]:
        return [delivery.body async for delivery in bob.inbox()]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    while bob.stats.received < 1:
        await asyncio.sleep(0.001)
    await bob.close()
    assert await asyncio.wait_for(reading, 5) == [1]
    with pytest.raises(errors.BusClosedError):
        await bob.send("alice", 1)


async def test_publish_reaches_everybody_but_the_sender(fleet: Any) -> None:
    buses = [await fleet.join(name) for name in ("alice", "bob", "carol")]
    receipts = await buses[0].publish("@all", "hello", type="news")
    assert [receipt.recipient for receipt in receipts] == ["bob", "carol"]
    for bus in buses[1:]:
        assert (await take(bus)).body == "hello"
    with pytest.raises(errors.UnknownAgentError):
        await buses[0].publish("@nosuch", 1)


async def test_depth_counts_what_is_stored_and_not_finished(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    for n in range(3):
        await alice.send("bob", n)
    assert alice.depth("bob") == 3
    (await take(bob)).ack()
    assert alice.depth("bob") == 2


async def test_a_chain_of_replies_ends_at_the_hop_limit(fleet: Any) -> None:
    """Two agents that answer every message, answers included, stop by themselves."""
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    alice.post("bob", "hello", reply_to="alice")
    with pytest.raises(errors.EchoStormError):
        for _ in range(limits.HOPS_MAX + 2):
            for me, other in ((bob, alice), (alice, bob)):
                delivery = await take(me)
                me.post(other.id, "echo", hops=delivery.message.hops + 1)
                delivery.ack()


async def test_an_ack_calls_nobody_before_it_returns_and_everybody_soon_after(fleet: Any) -> None:
    """Whoever acks is in the middle of its own bookkeeping: a callback that took the next message there would overtake this one."""
    alice, carol, bob = [await fleet.join(name) for name in ("alice", "carol", "bob")]
    await alice.send("bob", 1)
    await carol.send("bob", 2)
    first = await take(bob)
    is_acking, calls = False, []
    bob.on_wake(lambda: calls.append(is_acking))
    is_acking = True
    first.ack()
    is_acking = False
    assert calls == []
    await eventually_async(lambda: calls, 5.0, "somebody tells of what is there")
    assert not any(calls)


async def test_a_control_message_with_a_correlation_is_no_reply_and_is_delivered(fleet: Any) -> None:
    alice, bob = await fleet.join("alice"), await fleet.join("bob")
    await alice.send("bob", 1, priority="control", correlation_id="order-17")
    delivery = await bob.receive(timeout_s=5)
    assert delivery is not None
    assert (delivery.body, delivery.message.correlation_id) == (1, "order-17")
    delivery.ack()
    assert bob.stats.late_replies == 0
