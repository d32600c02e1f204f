"""No blocked call outlasts its timeout: not when its peer is stopped, not when nobody ever takes anything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import AskTimeoutError, InboxFullError
from muster.security.keys import Keyring, load_master
from muster.supervise import platform

TIMEOUT_S, LATE_S, TRIES = 0.25, 0.1, 3


def keyring(store: Path, agent: str) -> Keyring:
    return Keyring.from_master(load_master(store), agent)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = create_store(tmp_path / "fleet")
    for agent in ("alice", "bob"):
        add_agent(made, agent)
    return made


@pytest.fixture
def stopped_bob(store: Path) -> Iterator[None]:
    """A process that consumes bob's inbox and is stopped: it lives, and does nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        platform.set_parent_death_signal(signal.SIGKILL)
        transport = LanesTransport(store, "bob", keyring(store, "bob"))
        os.write(writer, b"x")
        while transport.agent:
            signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def lateness_s(call: Callable[[], Awaitable[object]]) -> float:
    """By how much a call outlasts its timeout, the least of a few tries: a machine that is busy elsewhere must not count."""
    late = []
    for _ in range(TRIES):
        begun = time.monotonic()
        await call()
        late.append(time.monotonic() - begun - TIMEOUT_S)
    assert min(late) > -0.01, f"it gave up {-min(late):.3f} s before its time"
    return min(late)


@pytest.mark.usefixtures("stopped_bob")
async def test_ask_gives_up_in_time_when_its_peer_is_stopped(store: Path) -> None:
    async def ask() -> None:
        with pytest.raises(AskTimeoutError):
            await alice.ask("bob", 1, timeout_s=TIMEOUT_S)

    async with await Bus.open(store, "alice", keyring(store, "alice")) as alice:
        assert await lateness_s(ask) <= LATE_S


@pytest.mark.usefixtures("stopped_bob")
async def test_wait_acked_gives_up_in_time_when_its_peer_is_stopped(store: Path) -> None:
    async def wait() -> None:
        with pytest.raises(AskTimeoutError):
            await receipt.wait_acked(timeout_s=TIMEOUT_S)

    async with await Bus.open(store, "alice", keyring(store, "alice")) as alice:
        receipt = await alice.send("bob", 1)
        assert await lateness_s(wait) <= LATE_S


@pytest.mark.usefixtures("stopped_bob")
@pytest.mark.parametrize("consume", [True, False])
async def test_send_and_ask_give_up_in_time_when_the_inbox_of_a_stopped_peer_is_full(
    store: Path, consume: bool
) -> None:
    async def send() -> None:
        with pytest.raises(InboxFullError):
            await alice.send("bob", 1, wait_s=TIMEOUT_S)

    async def ask() -> None:
        with pytest.raises((InboxFullError, AskTimeoutError)):
            await alice.ask("bob", 1, timeout_s=TIMEOUT_S)

    async with await Bus.open(store, "alice", keyring(store, "alice"), consume=consume) as alice:
        with pytest.raises(InboxFullError):
            while True:
                alice.post("bob", 1)
        assert await lateness_s(send) <= LATE_S
        if consume:
            assert await lateness_s(ask) <= LATE_S


async def test_receive_gives_up_in_time_when_nothing_comes(store: Path) -> None:
    async def receive() -> None:
        assert await bob.receive(timeout_s=TIMEOUT_S) is None

    async with await Bus.open(store, "bob", keyring(store, "bob")) as bob:
        assert await lateness_s(receive) <= LATE_S


async def test_several_calls_that_wait_at_once_all_give_up_in_time(store: Path) -> None:
    """A hundred of each kind in one process: none is delayed by the others."""

    async def all_at_once() -> None:
        waits = [alice.receive(timeout_s=TIMEOUT_S) for _ in range(100)]
        acks = [receipt.wait_acked(timeout_s=TIMEOUT_S) for _ in range(100)]
        asks = [alice.ask("bob", n, timeout_s=TIMEOUT_S) for n in range(100)]
        found = await asyncio.gather(*waits, *acks, *asks, return_exceptions=True)
        assert found[:100] == [None] * 100
        assert {error.__class__ for error in found[100:]} == {AskTimeoutError}

    async with await Bus.open(store, "alice", keyring(store, "alice")) as alice:
        receipt = await alice.send("bob", 1)
        assert await lateness_s(all_at_once) <= LATE_S
