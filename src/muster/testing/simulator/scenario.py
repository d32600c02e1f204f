"""What a seed stands for: the shape of a fleet, its work, the operator's wishes, and the faults that it meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core.protocol import InputEnd, Submit, TaskInput
from muster.core.requests import CancelTasks, ForgetTasks, Pause, Restart, Resume, RetryTasks, Scale
from muster.core.spec import AgentSpec, ChildSpec, FleetSpec, RetrySpec, RunSpec, TeamsSpec
from muster.testing.simulator.faults import Faults, plan_faults

if TYPE_CHECKING:
    from muster.testing.simulator.world import World

#: Virtual seconds with faults; and without, by the end of which everything must be over.
FAULTY_S, CALM_S = 20.0, 900.0


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
    #: Seconds over which the input is spread.
    input_s: float = 1.0
    #: What the operator asks for, and when.
    asks: list[tuple[float, msgspec.Struct]] = field(default_factory=list)
    #: Programs beside the fleet that lock names.
    clients: int = 0
    #: The operator ends the fleet at this second.
    stop: tuple[float, str] | None = None
    #: Everything dies at this second, and the fleet is started again.
    power_cut_s: float | None = None
    #: Facts in a record of the log, and between two snapshots.
    record_facts: int = 3
    snapshot_facts: int = 40

    @classmethod
    def draw(cls, seed: int, **wishes: Any) -> Scenario:
        """The scenario of a seed. `wishes` replace what was drawn."""
        rng = Random(f"{seed} scenario")
        spec = wishes.pop("spec", None) or draw_spec(seed, rng)
        tasks = draw_tasks(spec, rng)
        drawn: dict[str, Any] = {
            "faults": Faults.draw(rng),
            "tasks": tasks,
            "work_s": rng.choice([0.01, 0.1, 0.5]),
            "failing": rng.choice([0.0, 0.1, 0.4]),
            "hopeless": frozenset(rng.sample(range(1, len(tasks)), rng.choice([0, 0, 2]))),
            "input_s": rng.choice([0.0, 1.0, 15.0]),
            "asks": draw_asks(spec, len(tasks), rng),
            "clients": rng.choice([0, 0, 3]),
            "stop": (rng.uniform(0.5, 15.0), rng.choice(["drain", "now"])) if rng.random() < 0.15 else None,
            "power_cut_s": rng.uniform(0.5, 15.0) if rng.random() < 0.15 else None,
            "record_facts": rng.choice([1, 3, 1000]),
            "snapshot_facts": rng.choice([10, 60, 10_000]),
        }
        return cls(seed=seed, spec=spec, **{**drawn, **wishes})

    def plan(self, world: World) -> None:
        """Everything that is to happen, into the timeline."""
        operator = world.operator
        self.plan_input(world)
        for at_s, body in self.asks:
            world.timeline.later(at_s, operator.ask, body)
        if self.stop is not None:
            world.timeline.later(self.stop[0], world.spawner.stop, self.stop[1], "SIGTERM")
        if self.power_cut_s is not None:
            world.timeline.later(self.power_cut_s, world.cut_the_power)
        plan_faults(world)

    def plan_input(self, world: World) -> None:
        """The operator submits everything, in batches, and says that this was all."""
        rng, tasks, at_s = world.rng_work, list(self.tasks), 0.0
        batches = []
        while tasks:
            size = rng.randint(1, 8)
            batches.append(tasks[:size])
            tasks = tasks[size:]
        for batch in batches:
            world.timeline.later(at_s, self._submit, world, batch)
            at_s += rng.uniform(0.0, 2 * self.input_s / len(batches))
        world.timeline.later(at_s, world.operator.send, InputEnd(total=len(self.tasks)))

    @staticmethod
    def _submit(world: World, tasks: list[TaskInput]) -> None:
        world.operator.send(Submit(tasks=tasks), lambda: world.accepted.update(dict.fromkeys(t.number for t in tasks)))

    @staticmethod
    def calm(world: World) -> None:
        """Take back what would keep the fleet from its end for ever."""
        world.operator.ask(Resume())

    def check_end(self, world: World) -> None:
        """What must hold when it is over. Raises Violated."""
        watch = world.watch
        running = [str(execution) for found in watch.live.values() for execution in found]
        if running:
            watch.fail("nothing-left", f"after the end there still runs: {', '.join(running)}")
        if watch.finish is None:
            watch.fail("liveness", "the fleet ended without saying so")
        elif self.stop is None and watch.finish.reason != "complete":
            watch.fail("liveness", f"it ended otherwise than complete: {watch.finish}")
        if self.stop is None:
            for number in world.accepted:
                if world.spec.run is not None and watch.lines[number] != 1 + watch.retries.get(number, 0):
                    watch.fail("nothing-lost", f"task {number} is recorded {watch.lines[number]} times")


def draw_spec(seed: int, rng: Random) -> FleetSpec:
    """The shape of a fleet."""
    count = rng.choice([1, 1, 2])
    kinds = tuple(_draw_kind(name, rng) for name in ("a", "b")[:count])
    agents = sum(kind.count for kind in kinds)
    return FleetSpec(
        name="simulated",
        store_id=f"{seed:032x}",
        agents=kinds,
        run=RunSpec(results="/nowhere/results"),
        agents_per_worker=1 if count > 1 else rng.choice([1, 1, 2]),
        teams=TeamsSpec(agents_per_team=rng.randint(2, max(2, agents // 2))) if rng.random() < 0.25 else None,
        retry=RetrySpec(attempts_max=rng.choice([1, 3, 5]), deaths_max=10**6, backoff_s=0.2, backoff_max_s=2.0),
        grace_s=10.0,
    )


def _draw_kind(name: str, rng: Random) -> AgentSpec:
    # Crash loops are the faults' doing here: nobody is given up for them.
    child = ChildSpec(
        restarts_max=10**6, max_tasks=rng.choice([0, 0, 5]), max_age_s=rng.choice([0.0, 0.0, 3.0]), ready_timeout_s=60.0
    )
    return AgentSpec(
        name=name,
        count=rng.randint(2, 5),
        command=("true",),
        slots=rng.choice([1, 1, 2]),
        child=child,
        tags=_tags(name),
    )


def _tags(kind: str) -> tuple[str, ...]:
    return ("common", f"only-{kind}")


def draw_tasks(spec: FleetSpec, rng: Random) -> list[TaskInput]:
    """Work: mostly plain; some of it urgent, late, for some agents only, or behind other work."""
    rich = rng.random() < 0.6
    kinds = [kind.name for kind in spec.agents]
    tasks = []
    for number in range(1, rng.randint(15, 60)):
        wish: dict[str, Any] = {}
        if rich:
            if rng.random() < 0.3:
                wish["priority"] = rng.choice([-100, -1, 1, 100])
            if rng.random() < 0.1:
                wish["delay_s"] = rng.choice([0.1, 3.0])
            if number > 1 and rng.random() < 0.2:
                wish["after"] = sorted(rng.sample(range(1, number), min(number - 1, rng.choice([1, 1, 3]))))
            if rng.random() < 0.2:
                wish["kind"] = rng.choice(kinds)
            elif rng.random() < 0.1:
                wish["tags"] = list(rng.choice([_tags(rng.choice(kinds)), ("common",)]))
            if rng.random() < 0.1:
                wish["timeout_s"] = 0.2
            if rng.random() < 0.1:
                wish.update(attempts_max=rng.choice([1, 4]), backoff_s=0.1)
        tasks.append(TaskInput(number, f"input {number}", **wish))
    return tasks


def draw_asks(spec: FleetSpec, tasks: int, rng: Random) -> list[tuple[float, msgspec.Struct]]:
    """What the operator wants of the running fleet."""
    asks: list[tuple[float, msgspec.Struct]] = []
    if rng.random() < 0.5:
        return asks
    for _ in range(rng.randint(1, 8)):
        kind = rng.choice(spec.agents).name
        numbers = rng.sample(range(1, tasks + 1), min(tasks, 3))
        wanted: list[msgspec.Struct] = [
            CancelTasks(numbers=numbers[:1]),
            CancelTasks(
                states=[rng.choice(["queued", "assigned", "delayed", "blocked"])], kind=kind, reason="changed my mind"
            ),
            RetryTasks(states=["failed", "dead", "cancelled"]),
            RetryTasks(numbers=numbers),
            ForgetTasks(states=["cancelled"]),
            Pause(kinds=rng.choice([[], [kind]])),
            Resume(),
        ]
        if spec.teams is None:
            wanted += [Restart(), Restart(names=[kind]), Scale(counts={kind: rng.randint(1, 7)})]
        asks.append((rng.uniform(0.1, 18.0), rng.choice(wanted)))
    return asks
