"""What goes wrong: how often, and what each fault does to a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muster.testing.simulator.timeline import Process
    from muster.testing.simulator.world import World


@dataclass(frozen=True)
class Faults:
    """Chances of one, or mean seconds between two (0: never)."""

    coordinator_dies_at_step: float = 0.0
    worker_dies_at_step: float = 0.0
    coordinator_killed_every_s: float = 0.0
    worker_killed_every_s: float = 0.0
    coordinator_stopped_every_s: float = 0.0
    worker_stopped_every_s: float = 0.0
    client_killed_every_s: float = 0.0
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
            client_killed_every_s=some(1.0, 5.0),
            clock_jumps_every_s=some(2.0, 6.0),
            fork_fails=some(0.02, 0.2),
            start_fails=some(0.02, 0.2),
            survivors=some(0.05, 0.5),
            late=some(0.01, 0.1),
            late_s=rng.choice([0.2, 1.0, 3.0]),
            room=rng.choice([3, 20, 1000]),
        )


#: How long what is stopped stands still.
STOPS_S = (0.1, 2.0, 30.0)


def plan_faults(world: World) -> None:
    """Put every fault that comes by itself into the timeline."""
    faults = world.scenario.faults
    for every_s, strike in (
        (faults.coordinator_killed_every_s, _kill_coordinator),
        (faults.worker_killed_every_s, _kill_worker),
        (faults.coordinator_stopped_every_s, _stop_coordinator),
        (faults.worker_stopped_every_s, _stop_worker),
        (faults.client_killed_every_s, _kill_client),
        (faults.clock_jumps_every_s, _jump),
    ):
        if every_s:
            _strike_later(world, every_s, strike)


def _strike_later(world: World, every_s: float, strike: Callable[[World], None]) -> None:
    def again() -> None:
        if world.are_faults_on and not world.spawner.is_over:
            strike(world)
            _strike_later(world, every_s, strike)

    world.timeline.later(world.rng_faults.expovariate(1 / every_s), again)


def _some_coordinator(world: World) -> Process | None:
    living = [coordinator.process for coordinator in world.spawner.coordinators.values()]
    return world.rng_faults.choice(living) if living else None


def _some_worker(world: World) -> Process | None:
    living = [worker.process for worker in world.spawner.workers.values()]
    return world.rng_faults.choice(living) if living else None


def _kill_coordinator(world: World) -> None:
    process = _some_coordinator(world)
    if process is not None:
        process.kill()


def _kill_worker(world: World) -> None:
    process = _some_worker(world)
    if process is not None:
        process.kill()


def _kill_client(world: World) -> None:
    living = [client for client in world.clients if client.process.is_alive]
    if living:
        world.rng_faults.choice(living).process.kill()


def _stop_coordinator(world: World) -> None:
    _stop(world, _some_coordinator(world))


def _stop_worker(world: World) -> None:
    _stop(world, _some_worker(world))


def _stop(world: World, process: Process | None) -> None:
    if process is not None:
        world.tell(process.name, "is stopped")
        process.stop()
        world.timeline.later(world.rng_faults.choice(STOPS_S), process.go_on)


def _jump(world: World) -> None:
    world.timeline.jump_s += world.rng_faults.choice([-3600.0, 3600.0])
    world.tell("world", f"the wall clock is off by {world.timeline.jump_s:.0f} s")
