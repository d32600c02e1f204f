"""The simulated spawner: the real `Ledger` of lives and deaths, and processes that are timers.

It never dies by itself: when it does (`World.cut_the_power`), everything dies, and the next start has proven that.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core.names import COORDINATOR
from muster.core.orders import (
    ExitSeen,
    Finished,
    KillWorker,
    ListWorkers,
    Reown,
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
        self.name = process.name
        self.received: deque[Any] = deque()
        self.is_lost = False
        self.on_change: Callable[[], None] = lambda: None
        self._on_way: deque[tuple[ToSpawner, bytes]] = deque()
        self._last_up_s = self._last_down_s = 0.0

    def send(self, message: ToSpawner, grant: Callable[[], bytes] | None = None) -> None:
        """From the coordinator to the spawner."""
        self._process.io(f"order {type(message).__name__}")
        content = grant() if grant is not None else b""
        world = self._world
        self._on_way.append((_to_spawner.decode(_encode(message)), content))
        self._last_up_s = max(self._last_up_s, world.timeline.now_s + world.draw_delay(world.rng_time))
        world.timeline.later(self._last_up_s - world.timeline.now_s, self._arrive)
        self._process.io(f"ordered {type(message).__name__}")

    def _arrive(self) -> None:
        if self._on_way:
            self._spawner.obey(self, *self._on_way.popleft())

    def hear_to_the_end(self) -> None:
        """Its process is dead: what it said before comes first."""
        while self._on_way:
            self._arrive()

    def tell(self, message: ToCoordinator) -> None:
        """From the spawner to the coordinator."""
        world = self._world
        self._last_down_s = max(self._last_down_s, world.timeline.now_s + world.draw_delay(world.rng_time))
        delay_s = self._last_down_s - world.timeline.now_s
        world.timeline.later(delay_s, self._process.run, self._hear, _to_coordinator.decode(_encode(message)))

    def _hear(self, message: ToCoordinator) -> None:
        self.received.append(message)
        self.on_change()

    async def flush(self, timeout_s: float) -> None:
        """Everything is on its way already."""

    def close(self) -> None: ...


class SimSpawner:
    """Forks, reaps, proves; carries out orders. The rules are those of `supervise.family`, the books its own `Ledger`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = Ledger()
        self.workers: dict[int, SimWorker] = {}
        #: Living coordinators and the links to them, by name.
        self.coordinators: dict[str, SimCoordinator] = {}
        self.links: dict[str, Link] = {}
        self.births: Counter[str] = Counter()
        self.finished: int | None = None
        #: Processes of dead workers that live on: pid -> what they are.
        self.orphans: dict[int, Execution] = {}
        self._sweeping = False
        self._stop: StopFleet | None = None
        self.is_over = False

    # ------------------------------------------------------------------ the root

    @property
    def root(self) -> SimCoordinator | None:
        """The living root."""
        return self.coordinators.get(COORDINATOR)

    def start_root(self) -> None:
        """Fork the next root."""
        if self.is_over or self.root is not None:
            return
        process = self._fork_coordinator(COORDINATOR)
        process.on_exit = self._root_died
        if self._stop is not None:
            self.links[COORDINATOR].tell(self._stop)

    def _fork_coordinator(self, name: str) -> Process:
        world = self.world
        self.births[name] += 1
        process = world.process(name)
        link = self.links[name] = Link(self, process)
        self.coordinators[name] = coordinator = SimCoordinator(world, process, link)
        self.ledger.reown(name, name)
        world.tell("spawner", f"forks {name}, for the {self.births[name]}. time")
        process.call_later(world.draw_delay(world.rng_time), coordinator.begin)
        return process

    def _coordinator_gone(self, name: str) -> None:
        self.links[name].hear_to_the_end()
        self.links.pop(name).is_lost = True
        del self.coordinators[name]

    def _root_died(self, status: int | None, signal: int | None) -> None:
        self.world.tell("spawner", f"the root ended with status {status}, signal {signal}")
        self._coordinator_gone(COORDINATOR)
        if self.is_over:
            return
        if self.finished is not None:
            self._end()
        else:
            self.world.timeline.later(RESTART_S, self.start_root)

    def stop(self, mode: Any, reason: str) -> None:
        """Ask for the end of the fleet."""
        self._stop = StopFleet(mode=mode, reason=reason)
        self.world.tell("spawner", f"is asked to stop: {mode}")
        if COORDINATOR in self.links:
            self.links[COORDINATOR].tell(self._stop)

    def _end(self) -> None:
        """The fleet is over: whatever is left is killed, and proven dead."""
        self.kill_all()
        self.world.tell("spawner", f"ends with status {self.finished}")

    def kill_all(self) -> None:
        """It ends, and with it everything below it, also what resisted."""
        self.is_over = True
        for coordinator in list(self.coordinators.values()):
            coordinator.process.kill()
        for worker in list(self.workers.values()):
            worker.process.kill()
        for orphan in self.orphans.values():
            self.world.watch.killed(orphan)
        self.orphans.clear()

    # ------------------------------------------------------------------ orders

    def obey(self, link: Link, message: ToSpawner, content: bytes) -> None:
        """Carry out one order."""
        sender, ledger = link.name, self.ledger
        match message:
            case SpawnWorker():
                self._start(link, message, content)
            case KillWorker(worker=worker, incarnation=incarnation, signal=number):
                entry = ledger.find(worker, incarnation)
                if entry is not None and ledger.owner_of(worker, incarnation) == sender:
                    self.world.watch.ordered_to_kill(sender, worker, incarnation, number)
                    self._signal(entry, number)
            case ListWorkers():
                self._list(link, sender)
            case ExitSeen(worker=worker, incarnation=incarnation):
                if ledger.owner_of(worker, incarnation) == sender:
                    ledger.acknowledged(worker, incarnation)
            case Reown(source=source, target=target):
                ledger.reown(source, target)
                self._list(link, source)
            case Finished(exit_status=status):
                self.finished = status

    def _list(self, link: Link, of: str) -> None:
        link.tell(self.ledger.listing(max(0, self.births[of] - 1), of))

    def _signal(self, entry: WorkerStarted, number: int) -> None:
        if entry.worker in self.coordinators:
            self.coordinators[entry.worker].process.kill()
        elif number == 9:
            self.workers[entry.pid].process.kill()
        else:
            worker = self.workers[entry.pid]
            worker.process.run(worker.signal, number)

    def _start(self, link: Link, order: SpawnWorker, content: bytes) -> None:
        owner, key, ledger, world = link.name, (order.worker, order.incarnation), self.ledger, self.world
        if self.is_over:
            return
        if ledger.owner_of(*key) == owner:
            answer: WorkerStarted | WorkerExited | None = ledger.find(*key) or ledger.exits.get(key)
            if answer is not None:
                link.tell(answer)
            return
        if order.worker in self.links or not ledger.allows(owner, *key):
            world.tell("spawner", f"refuses {order} of {owner}")
            link.tell(WorkerExited(worker=key[0], incarnation=key[1], pid=0, exit_status=EXIT_REFUSED, signal=None))
            return
        if world.chance("fork_fails"):
            world.tell("spawner", f"cannot fork {key[0]}/{key[1]}")
            world.watch.fork_failed(*key)
            link.tell(ledger.not_started(*key, EXIT_NOT_FORKED, owner))
            return
        world.watch.forked(*key)
        pid = self._fork_team(*key) if order.is_coordinator else self._fork_worker(content)
        link.tell(ledger.started(*key, pid, pid, owner))

    def _fork_team(self, name: str, incarnation: int) -> int:
        process = self._fork_coordinator(name)
        process.on_exit = lambda status, signal: self._team_died(process, incarnation, status, signal)
        return process.pid

    def _fork_worker(self, content: bytes) -> int:
        world = self.world
        grant = msgspec.msgpack.decode(content, type=WorkerGrant)
        process = world.process(grant.worker)
        worker = self.workers[process.pid] = SimWorker(world, process, grant)
        process.on_exit = lambda status, signal: self._died(worker, status, signal)
        world.tell("spawner", f"forks {worker.name}/{worker.incarnation} for {grant.coordinator}")
        process.call_later(world.draw_delay(world.rng_time), worker.begin)
        return process.pid

    # ------------------------------------------------------------------ deaths

    def _team_died(self, process: Process, incarnation: int, status: int | None, signal: int | None) -> None:
        self.world.tell("spawner", f"reaps {process.name}/{incarnation}: status {status}, signal {signal}")
        self._coordinator_gone(process.name)
        self.world.watch.reaped(process.name, ())
        self.ledger.died(process.pid, status, signal, self.world.timeline.now_s)
        self._sweep_soon(0.0)

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
            owner = self.ledger.owner_of(exit_.worker, exit_.incarnation)
            if owner in self.links:
                self.links[owner].tell(exit_)
        if self.orphans:
            self._sweep_soon(SWEEP_S)
