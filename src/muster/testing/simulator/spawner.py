"""The simulated spawner: the real `Ledger` of lives and deaths, and processes that are timers.

It never dies by itself: when it does (`World.cut_the_power`), everything dies, and the next start has proven that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core.names import COORDINATOR
from muster.core.orders import (
    ExitSeen,
    Finished,
    KillWorker,
    ListWorkers,
    SpawnWorker,
    StopFleet,
    ToCoordinator,
    ToSpawner,
    WorkerExited,
    WorkerGrant,
    WorkerStarted,
)
from muster.supervise.ledger import SURVIVORS_AFTER_S, Ledger
from muster.testing.simulator.coordinators import SimCoordinator
from muster.testing.simulator.workers import SimWorker

if TYPE_CHECKING:
    from muster.testing.simulator.timeline import Process
    from muster.testing.simulator.watch import Execution
    from muster.testing.simulator.world import World

_encode = msgspec.msgpack.Encoder().encode
_to_spawner: msgspec.msgpack.Decoder[ToSpawner] = msgspec.msgpack.Decoder(ToSpawner)
_to_coordinator: msgspec.msgpack.Decoder[ToCoordinator] = msgspec.msgpack.Decoder(ToCoordinator)
#: Pause before a dead coordinator is started again, and before what it left behind is looked at again.
RESTART_S, SWEEP_S = 0.02, 0.05
EXIT_NOT_FORKED, EXIT_REFUSED = 71, 77


class Link:
    """The control socket of one coordinator process: both directions in order, with delays. `received` is what it has not read yet."""

    def __init__(self, spawner: SimSpawner, process: Process) -> None:
        self._spawner, self._process = spawner, process
        self._world = spawner.world
        self.received: deque[Any] = deque()
        self.is_lost = False
        self.on_change: Callable[[], None] = lambda: None
        self._last_up_s = self._last_down_s = 0.0

    def send(self, message: ToSpawner, grant: Callable[[], bytes] | None = None) -> None:
        """From the coordinator to the spawner."""
        self._process.io(f"order {type(message).__name__}")
        content = grant() if grant is not None else b""
        world = self._world
        self._last_up_s = max(self._last_up_s, world.timeline.now_s + world.draw_delay(world.rng_time))
        delay_s = self._last_up_s - world.timeline.now_s
        world.timeline.later(delay_s, self._spawner.obey, self, _to_spawner.decode(_encode(message)), content)
        self._process.io(f"ordered {type(message).__name__}")

    def tell(self, message: ToCoordinator) -> None:
        """From the spawner to the coordinator."""
        world = self._world
        self._last_down_s = max(self._last_down_s, world.timeline.now_s + world.draw_delay(world.rng_time))
        delay_s = self._last_down_s - world.timeline.now_s
        world.timeline.later(delay_s, self._process.run, self._hear, _to_coordinator.decode(_encode(message)))

    def _hear(self, message: ToCoordinator) -> None:
        self.received.append(message)
        self.on_change()

    @property
    def is_open(self) -> bool:
        """Whether its process lives."""
        return self._process.is_alive

    async def flush(self, timeout_s: float) -> None:
        """Everything is on its way already."""

    def close(self) -> None: ...


class SimSpawner:
    """Forks, reaps, proves; carries out orders."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = Ledger()
        self.workers: dict[int, SimWorker] = {}
        self.coordinators_started = 0
        self.coordinator: SimCoordinator | None = None
        self.link: Link | None = None
        self.finished: int | None = None
        #: Processes of dead workers that live on: pid -> what they are.
        self.orphans: dict[int, Execution | None] = {}
        self._sweeping = False
        self._stop: StopFleet | None = None
        self.is_over = False

    # ------------------------------------------------------------------ coordinators

    def start_coordinator(self) -> None:
        """Fork the next one."""
        if self.is_over or self.coordinator is not None:
            return
        self.coordinators_started += 1
        world = self.world
        process = world.process(COORDINATOR)
        process.on_exit = self._coordinator_died
        self.link = link = Link(self, process)
        world.tell("spawner", f"starts coordinator {self.coordinators_started}")
        self.coordinator = SimCoordinator(world, process, link)
        process.call_soon(self.coordinator.begin)
        if self._stop is not None:
            link.tell(self._stop)

    def _coordinator_died(self, status: int | None, signal: int | None) -> None:
        world = self.world
        world.tell("spawner", f"coordinator ended with status {status}, signal {signal}")
        self.coordinator = None
        if self.link is not None:
            self.link.is_lost = True
        if self.finished is not None:
            self._end()
            return
        world.timeline.later(RESTART_S, self.start_coordinator)

    def stop(self, mode: Any, reason: str) -> None:
        """Ask for the end of the fleet."""
        self._stop = StopFleet(mode=mode, reason=reason)
        self.world.tell("spawner", f"is asked to stop: {mode}")
        if self.link is not None and self.link.is_open:
            self.link.tell(self._stop)

    def _end(self) -> None:
        """The fleet is over: nothing is left behind."""
        self.kill_all()
        self.is_over = True
        self.world.tell("spawner", f"ends with status {self.finished}")

    def kill_all(self) -> None:
        """Every process of the fleet dies, and is proven dead."""
        self.is_over = True
        if self.coordinator is not None:
            self.coordinator.process.kill()
        for worker in list(self.workers.values()):
            worker.process.kill()
        for orphan in self.orphans.values():
            if orphan is not None:
                self.world.watch.killed(orphan)
        self.orphans.clear()

    # ------------------------------------------------------------------ orders

    def obey(self, link: Link, message: ToSpawner, content: bytes) -> None:
        """Carry out one order. Of a dead coordinator's last words those that start something are not heard any more."""
        match message:
            case SpawnWorker():
                if link.is_open and not self.is_over:
                    self._fork(link, message, content)
            case KillWorker(worker=worker, incarnation=incarnation, signal=number):
                entry = self.ledger.find(worker, incarnation)
                if entry is not None:
                    self.world.watch.ordered_to_kill(worker, incarnation, number)
                    hosted = self.workers[entry.pid]
                    if number == 9:
                        hosted.process.kill()
                    else:
                        hosted.process.run(hosted.signal, number)
            case ListWorkers():
                self.world.tell("spawner", "lists workers")
                link.tell(self.ledger.listing(max(0, self.coordinators_started - 1)))
            case ExitSeen(worker=worker, incarnation=incarnation):
                self.ledger.acknowledged(worker, incarnation)
            case Finished(exit_status=status):
                self.finished = status
                if not link.is_open:
                    self._end()

    def _fork(self, link: Link, order: SpawnWorker, content: bytes) -> None:
        key = order.worker, order.incarnation
        known: WorkerStarted | WorkerExited | None = self.ledger.find(*key) or self.ledger.exits.get(key)
        if known is not None:
            link.tell(known)
            return
        if self.ledger.is_dying(*key):
            return
        world = self.world
        if not self.ledger.allows(COORDINATOR, *key):
            link.tell(WorkerExited(worker=key[0], incarnation=key[1], pid=0, exit_status=EXIT_REFUSED, signal=None))
            return
        if world.chance("fork_fails"):
            world.tell("spawner", f"cannot fork {order.worker}/{order.incarnation}")
            world.watch.fork_failed(*key)
            link.tell(self.ledger.not_started(*key, EXIT_NOT_FORKED))
            return
        process = world.process(order.worker)
        worker = SimWorker(world, process, msgspec.msgpack.decode(content, type=WorkerGrant))
        world.watch.forked(worker.name, worker.incarnation)
        self.workers[process.pid] = worker
        process.on_exit = lambda status, signal: self._died(worker, status, signal)
        link.tell(self.ledger.started(*key, process.pid, process.pid))
        world.tell("spawner", f"forks {order.worker}/{order.incarnation}")
        process.call_later(world.draw_delay(world.rng_time), worker.begin)

    # ------------------------------------------------------------------ deaths

    def _died(self, worker: SimWorker, status: int | None, signal: int | None) -> None:
        world = self.world
        world.tell("spawner", f"reaps {worker.name}/{worker.incarnation}: status {status}, signal {signal}")
        world.watch.reaped(worker.name, (agent.agent for agent in worker.grant.agents))
        del self.workers[worker.process.pid]
        for execution in worker.executions.values():
            pid = world.new_pid()
            self.orphans[pid] = execution
            world.watch.orphaned(execution)
            slow = world.chance("survivors")
            delay_s = world.rng_time.uniform(SURVIVORS_AFTER_S, 4 * SURVIVORS_AFTER_S) if slow else None
            world.timeline.later(delay_s or world.rng_time.uniform(0.0, 0.3), self._orphan_gone, pid)
        self.ledger.died(worker.process.pid, status, signal, world.timeline.now_s)
        self._sweep_soon(0.0)

    def _orphan_gone(self, pid: int) -> None:
        orphan = self.orphans.pop(pid, None)
        if orphan is not None:
            self.world.watch.killed(orphan)

    def _sweep_soon(self, delay_s: float) -> None:
        if not self._sweeping:
            self._sweeping = True
            self.world.timeline.later(delay_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        if self.is_over:
            return
        for exit_ in self.ledger.settle(self.orphans, self.world.timeline.now_s):
            if self.link is not None and self.link.is_open:
                self.link.tell(exit_)
        if self.orphans:
            self._sweep_soon(SWEEP_S)
