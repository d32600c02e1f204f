"""What a seed stands for: the shape of a fleet, its work, the operator's wishes, and the faults that it meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from muster.core.names import COORDINATOR
from muster.core.protocol import InputEnd, Submit, TaskInput
from muster.core.spec import AgentSpec, ChildSpec, FleetSpec, RetrySpec, RunSpec, roster, workers

if TYPE_CHECKING:
    from muster.testing.simulator.world import World

#: Virtual seconds with faults; and without, by the end of which everything must be over.
FAULTY_S, CALM_S = 20.0, 600.0


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong: chances of one, or mean seconds between two (0: never)."""

    coordinator_dies_at_step: float = 0.0
    worker_dies_at_step: float = 0.0
    coordinator_killed_every_s: float = 0.0
    worker_killed_every_s: float = 0.0
    coordinator_stopped_every_s: float = 0.0
    worker_stopped_every_s: float = 0.0
    clock_jumps_every_s: float = 0.0
    fork_fails: float = 0.0
    start_fails: float = 0.0
    survivors: float = 0.0
    late: float = 0.0
    late_s: float = 1.0
    #: Messages that a lane holds.
    room: int = 1000

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """Some of them, each rare or frequent."""

        def some(*choices: float) -> float:
            return rng.choice(choices) if rng.random() < 0.6 else 0.0

        return cls(
            coordinator_dies_at_step=some(0.0005, 0.002, 0.01),
            worker_dies_at_step=some(0.0005, 0.002, 0.01),
            coordinator_killed_every_s=some(0.5, 3.0),
            worker_killed_every_s=some(0.2, 1.0, 5.0),
            coordinator_stopped_every_s=some(3.0, 8.0),
            worker_stopped_every_s=some(1.0, 4.0),
            clock_jumps_every_s=some(2.0, 6.0),
            fork_fails=some(0.02, 0.2),
            start_fails=some(0.02, 0.2),
            survivors=some(0.05, 0.5),
            late=some(0.01, 0.1),
            late_s=rng.choice([0.2, 1.0, 3.0]),
            room=rng.choice([3, 20, 1000]),
        )


@dataclass(frozen=True)
class Scenario:
    """One seed's world, before anything has happened in it."""

    seed: int
    spec: FleetSpec
    faults: Faults
    tasks: list[TaskInput]
    #: Mean duration of a task, and the chance that an attempt fails.
    work_s: float = 0.1
    failing: float = 0.1
    #: Tasks every attempt of which fails, also when all faults are off.
    hopeless: frozenset[int] = frozenset()
    #: Facts in a record of the log, and between two snapshots.
    record_facts: int = 3
    snapshot_facts: int = 40
    #: Tasks -> those that must be done before.
    needs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    agents: list[str] = field(default_factory=list)
    #: Processes that may be struck.
    mortals: frozenset[str] = frozenset()

    @classmethod
    def draw(cls, seed: int, **wishes: Any) -> Scenario:
        """The scenario of a seed. `wishes` replace what was drawn."""
        rng = Random(f"{seed} scenario")
        spec = draw_spec(seed, rng)
        tasks = [TaskInput(number, f"input {number}") for number in range(1, rng.randint(15, 60))]
        drawn: dict[str, Any] = {
            "faults": Faults.draw(rng),
            "tasks": tasks,
            "work_s": rng.choice([0.01, 0.1, 0.5]),
            "failing": rng.choice([0.0, 0.1, 0.4]),
            "hopeless": frozenset(rng.sample(range(1, len(tasks)), rng.choice([0, 0, 2]))),
            "record_facts": rng.choice([1, 3, 1000]),
            "snapshot_facts": rng.choice([10, 60, 10_000]),
            "agents": roster(spec),
            "mortals": frozenset([COORDINATOR, *workers(spec)]),
        }
        return cls(seed=seed, spec=spec, **{**drawn, **wishes})

    # ------------------------------------------------------------------ what the world is told to do

    def plan(self, world: World) -> None:
        """Everything that is to happen, into the timeline."""
        self._plan_input(world)
        faults, rng = self.faults, world.rng_faults
        for every_s, strike in (
            (faults.coordinator_killed_every_s, self._kill_coordinator),
            (faults.worker_killed_every_s, self._kill_worker),
            (faults.coordinator_stopped_every_s, self._stop_coordinator),
            (faults.worker_stopped_every_s, self._stop_worker),
            (faults.clock_jumps_every_s, self._jump),
        ):
            if every_s:
                world.timeline.later(rng.expovariate(1 / every_s), self._again, world, every_s, strike)

    def _plan_input(self, world: World) -> None:
        rng, tasks, at_s = world.rng_work, list(self.tasks), 0.0
        while tasks:
            size = rng.randint(1, 8)
            world.timeline.later(at_s, self._submit, world, tasks[:size])
            tasks = tasks[size:]
            at_s += rng.choice([0.0, 0.01, 0.5])
        world.timeline.later(at_s, world.operator.send, InputEnd(total=len(self.tasks)))

    @staticmethod
    def _submit(world: World, tasks: list[TaskInput]) -> None:
        world.operator.send(Submit(tasks=tasks), lambda: world.accepted.update(dict.fromkeys(t.number for t in tasks)))

    # ------------------------------------------------------------------ faults

    def _again(self, world: World, every_s: float, strike: Any) -> None:
        if world.are_faults_on and not world.spawner.is_over:
            strike(world)
            world.timeline.later(world.rng_faults.expovariate(1 / every_s), self._again, world, every_s, strike)

    @staticmethod
    def _kill_coordinator(world: World) -> None:
        if world.spawner.coordinator is not None:
            world.spawner.coordinator.process.kill()

    @staticmethod
    def _kill_worker(world: World) -> None:
        if world.spawner.workers:
            world.rng_faults.choice(list(world.spawner.workers.values())).process.kill()

    @staticmethod
    def _stop_coordinator(world: World) -> None:
        if world.spawner.coordinator is not None:
            process = world.spawner.coordinator.process
            world.tell(process.name, "is stopped")
            process.stop()
            world.timeline.later(world.rng_faults.choice([0.1, 2.0, 30.0]), process.go_on)

    @staticmethod
    def _stop_worker(world: World) -> None:
        if world.spawner.workers:
            process = world.rng_faults.choice(list(world.spawner.workers.values())).process
            world.tell(process.name, "is stopped")
            process.stop()
            world.timeline.later(world.rng_faults.choice([0.1, 2.0, 30.0]), process.go_on)

    @staticmethod
    def _jump(world: World) -> None:
        world.timeline.jump_s += world.rng_faults.choice([-3600.0, 3600.0])
        world.tell("world", f"the wall clock is off by {world.timeline.jump_s:.0f} s")

    # ------------------------------------------------------------------ the second phase

    def calm(self, world: World) -> None:
        """Take back what would keep the fleet from its end for ever."""

    def check_end(self, world: World) -> None:
        """What must hold when it is over. Raises Violated."""
        watch = world.watch
        for number in world.accepted:
            if world.spec.run is not None and watch.lines[number] != 1 + world.reopened[number]:
                watch.fail("nothing-lost", f"task {number} is recorded {watch.lines[number]} times")
        running = [str(execution) for found in watch.live.values() for execution in found]
        if running:
            watch.fail("nothing-left", f"after the end there still runs: {', '.join(running)}")
        if watch.finish is None or watch.finish.reason != "complete":
            watch.fail("liveness", f"it ended otherwise than complete: {watch.finish}")


def draw_spec(seed: int, rng: Random) -> FleetSpec:
    """The shape of a fleet."""
    restless = ChildSpec(restarts_max=10**6)  # crash loops are the faults' doing here: nobody is given up
    kind = AgentSpec(name="a", count=rng.randint(2, 6), command=("true",), slots=rng.choice([1, 1, 2]), child=restless)
    return FleetSpec(
        name="simulated",
        store_id=f"{seed:032x}",
        agents=(kind,),
        run=RunSpec(results="/nowhere/results"),
        agents_per_worker=rng.choice([1, 1, 2]),
        retry=RetrySpec(attempts_max=rng.choice([1, 3, 5]), deaths_max=10**6, backoff_s=0.2, backoff_max_s=2.0),
        grace_s=10.0,
    )
