"""A real worker process on a real store, with the test as its spawner and its coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from muster.agent import worker
from muster.agent.status import StatusPage, read_status
from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.store import add_agent, create_store, write_spec
from muster.core.orders import WorkerGrant
from muster.core.protocol import TYPE_OF, Assign, Drain, Drained, Ready, Result
from muster.core.spec import AgentSpec, FleetSpec, roster, workers
from muster.security.keys import Keyring, grant_for, load_master
from muster.supervise import tree
from muster.supervise.child import Birth, fork_child
from muster.testing import eventually

T = TypeVar("T", bound=msgspec.Struct)
#: Generous: two cores may be shared with others. Nothing waits this long unless it fails.
PATIENCE_S = 20.0


class World:
    """One fleet of agents; `start` forks a worker."""

    def __init__(self, store: Path, *kinds: AgentSpec, **fleet: Any) -> None:
        self.spec = FleetSpec(name="world", store_id=os.urandom(16).hex(), agents=kinds, **fleet)
        self.store = create_store(store)
        write_spec(self.store, self.spec)
        for agent in ("coordinator", "operator", "friend", *roster(self.spec)):
            add_agent(self.store, agent)
        self.master = load_master(self.store)
        self.pids: dict[str, int] = {}
        self.statuses: dict[str, int] = {}
        self.seen: deque[tuple[str, Any]] = deque()
        self._lifelines: dict[str, list[int]] = {}
        self._buses: list[Bus] = []

    async def open(self, agent: str) -> Bus:
        """Join as `agent`."""
        bus = await Bus.open(self.store, agent, Keyring.from_master(self.master, agent))
        self._buses.append(bus)
        return bus

    async def __aenter__(self) -> World:
        tree.set_subreaper()
        self.coordinator = await self.open("coordinator")
        return self

    async def __aexit__(self, *_error: object) -> None:
        for name in list(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[name], signal.SIGKILL)
            self.reap(name)
        for name in list(self._lifelines):
            self.cut_lifeline(name)
        for bus in self._buses:
            await bus.close()
        assert tree.kill_orphans((), 2.0) == []

    # ------------------------------------------------------------------ the spawner's part

    def start(self, name: str | None = None, incarnation: int = 1) -> int:
        """Fork the worker `name` (by default the first one)."""
        name = name or next(iter(workers(self.spec)))
        agents = workers(self.spec)[name]
        peers = ("coordinator", "operator", "friend", *roster(self.spec))
        grants = [grant_for(self.master, agent, peers) for agent in agents]
        grant = WorkerGrant(worker=name, incarnation=incarnation, store=str(self.store), agents=grants)
        memory = os.memfd_create("grant")
        os.write(memory, msgspec.msgpack.encode(grant))
        lifeline, end = os.pipe()
        birth = Birth(
            name=name, run=lambda: worker.main(memory, lifeline), keep_fds=(memory, lifeline), forget=lambda: None, subreaper=True
        )  # fmt: skip
        pid = self.pids[name] = fork_child(birth)
        os.close(memory)
        os.close(lifeline)
        self._lifelines.setdefault(name, []).append(end)
        return pid

    def cut_lifeline(self, name: str) -> None:
        for lifeline in self._lifelines.pop(name):
            os.close(lifeline)

    def reap(self, name: str) -> int:
        """Wait for the worker's end; its exit status (negative: the signal)."""
        _, status = os.waitpid(self.pids.pop(name), 0)
        self.statuses[name] = os.waitstatus_to_exitcode(status)
        return self.statuses[name]

    async def exited(self, name: str | None = None) -> int:
        """The exit status of a worker, waited for without blocking the loop."""
        name = name or next(iter(self.pids))
        pidfd = os.pidfd_open(self.pids[name])
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, lambda: None if gone.done() else gone.set_result(None))
        try:
            await asyncio.wait_for(gone, PATIENCE_S)
        finally:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        return self.reap(name)

    # ------------------------------------------------------------------ the coordinator's part

    async def expect(self, kind: type[T], timeout_s: float = PATIENCE_S) -> T:
        """The next message of this kind; others before it are kept in `seen`."""
        _, body = await self.expect_from(kind, timeout_s)
        return body

    async def expect_from(self, kind: type[T], timeout_s: float = PATIENCE_S) -> tuple[str, T]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            delivery = await self.coordinator.receive(timeout_s=max(0.0, deadline - asyncio.get_running_loop().time()))
            assert delivery is not None, f"no {kind.__name__} within {timeout_s} s; seen: {list(self.seen)}"
            delivery.ack()
            if delivery.type == TYPE_OF[kind]:
                return delivery.sender, delivery.decode(kind)
            self.seen.append((delivery.sender, delivery.body))

    async def started(self, incarnation: int = 1, **kwargs: Any) -> Ready:
        """Start the first worker and wait for its `Ready`."""
        self.start(incarnation=incarnation, **kwargs)
        return await self.expect(Ready)

    def post(self, agent: str, struct: msgspec.Struct, priority: str = "normal") -> None:
        self.coordinator.post_struct(agent, struct, priority=priority)

    def assign(self, agent: str, number: int, input: Any = "", **fields: Any) -> None:
        fields = {"attempt": 1, "incarnation": 1, **fields}
        self.post(agent, Assign(number=number, input=input, **fields))

    async def run(self, agent: str, number: int, input: Any = "", **fields: Any) -> Result:
        """Assign one task and wait for its result."""
        self.assign(agent, number, input, **fields)
        result = await self.expect(Result)
        assert result.number == number
        return result

    async def drained(self, agent: str, **fields: Any) -> Drained:
        self.post(agent, Drain(**fields), priority="control")
        return await self.expect(Drained)

    def status(self, agent: str) -> StatusPage | None:
        return read_status(self.store, agent)

    def page(self, agent: str, fits: Callable[[StatusPage], object] = bool) -> StatusPage:
        """The agent's status page as soon as it fits."""

        def look() -> StatusPage | None:
            found = self.status(agent)
            return found if found is not None and fits(found) else None

        found = eventually(look, PATIENCE_S)
        assert found is not None
        return found

    def below(self, name: str | None = None) -> list[int]:
        """Processes below a worker."""
        return tree.descendants_of(self.pids[name or next(iter(self.pids))])


@contextlib.asynccontextmanager
async def one_agent(tmp_path: Path, **kind: Any) -> AsyncIterator[World]:
    """A world of one agent `w`, started and ready."""
    fleet, store = kind.pop("fleet", {}), kind.pop("store", "world")
    async with World(tmp_path / store, AgentSpec(name="w", **kind), **fleet) as world:
        await world.started()
        yield world


async def next_delivery(bus: Bus, timeout_s: float = PATIENCE_S) -> Delivery:
    delivery = await bus.receive(timeout_s=timeout_s)
    assert delivery is not None, "no message"
    return delivery
