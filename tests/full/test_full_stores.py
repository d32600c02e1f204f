"""A store that has no room left refuses at once, never kills, gives back all that it accepted, and takes more as soon as it has room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import AskTimeoutError, InboxFullError, StoreFullError
from muster.security.keys import Keyring, load_master
from muster.testing import eventually

from .mounts import NOBODY, Ballast, in_child, mounted

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

REFUSAL_S, RESUME_S = 0.1, 1.0
#: name -> kind, options, image size
SMALL = {
    "tmpfs-4m": ("tmpfs", "size=4m", 0),
    "tmpfs-200-inodes": ("tmpfs", "size=32m,nr_inodes=200", 0),
    "ext4-8m": ("ext4", "", 8 << 20),
}


class Fleet:
    """A store, and one bus for each of its agents in this process; what was accepted is remembered for each lane."""

    def __init__(self, directory: Path, agents: list[str]) -> None:
        self.store = create_store(directory / "store")
        for agent in agents:
            add_agent(self.store, agent)
        self._master = load_master(self.store)
        self._buses: dict[str, Bus] = {}
        self.accepted: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.drained: dict[tuple[str, str], list[bytes]] = defaultdict(list)

    def bus(self, agent: str) -> Bus:
        if agent not in self._buses:
            transport = LanesTransport(self.store, agent, Keyring.from_master(self._master, agent))
            self._buses[agent] = Bus(transport)
        return self._buses[agent]

    def leave(self, agent: str) -> None:
        self._buses.pop(agent).transport.close()

    def send(self, sender: str, recipient: str, size: int) -> None:
        body = (f"{len(self.accepted[sender, recipient])} {sender}".encode() * (size // 4))[:size]
        self.bus(sender).post(recipient, body)
        self.accepted[sender, recipient].append(body)

    def drain(self, agent: str) -> int:
        """Receive and ack all that can be received now."""
        count = 0
        while (delivery := self.bus(agent).receive_nowait()) is not None:
            self.drained[delivery.sender, agent].append(delivery.body)
            delivery.ack()
            count += 1
        return count


def send_until_full(fleet: Fleet, lanes: Iterator[tuple[str, str]], size: int) -> int:
    """How many were accepted before the store, not an inbox, refused."""
    count = 0
    for sender, recipient in lanes:
        with contextlib.suppress(InboxFullError):
            try:
                fleet.send(sender, recipient, size)
            except StoreFullError:
                return count
            count += 1
    raise AssertionError(f"{count} messages of {size} bytes, and the store never refused")


def refusal_s(send: Callable[[], None]) -> float:
    """The shortest of five refusals: a machine that is busy elsewhere must not count, a refusal that waits shows in each."""
    took = []
    for _ in range(5):
        begun = time.monotonic()
        with pytest.raises(StoreFullError):
            send()
        took.append(time.monotonic() - begun)
    return min(took)


@pytest.fixture(params=[0, NOBODY], ids=["root", "ordinary-user"])
def uid(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest, uid: int) -> Iterator[Path]:
    kind, options, image_bytes = SMALL[request.param]
    with mounted(kind, options, image_bytes=image_bytes, uid=uid) as point:
        yield point


def around(agents: list[str]) -> Iterator[tuple[str, str]]:
    """Every pair of different agents, over and over."""
    while True:
        for sender in agents:
            for recipient in agents:
                if sender != recipient:
                    yield sender, recipient


def test_a_full_store_refuses_at_once_drains_and_takes_more_when_it_has_room(small: Path, uid: int) -> None:
    """Three rounds, of large and of small messages; the last room is taken by somebody else's file."""

    def work() -> None:
        agents = [f"agent-{n}" for n in range(5)]
        fleet = Fleet(small, agents)
        for agent in agents:
            fleet.bus(agent)
        pairs = around(agents)
        ballast = Ballast(small)
        for size in (20_000, 700, 5_000):
            # One message on every lane first: what refuses then is the room for messages.
            for _ in range(20):
                fleet.send(*next(pairs), size)
            for agent in agents:
                fleet.drain(agent)
            ballast.fill()
            send_until_full(fleet, pairs, size)
            sender, recipient = next(pairs)
            send_until_full(fleet, iter(lambda: (sender, recipient), None), size)
            assert refusal_s(lambda: fleet.send(sender, recipient, size)) <= REFUSAL_S
            for agent in agents:
                fleet.drain(agent)
            assert fleet.drained == fleet.accepted, (
                "what was accepted came, whole and in order, while the store was full"
            )
            ballast.drop()
            begun = time.monotonic()
            eventually(lambda: accepted(fleet, sender, recipient, size), RESUME_S, "a send after room came back")
            assert time.monotonic() - begun <= RESUME_S
            fleet.drain(recipient)

    in_child(uid, work)


def accepted(fleet: Fleet, sender: str, recipient: str, size: int) -> bool:
    try:
        fleet.send(sender, recipient, size)
    except StoreFullError:
        return False
    return True


def test_lanes_nobody_has_looked_at_yet_are_drained_from_a_full_store(small: Path, uid: int) -> None:
    """Their recipient comes after the store was filled: it has spare cursors only, and no room for more."""

    def work() -> None:
        senders = [f"sender-{n}" for n in range(4)]
        fleet = Fleet(small, ["hub", *senders])
        fleet.bus("hub")
        fleet.leave("hub")
        for sender in senders:
            fleet.send(sender, "hub", 700)
        Ballast(small).fill()
        send_until_full(fleet, iter(lambda: (senders[0], "hub"), None), 700)
        fleet.drain("hub")
        assert fleet.drained == fleet.accepted

    in_child(uid, work)


def test_without_room_for_another_lane_the_send_is_refused_and_leaves_no_lane(small: Path, uid: int) -> None:
    def work() -> None:
        fleet = Fleet(small, ["alice", "bob", "carol"])
        fleet.bus("bob")  # once there, a recipient has spare cursors
        fleet.send("alice", "bob", 100)
        Ballast(small).fill()
        exhaust_inodes(small)
        assert refusal_s(lambda: fleet.send("alice", "carol", 100)) <= REFUSAL_S
        fleet.drain("bob")
        assert fleet.drain("carol") == 0
        assert fleet.drained["alice", "bob"] == fleet.accepted["alice", "bob"]
        for path in small.glob("inode-*"):
            path.unlink()
        Ballast(small).drop()
        eventually(lambda: accepted(fleet, "alice", "carol", 100), RESUME_S, "a first send after room came back")
        assert fleet.drain("carol") == 1

    in_child(uid, work)


def exhaust_inodes(directory: Path) -> None:
    """Make empty files until no more can be made, or enough of them stand."""
    with contextlib.suppress(OSError):
        for n in range(5000):
            os.close(os.open(directory / f"inode-{n}", os.O_CREAT | os.O_WRONLY))


def test_calls_that_may_wait_give_up_in_time_when_the_store_is_full(small: Path, uid: int) -> None:
    """A full store is no reason to wait: send and ask are refused at once; receive and wait_acked keep to their timeouts."""

    async def calls(fleet: Fleet) -> None:
        keyring = Keyring.from_master(load_master(fleet.store), "alice")
        async with await Bus.open(fleet.store, "alice", keyring) as alice:
            receipt = await alice.send("bob", bytes(700))
            with pytest.raises(StoreFullError):
                while True:
                    alice.post("bob", bytes(700))
            for call in (
                lambda: alice.send("bob", bytes(700), wait_s=0.2),
                lambda: alice.ask("bob", bytes(700), timeout_s=0.2),
                lambda: receipt.wait_acked(timeout_s=0.2),
                lambda: alice.receive(timeout_s=0.2),
            ):
                took = []
                for _ in range(3):
                    begun = time.monotonic()
                    with contextlib.suppress(StoreFullError, AskTimeoutError):
                        await call()
                    took.append(time.monotonic() - begun)
                assert min(took) <= 0.2 + REFUSAL_S

    def work() -> None:
        fleet = Fleet(small, ["alice", "bob"])
        fleet.send("alice", "bob", 100)
        fleet.leave("alice")
        Ballast(small).fill()
        asyncio.run(calls(fleet))

    in_child(uid, work)


# ---------------------------------------------------------------------- what fits into Docker's 64 MiB


def used_bytes(directory: Path) -> int:
    room = os.statvfs(directory)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@pytest.mark.parametrize(
    ("shape", "lanes", "fits_bytes"), [("star", 98, 6 << 20), ("mesh", 2450, 60 << 20)], ids=["star", "mesh"]
)
def test_fifty_agents_fit_into_64_mib(shape: str, lanes: int, fits_bytes: int, uid: int) -> None:
    """A star of 50 agents takes less than a tenth; a full mesh, with one message on each of its 2,450 lanes, fits just so."""

    def work() -> None:
        agents = [f"agent-{n:02}" for n in range(50)]
        fleet = Fleet(point, agents)
        for sender in agents:  # one after the other: a process has fewer descriptors than 2,450 lanes need
            for recipient in agents:
                if sender != recipient and (shape == "mesh" or agents[0] in (sender, recipient)):
                    fleet.send(sender, recipient, 256)
            fleet.leave(sender)
        assert len(fleet.accepted) == lanes
        for agent in agents:
            fleet.drain(agent)
            fleet.leave(agent)
        assert fleet.drained == fleet.accepted
        assert used_bytes(point) <= fits_bytes, f"{lanes} lanes take {used_bytes(point) / 2**20:.1f} MiB"

    with mounted("tmpfs", "size=64m", uid=uid) as point:
        in_child(uid, work)


def test_fifty_agents_in_64_mib_fill_it_and_drain_it(uid: int) -> None:
    """All flood the hub and the hub answers: the store fills, refuses, and every accepted message comes."""

    def work() -> None:
        agents = [f"agent-{n:02}" for n in range(50)]
        hub = agents[0]
        fleet = Fleet(point, agents)
        for agent in agents:
            fleet.bus(agent)

        def spokes() -> Iterator[tuple[str, str]]:
            while True:
                for agent in agents[1:]:
                    yield agent, hub
                    yield hub, agent

        for _, pair in zip(range(98), spokes(), strict=False):
            fleet.send(*pair, 256)
        for agent in agents:
            fleet.drain(agent)
        send_until_full(fleet, spokes(), 30_000)
        assert used_bytes(point) > 40 << 20
        for agent in agents:
            fleet.drain(agent)
        assert fleet.drained == fleet.accepted
        assert accepted(fleet, agents[7], hub, 30_000)

    with mounted("tmpfs", "size=64m", uid=uid) as point:
        in_child(uid, work)
