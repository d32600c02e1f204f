"""A fleet in one process on virtual time: muster's own coordinator, ledger and agents, and everything around them simulated.

Real: `Shell`, `Intake`, `Machine`, `OutputFlow`, `Bus`, `Runner`, `Outbox`, `Ledger`. Simulated: the transport below the bus, the disk, the
processes, the spawner's loop, the operator, time. So a seed drives the code that a fleet runs, and whatever it finds is found there.

The method is FoundationDB's (Zhou et al., SIGMOD 2021): all chance from one seed, faults for a while, then none, and everything must come
to its end. Which faults a seed has at all is drawn as well, as in swarm testing (Groce et al., ISSTA 2012): faults that hide each other
meet seeds in which they are alone.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

from muster.coordinator.events import FleetResized, HoldersGone, WatchHolder
from muster.coordinator.locks.facts import is_watched
from muster.coordinator.machine import Machine
from muster.coordinator.resizing import resized
from muster.coordinator.shell import Shell
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.spec import kind_of, roster, teams
from muster.testing.simulator.clients import LockClient
from muster.testing.simulator.disk import LogFile, Paper
from muster.testing.simulator.lanes import Lanes
from muster.testing.simulator.operator import SimOperator
from muster.testing.simulator.scenario import Scenario
from muster.testing.simulator.spawner import SimSpawner
from muster.testing.simulator.timeline import Killed, Process, Timeline
from muster.testing.simulator.watch import Violated, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.coordinator.state import State

#: Steps that even the longest run does not take.
STEPS_MAX: Final = 2_000_000
#: Lines of the story that are kept when nobody asked for all of them.
LINES_KEPT: Final = 40


@dataclass
class Story:
    """What happened, as lines, and their digest."""

    keep_all: bool = False
    lines: deque[str] = field(default_factory=deque)
    count: int = 0
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    def add(self, line: str) -> None:
        """One more line."""
        self.count += 1
        self._hash.update(line.encode())
        self.lines.append(line)
        if not self.keep_all and len(self.lines) > LINES_KEPT:
            self.lines.popleft()

    @property
    def digest(self) -> str:
        """Equal for equal histories."""
        digest: str = self._hash.hexdigest()
        return digest


class World:
    """One fleet and its fate."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        make_machine: Callable[[State | None], Machine] = Machine,
        make_shell: Callable[..., Shell] = Shell,
        keep_story: bool = False,
    ) -> None:
        """`make_machine`, `make_shell`: what decides and what carries out; tests plant bugs there."""
        seed = scenario.seed
        self.scenario, self.spec = scenario, scenario.spec
        self.tasks = {task.number: task for task in scenario.tasks}
        self.make_machine, self.make_shell = make_machine, make_shell
        self.timeline = Timeline()
        # A generator for each concern: a change in one leaves the others as they were, so that seeds stay comparable.
        self.rng_time, self.rng_work, self.rng_faults = (
            Random(f"{seed} {what}") for what in ("time", "work", "faults")
        )
        self.are_faults_on = True
        self.is_told = True
        self.story = Story(keep_all=keep_story)
        self._pids = 1000
        self.lanes = Lanes(self.timeline, Random(f"{seed} lanes"), self.draw_delay, scenario.faults.room)
        self._logs: dict[str, LogFile] = {}
        self.paper = Paper()
        self.watch = Watch(self)
        self.lanes.on_store = self.watch.stored
        for name in (COORDINATOR, *teams(scenario.spec), *roster(scenario.spec)):
            self.lanes.roster.setdefault(name)
        #: Numbers whose submission was stored.
        self.accepted: dict[int, None] = {}
        self.heard: list[tuple[str, str]] = []
        self._watched_holders: set[tuple[int, int]] = set()
        self.operator = SimOperator(self)
        self.spawner = SimSpawner(self)
        self.rng_clients = Random(f"{seed} clients")
        self.clients: list[LockClient] = []
        for number in range(scenario.clients):
            self._start_client(f"client-{number + 1}")
        self.timeline.later(0.0, self.spawner.start_root)
        scenario.plan(self)

    # ------------------------------------------------------------------ what everything asks of the world

    def tell(self, who: str, what: str) -> None:
        """A line of the story."""
        self.story.add(f"{self.timeline.now_s:11.6f} {who}: {what}")

    def new_pid(self) -> int:
        """A process id that nobody had."""
        self._pids += 1
        return self._pids

    def process(self, name: str) -> Process:
        """A new process."""
        return Process(self.timeline, name, self.new_pid(), self._strike)

    def log_of(self, coordinator: str) -> LogFile:
        """The log of the root or of a team, which outlives its processes."""
        if coordinator not in self._logs:
            self._logs[coordinator] = LogFile(self.scenario.record_facts, self.scenario.snapshot_facts)
        return self._logs[coordinator]

    def resize(self, effect: FleetResized) -> None:
        """The fleet has another number of agents: roster and description, as `coordinator.resizing` does it."""
        self.spec = resized(self.spec, effect.counts)
        for agent in effect.new:
            kind_of(self.spec, agent)  # whose inbox is made has the bounds of its kind
            self.lanes.roster.setdefault(agent)

    def _strike(self, process: Process, what: str) -> None:
        if not self.are_faults_on or process.name == OPERATOR:
            return
        faults = self.scenario.faults
        is_coordinator = process.name in self.spawner.coordinators
        chance = faults.coordinator_dies_at_step if is_coordinator else faults.worker_dies_at_step
        if chance and self.rng_faults.random() < chance:
            self.tell(process.name, f"dies at: {what}")
            raise Killed

    def chance(self, fault: str) -> bool:
        """Whether a fault of the scenario strikes now."""
        probability: float = getattr(self.scenario.faults, fault)
        return self.are_faults_on and probability > 0 and self.rng_faults.random() < probability

    def draw_delay(self, rng: Random) -> float:
        """How long a message is on its way: mostly a fraction of a millisecond, sometimes very long."""
        if self.are_faults_on and rng.random() < self.scenario.faults.late:
            return rng.uniform(0.05, self.scenario.faults.late_s)
        return rng.uniform(0.0001, 0.002)

    def draw_turn_delay(self) -> float:
        """How long a turn of a coordinator has to wait for the processor."""
        if self.are_faults_on and self.rng_time.random() < self.scenario.faults.late:
            return self.rng_time.uniform(0.05, 0.5)
        return self.rng_time.uniform(0.0, 0.001)

    def draw_work(self, number: int) -> tuple[float, Literal["done", "failed", "killed"]]:
        """How long a task takes, and how it ends."""
        scenario, rng = self.scenario, self.rng_work
        work_s = rng.expovariate(1 / scenario.work_s)
        fails = rng.random() < scenario.failing and self.are_faults_on
        if number in scenario.hopeless:
            return work_s, "failed"
        return work_s, ("killed" if rng.random() < 0.2 else "failed") if fails else "done"

    def state_of(self, coordinator: str) -> State | None:
        """What a living coordinator believes."""
        living = self.spawner.coordinators.get(coordinator)
        return living.shell.machine.state if living is not None and living.shell is not None else None

    def cut_the_power(self) -> None:
        """Everything of the fleet dies at once; the next spawner on the store has proven it, and the front door submits its input again."""
        if not self.are_faults_on or self.spawner.is_over:
            return
        self.tell("world", "everything dies")
        self.spawner.kill_all()
        self.spawner = SimSpawner(self)
        self.timeline.later(self.rng_time.uniform(0.1, 1.0), self.spawner.start_root)
        self.scenario.plan_input(self)

    # ------------------------------------------------------------------ programs that hold locks

    #: Of process ids: there is only one here.
    NAMESPACE: Final = 1

    def _start_client(self, name: str) -> None:
        self.lanes.prompt.add(name)
        self.clients.append(LockClient(self, name, self.rng_clients))

    def client_died(self, client: LockClient) -> None:
        """Whoever watches it is told; another one takes its place."""
        self.tell(client.name, "was killed")
        self.clients.remove(client)
        self.timeline.later(self.draw_delay(self.rng_time), self._holder_gone, client.process.pid)
        self.timeline.later(0.5, self._start_client, client.name)

    def watch_holder(self, holder: WatchHolder) -> None:
        """The root wants to know when a process ends."""
        self._watched_holders.add((holder.pid, holder.start_time))
        if not any(client.process.pid == holder.pid for client in self.clients):
            self.timeline.later(0.0, self._holder_gone, holder.pid)

    def watch_again(self, state: State) -> None:
        """A new root watches everybody who holds something."""
        self._watched_holders.clear()
        for lock in state.locks.locks.values():
            if is_watched(state, lock):
                self.watch_holder(WatchHolder(lock.pid, lock.start_time, lock.namespace))

    def _holder_gone(self, pid: int) -> None:
        root = self.spawner.root
        if (pid, pid) in self._watched_holders and root is not None and root.shell is not None:
            shell = root.shell
            self._watched_holders.discard((pid, pid))
            shell.intake.facts.append(HoldersGone(shell.clock.now_s(), [(pid, pid)]))
            root.ask_turn()

    # ------------------------------------------------------------------ running

    def run_for(self, seconds: float) -> None:
        """Let time pass, or until the fleet is over."""
        until_s = self.timeline.now_s + seconds
        while not self.spawner.is_over:
            next_s = self.timeline.next_s
            if next_s is None or next_s > until_s:
                self.timeline.now_s = until_s
                return
            self._step()

    def settle(self, seconds: float) -> None:
        """Faults off: within so long everything must come to its end. Raises Violated."""
        self.are_faults_on = False
        self.tell("world", "faults are off")
        for process in self.living():
            process.go_on()
        self.scenario.calm(self)
        until_s = self.timeline.now_s + seconds
        while not self.spawner.is_over:
            next_s = self.timeline.next_s
            if next_s is None or next_s > until_s:
                raise Violated("liveness", f"{seconds:.0f} s after the last fault it is not over: {self.stuck()}")
            self._step()
        self.scenario.check_end(self)

    def _step(self) -> None:
        if self.timeline.steps > STEPS_MAX:
            raise Violated("liveness", f"{STEPS_MAX} steps and no end: {self.stuck()}")
        self.timeline.step()

    def living(self) -> list[Process]:
        """Every process of the fleet that lives."""
        workers = [worker.process for worker in self.spawner.workers.values()]
        return [*workers, *(coordinator.process for coordinator in self.spawner.coordinators.values())]

    def stuck(self) -> str:
        """What is not over, for a person who has to find out why."""
        state = self.state_of(COORDINATOR)
        if state is None:
            return "no root lives"
        workers = ", ".join(f"{worker.name} {worker.state}" for worker in state.workers.values())
        tasks = ", ".join(f"{task.number} {task.state}" for task in list(state.tasks.values())[:10])
        said = "" if self.operator.has_said_all else "; the operator waits for an answer"
        return f"phase {state.phase}, tasks: {tasks or 'none'}; workers: {workers}{said}"
