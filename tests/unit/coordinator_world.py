"""A real coordinator on a real store and bus, with agents, operator and spawner played by the test in the same loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, write_spec
from muster.coordinator import main as main_module
from muster.core.orders import (
    ExitSeen,
    Finished,
    KillWorker,
    ListWorkers,
    SpawnWorker,
    ToSpawner,
    WorkerExited,
    WorkerList,
    WorkerStarted,
)
from muster.core.protocol import (
    Assign,
    Drain,
    Drained,
    InputEnd,
    Ping,
    Pong,
    Ready,
    Result,
    RollCall,
    RunEnded,
    Submit,
    TaskInput,
    TaskOutput,
)
from muster.core.spec import AgentSpec, FleetSpec, RetrySpec, RunSpec, roster, teams
from muster.security.keys import Keyring, load_master
from muster.testing.waiting import eventually_async


class Agent:
    """Answers assignments with what `work(assign) -> dict of Result fields` says; None leaves the task in hand."""

    def __init__(self, world, name, incarnation):
        self.world, self.name, self.incarnation = world, name, incarnation
        self.holding: list[tuple[int, int]] = []
        self.seen: list[tuple[int, int]] = []
        self.gone = False

    async def live(self):
        self.bus = await Bus.open(self.world.store, self.name, self.world.keyring(self.name), wait_s=5)
        try:
            self.bus.post_struct(self.world.name, Ready(incarnation=self.incarnation, pid=os.getpid(), slots=1))
            while not self.gone:
                delivery = await self.bus.receive()
                assert delivery is not None, "a wait without a limit ends with a delivery"
                self.take(delivery)
                delivery.ack()
        finally:
            await self.bus.close()
        self.world.exit(self.name, self.incarnation, 0, None)

    def take(self, delivery):
        kind = delivery.type
        if kind == "task.assign":
            assign = delivery.decode(Assign)
            key = (assign.number, assign.attempt)
            if key in self.seen:
                return
            self.seen.append(key)
            self.holding.append(key)
            fields = self.world.work(assign)
            if fields is not None:
                self.end(key, **fields)
        elif kind == "agent.roll_call":
            nonce = delivery.decode(RollCall).nonce
            self.bus.post_struct(
                self.world.name, Ready(incarnation=self.incarnation, pid=1, slots=1, holding=self.holding, nonce=nonce)
            )
        elif kind == "agent.ping":
            delivery.reply(Pong(sent_ns=delivery.decode(Ping).sent_ns), type="agent.pong")
        elif kind == "agent.drain":
            if delivery.decode(Drain).now or True:
                for key in list(self.holding):
                    self.end(key, outcome="cancelled")
            self.bus.post_struct(self.world.name, Drained(incarnation=self.incarnation))
            self.gone = True

    def end(self, key, **fields):
        self.holding.remove(key)
        fields.setdefault("outcome", "done")
        out = fields.get("stdout", b"")
        fields.setdefault("stdout_bytes", len(out))
        self.bus.post_struct(
            self.world.name, Result(number=key[0], attempt=key[1], incarnation=self.incarnation, **fields)
        )


class CoordinatorWorld:
    #: Who is under test.
    name = "coordinator"

    def __init__(self, tmp_path, *, agents=2, run=None, **spec):
        self.store = create_store(tmp_path / "fleet")
        self.results = tmp_path / "results.jsonl"
        self.report = tmp_path / "report.json"
        run = {"results": str(self.results), "report": str(self.report)} if run is None else run
        self.spec = FleetSpec(
            name="test", store_id="0" * 32, agents=(AgentSpec(name="w", count=agents, command=("true",)),),
            run=RunSpec(**run) if run is not False else None, grace_s=2.0, retry=RetrySpec(attempts_max=2, backoff_s=0.01), **spec,
        )  # fmt: skip
        write_spec(self.store, self.spec)
        for name in ("coordinator", "operator", *teams(self.spec), *roster(self.spec)):
            add_agent(self.store, name)
        self.work: Callable[[Any], dict[str, Any] | None] = lambda assign: {"stdout": f"out {assign.input}\n".encode()}
        self.agents: dict[str, tuple[Agent, asyncio.Task]] = {}
        self.alive: dict[str, int] = {}
        self.exits: dict[tuple[str, int], WorkerExited] = {}
        self.restarts = -1
        self.finished: int | None = None
        self.kills: list[KillWorker] = []
        self.outputs: list[TaskOutput] = []
        self.ended: RunEnded | None = None
        self.operator: Bus | None = None
        self.tasks: list[asyncio.Task] = []
        self.control: socket.socket | None = None

    def hang_up(self):
        if self.control is not None and self.control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            self.control.close()

    def keyring(self, name):
        return Keyring.from_master(load_master(self.store), name)

    # ------------------------------------------------------------------ the spawner

    def start(self) -> asyncio.Task:
        """Start a coordinator; its exit status is the task's result."""
        self.restarts += 1
        self.hang_up()
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        self.control = mine
        loop = asyncio.get_running_loop()
        loop.add_reader(mine.fileno(), self._obey)
        task = asyncio.create_task(main_module._coordinate(self.store, theirs.detach(), self.name))
        self.tasks.append(task)
        return task

    def say(self, message):
        assert self.control is not None, "no coordinator was started"
        with contextlib.suppress(OSError):
            self.control.send(msgspec.msgpack.encode(message))

    def _obey(self):
        assert self.control is not None, "no coordinator was started"
        while True:
            try:
                record, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 4)
            except OSError:
                return
            for fd in fds:
                os.close(fd)
            if not record:
                self.hang_up()
                return
            message = msgspec.msgpack.decode(record, type=ToSpawner)
            if isinstance(message, ListWorkers):
                alive = [WorkerStarted(worker=w, incarnation=i, pid=1, start_time=1) for w, i in self.alive.items()]
                exited = list(self.exits.values())
                incarnation = self.restarts + 1
                self.say(
                    WorkerList(alive=alive, exited=exited, coordinator_restarts=self.restarts, incarnation=incarnation)
                )
            elif isinstance(message, SpawnWorker):
                self.alive[message.worker] = message.incarnation
                agent = Agent(self, message.worker, message.incarnation)
                task = asyncio.create_task(agent.live())
                self.agents[message.worker] = (agent, task)
                self.tasks.append(task)
                self.say(WorkerStarted(worker=message.worker, incarnation=message.incarnation, pid=1, start_time=1))
            elif isinstance(message, ExitSeen):
                self.exits.pop((message.worker, message.incarnation), None)
            elif isinstance(message, KillWorker):
                self.kills.append(message)
            elif isinstance(message, Finished):
                self.finished = message.exit_status

    def exit(self, worker, incarnation, status, signal):
        del self.alive[worker]
        message = WorkerExited(worker=worker, incarnation=incarnation, pid=1, exit_status=status, signal=signal)
        self.exits[worker, incarnation] = message
        self.say(message)

    async def kill(self, worker):
        """SIGKILL, as far as the coordinator can see it: gone without a word, then proven dead."""
        agent, task = self.agents[worker]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.exit(worker, agent.incarnation, None, 9)

    # ------------------------------------------------------------------ the operator

    async def operate(self):
        """Read what the coordinator tells, until the last word."""
        self.operator = await Bus.open(self.store, "operator", self.keyring("operator"))
        self.tasks.append(asyncio.create_task(self._read()))

    async def _read(self):
        while self.ended is None:
            assert self.operator is not None, "the operator left while it was reading"
            delivery = await self.operator.receive()
            assert delivery is not None, "a wait without a limit ends with a delivery"
            if delivery.type == "task.output":
                output = delivery.decode(TaskOutput)
                assert self.spec.run is not None, "a fleet without a run has no results to show"
                assert self.spec.run.results is None or output.number in self.recorded(), "shown before it was written"
                self.outputs.append(output)
            elif delivery.type == "run.ended":
                self.ended = delivery.decode(RunEnded)
            delivery.ack()

    def submit(self, count, *, start=1, end=True):
        assert self.operator is not None, "`operate` opens the operator's bus"
        self.operator.post_struct(
            "coordinator", Submit(tasks=[TaskInput(n, f"i{n}") for n in range(start, start + count)])
        )
        if end:
            self.operator.post_struct("coordinator", InputEnd(total=start + count - 1))

    def recorded(self) -> list[int]:
        return [line["task"] for line in self.lines()]

    def lines(self):
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_bytes().splitlines()]

    async def until(self, predicate, what=""):
        await eventually_async(predicate, 10.0, what)

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.operator is not None:
            await self.operator.close()
        self.hang_up()
