"""Promises of the coordinator under deaths of anybody at any moment. A failure prints its seed; the seed repeats it exactly."""

from __future__ import annotations

import pytest
from tests.simulate.world import Violated, World

from muster.coordinator import attempts
from muster.coordinator.machine import Machine
from muster.coordinator.state import snapshot
from muster.coordinator.tasks import ASSIGNED
from muster.core.spec import ChildSpec

SEEDS = 150
FAULTY_STEPS = 150


def live_through(seed: int, **options) -> World:
    world = World(seed, **options)
    try:
        for _ in range(FAULTY_STEPS):
            world.step()
            if world.finish is not None:
                break
        world.settle()
    except Exception as error:
        raise Violated(f"seed {seed}: {type(error).__name__}: {error}") from error
    return world


@pytest.mark.parametrize("block", range(10))
def test_every_task_is_recorded_once_and_never_runs_twice_at_once(block):
    for seed in range(block, SEEDS, 10):
        world = live_through(seed, agents_per_worker=1 + seed % 2, tasks=20 + seed % 30)
        assert world.submitted == set(world.live), seed
        assert set(world.lines) == world.submitted, (
            f"seed {seed}: recorded {len(world.lines)} of {len(world.submitted)}"
        )
        assert world.finish is not None and world.finish.reason == "complete", seed


def test_the_same_seed_gives_the_same_history():
    histories = [live_through(7) for _ in range(2)]
    assert histories[0].log == histories[1].log
    assert histories[0].coordinators > 1, "this seed is meant to have a coordinator's death in it"


def test_a_stop_under_faults_ends_and_loses_nothing():
    for seed in range(40):
        world = World(seed)
        for _ in range(60):
            world.step()
        world.to_coordinator["operator"].clear()
        world.unacked["operator"] = 0
        if world.machine is not None:
            from muster.coordinator.events import StopRequested

            world.control.append(StopRequested(world.now, "drain" if seed % 2 else "now", "SIGTERM"))
            asked = world.coordinators
            world.settle()
            assert world.coordinators == asked
            state = world.machine.state
            recorded = {number for number, count in world.lines.items() if count}
            assert recorded | set(state.tasks) >= {n for n in world.live if state.outcomes.get(n)}, seed
            assert not recorded & set(state.tasks), seed


def test_a_snapshot_decides_like_the_state_it_was_taken_of():
    from muster.coordinator.state import load

    for seed in range(20):
        world = World(seed)
        for _ in range(80):
            world.step()
        if world.machine is None:
            continue
        twin = Machine(load(snapshot(world.machine.state)))
        assert snapshot(twin.state) == snapshot(world.machine.state)


class WithoutFence(Machine):
    def apply(self, fact):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attempts, "is_current", lambda task, _fact: task.state == ASSIGNED)
            return super().apply(fact)


class Robber(Machine):
    """Frees tasks when a worker is gone, without the proof that its tree is."""

    def apply(self, fact):
        if getattr(fact, "survivors", 0):
            fact = type(fact)(fact.at_s, fact.worker, fact.incarnation, fact.exit_status, fact.signal, 0)
        return super().apply(fact)


class Impatient(Machine):
    """Gives every task of a living agent to somebody else as soon as the agent answers the roll call."""

    def apply(self, fact):
        out = super().apply(fact)
        return [effect for effect in out if "RollCall" not in type(getattr(effect, "body", None)).__name__]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("no fencing", {"machine": WithoutFence}),
        ("freed before the proof of death", {"machine": Robber}),
        ("no roll call after a restart", {"machine": Impatient}),
        ("death before the dead one's last results", {"drains_first": False}),
    ],
)
def test_a_planted_bug_is_found(name, options):
    found = 0
    for seed in range(60):
        try:
            live_through(seed, failing=0.4, tasks=120, **options)
        except Violated:
            found += 1
            break
    assert found, f"{name}: nobody noticed"


def test_backoff_of_failed_tasks_is_the_same_in_every_replay():
    from muster.coordinator.tasks import backoff_s

    waits = [backoff_s(number, failures, 0.5, 60.0) for number in range(1, 200) for failures in (1, 2, 3)]
    assert waits == [backoff_s(number, failures, 0.5, 60.0) for number in range(1, 200) for failures in (1, 2, 3)]
    assert all(0.25 <= backoff_s(number, 1, 0.5, 60.0) < 0.5 for number in range(1, 200))
    assert len({round(backoff_s(number, 1, 0.5, 60.0), 6) for number in range(1, 200)}) > 190
    assert backoff_s(5, 60, 0.5, 60.0) <= 60.0
    assert ChildSpec().can_trip()
