"""A fleet in one process on virtual time: muster's own coordinator, ledger and agents, and everything around them simulated.

Real: `Shell`, `Intake`, `Machine`, `OutputFlow`, `Bus`, `Runner`, `Outbox`, `Ledger`. Simulated: the transport below the bus, the disk, the
processes, the spawner's loop, the operator, time. So a seed drives the code that a fleet runs, and whatever it finds is found there.

The method is FoundationDB's (Zhou et al., SIGMOD 2021): all chance from one seed, faults for a while, then none, and everything must come
to its end. Which faults a seed has at all is drawn as well, as in swarm testing (Groce et al., ISSTA 2012): faults that hide each other
meet seeds in which they are alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

from muster.coordinator.machine import Machine
from muster.coordinator.shell import Shell
from muster.core.names import COORDINATOR
from muster.testing.simulator.disk import LogFile, Paper
from muster.testing.simulator.lanes import Lanes
from muster.testing.simulator.operator import SimOperator
from muster.testing.simulator.scenario import Scenario
from muster.testing.simulator.spawner import SimSpawner
from muster.testing.simulator.timeline import Killed, Process, Timeline
from muster.testing.simulator.watch import NUMBER_MASK, Violated, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.coordinator.state import Agent, State

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
        self.scenario, self.spec, self.needs = scenario, scenario.spec, scenario.needs
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
        self.log_file = LogFile(scenario.record_facts, scenario.snapshot_facts)
        self.paper = Paper()
        self.watch = Watch(self)
        self.lanes.on_store = self.watch.stored
        for name in (COORDINATOR, *scenario.agents):
            self.lanes.roster.setdefault(name)
        #: Numbers whose submission was stored; how often each was opened again by the operator.
        self.accepted: dict[int, None] = {}
        self.reopened: Counter[int] = Counter()
        self.heard: list[tuple[str, str]] = []
        self.coordinators = 0
        self.operator = SimOperator(self)
        self.spawner = SimSpawner(self)
        self.timeline.later(0.0, self.spawner.start_coordinator)
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

    def _strike(self, process: Process, what: str) -> None:
        if not self.are_faults_on or process.name not in self.scenario.mortals:
            return
        faults = self.scenario.faults
        chance = faults.coordinator_dies_at_step if process.name == COORDINATOR else faults.worker_dies_at_step
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

    @property
    def state(self) -> State | None:
        """What the living coordinator believes."""
        coordinator = self.spawner.coordinator
        if coordinator is None or coordinator.shell is None:
            return None
        return coordinator.shell.machine.state

    @staticmethod
    def waiting_for(state: State, agent: Agent) -> list[int]:
        """Keys of queued tasks that `agent` could do."""
        found = [key for kind in ("", agent.kind) for key in state.queues.get(kind, ())]
        return [key for key in found if key & NUMBER_MASK in state.tasks]

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
        found = [worker.process for worker in self.spawner.workers.values()]
        if self.spawner.coordinator is not None:
            found.append(self.spawner.coordinator.process)
        return found

    def stuck(self) -> str:
        """What is not over, for a person who has to find out why."""
        state = self.state
        if state is None:
            return "no coordinator lives"
        workers = ", ".join(f"{worker.name} {worker.state}" for worker in state.workers.values())
        tasks = ", ".join(f"{task.number} {task.state}" for task in list(state.tasks.values())[:10])
        said = "" if self.operator.has_said_all else "; the operator waits for an answer"
        return f"phase {state.phase}, tasks: {tasks or 'none'}; workers: {workers}{said}"
