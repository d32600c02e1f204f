"""A program of one's own as an agent: it receives, answers, gives back what fails, and stops when told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muster.agent.agent import Agent
from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.store import add_agent, create_store
from muster.core import limits
from muster.errors import FleetNotRunningError, IdentityBusyError, InvalidNameError, UsageError
from muster.security.keys import Keyring, load_master
from muster.testing import eventually_async

from .worker_world import PATIENCE_S, next_delivery


class Point(msgspec.Struct):
    x: int
    y: int


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return create_store(tmp_path / "store")


@pytest.fixture
async def friend(store: Path) -> AsyncIterator[Bus]:
    add_agent(store, "friend")
    add_agent(store, "me")
    async with await Bus.open(store, "friend", Keyring.from_master(load_master(store), "friend")) as bus:
        yield bus


class Serving:
    """`agent.serve()` for the length of a block."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def __aenter__(self) -> Agent:
        self.task = asyncio.ensure_future(self.agent.serve())
        await asyncio.sleep(0)
        return self.agent

    async def __aexit__(self, *_error: object) -> None:
        self.agent.stop()
        await asyncio.wait_for(self.task, PATIENCE_S)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_message_is_handled_and_acked(store: Path, friend: Bus, kind: str) -> None:
    agent = Agent("me", store=store)
    seen: list[Any] = []
    if kind == "async":

        @agent.on("greeting")
        async def greet(body: Any) -> None:
            seen.append(body)
    else:

        @agent.on("greeting")
        def greet_too(body: Any) -> None:
            seen.append(body)

    async with Serving(agent):
        receipt = friend.post("me", {"n": 1}, type="greeting")
        await receipt.wait_acked(timeout_s=PATIENCE_S)
    assert seen == [{"n": 1}]


async def test_bodies_are_decoded_to_the_annotation(store: Path, friend: Bus) -> None:
    agent = Agent("me", store=store)

    @agent.on("move")
    def move(point: Point) -> Point:
        return Point(point.y, point.x)

    @agent.on("*")
    def other(delivery: Delivery) -> str:
        return f"{delivery.sender} {delivery.type} {delivery.attempt}"

    async with Serving(agent):
        reply = await friend.ask("me", Point(1, 2), type="move", timeout_s=PATIENCE_S)
        assert reply.decode(Point) == Point(2, 1)
        assert (await friend.ask("me", 0, type="else", timeout_s=PATIENCE_S)).body == "friend else 1"
        bad = friend.post("me", {"x": "no"}, type="move")
        await eventually_async(lambda: bad.state == "dead", PATIENCE_S)


async def test_a_message_whose_handler_raises_comes_again_until_it_is_given_up(store: Path, friend: Bus) -> None:
    agent = Agent("me", store=store)
    attempts: list[int] = []

    @agent.on("work")
    async def work(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise ValueError("not today")

    async with Serving(agent):
        receipt = friend.post("me", 1, type="work")
        await eventually_async(lambda: receipt.state == "dead", PATIENCE_S)
        later = friend.post("me", 2, type="other")
        await eventually_async(
            lambda: later.state == "dead", PATIENCE_S, "no handler: a dead letter, and the agent goes on"
        )
    assert attempts == list(range(1, limits.ATTEMPTS_MAX + 1))


async def test_slots_bound_what_is_handled_at_once(store: Path, friend: Bus) -> None:
    agent = Agent("me", store=store, slots=2)
    gate = asyncio.Event()
    inside = 0
    most = 0

    @agent.on("work")
    async def work(_body: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await gate.wait()
        inside -= 1

    async with Serving(agent):
        receipts = [friend.post("me", number, type="work") for number in range(5)]
        await eventually_async(lambda: inside == 2, PATIENCE_S)
        gate.set()
        for receipt in receipts:
            await receipt.wait_acked(timeout_s=PATIENCE_S)
    assert most == 2


async def test_stopping_finishes_what_is_in_hand_and_leaves_the_rest(store: Path, friend: Bus) -> None:
    agent = Agent("me", store=store)
    gate = asyncio.Event()

    @agent.on("work")
    async def work(_body: Any) -> None:
        await gate.wait()

    receipts = []
    async with Serving(agent):
        receipts = [friend.post("me", number, type="work") for number in range(3)]
        await eventually_async(lambda: receipts[0].state == "taken", PATIENCE_S)
        agent.stop()
        gate.set()
    assert [receipt.state for receipt in receipts] == ["acked", "stored", "stored"]
    me = await Bus.open(store, "me", Keyring.from_master(load_master(store), "me"))
    assert (await next_delivery(me)).body == 1
    await me.close()


async def test_a_handler_sends_by_its_agents_bus(store: Path, friend: Bus) -> None:
    agent = Agent("me", store=store)

    @agent.on("work")
    async def work(body: Any) -> None:
        await agent.bus.send("friend", body + 1, type="done")

    with pytest.raises(UsageError):
        _ = agent.bus
    async with Serving(agent):
        friend.post("me", 41, type="work")
        delivery = await next_delivery(friend)
        assert (delivery.sender, delivery.body) == ("me", 42)
        delivery.ack()


def test_a_standing_program_runs_until_it_is_told_to_stop(store: Path) -> None:
    code = """
import muster
agent = muster.Agent()
@agent.on("work")
def work(body):
    return body * 2
print("up", flush=True)
agent.run()
print("down", flush=True)
"""
    for number in (signal.SIGTERM, signal.SIGINT):
        env = {**os.environ, "MUSTER_STORE": str(store), "MUSTER_AGENT": "me"}
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "up\n"

            async def ask() -> Any:
                add_agent(store, "friend")
                async with await Bus.open(store, "friend", Keyring.from_master(load_master(store), "friend")) as bus:
                    return (await bus.ask("me", 4, type="work", timeout_s=PATIENCE_S)).body

            add_agent(store, "me")
            assert asyncio.run(ask()) == 8
            process.send_signal(number)
            assert process.stdout.read() == "down\n"
        assert process.returncode == 0


async def test_bad_input_is_said_in_one_sentence(store: Path, tmp_path: Path, friend: Bus) -> None:
    with pytest.raises(UsageError, match="MUSTER_AGENT"):
        Agent()
    with pytest.raises(InvalidNameError):
        Agent("no spaces")
    with pytest.raises(UsageError):
        Agent("me", slots=0)
    with pytest.raises(UsageError, match="MUSTER_STORE"):
        await Agent("me").serve()
    with pytest.raises(FleetNotRunningError):
        await Agent("me", store=tmp_path / "nowhere").serve()
    with pytest.raises(IdentityBusyError):
        await Agent("friend", store=store).serve()
    agent = Agent("me", store=store)
    agent.on("x")(lambda body: body)
    with pytest.raises(UsageError, match="already"):
        agent.on("x")(lambda body: body)
    with pytest.raises(UsageError, match="takes no argument"):
        agent.on("y")(lambda: None)  # type: ignore[type-var]
