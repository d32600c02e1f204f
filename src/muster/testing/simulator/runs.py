"""Runs of seeds: one with its story, or many with progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muster.testing.simulator.scenario import CALM_S, FAULTY_S, Scenario
from muster.testing.simulator.watch import Violated
from muster.testing.simulator.world import World


@dataclass(frozen=True)
class Outcome:
    """What became of a seed. `violation` is empty if every promise was kept."""

    seed: int
    digest: str
    steps: int
    decisions: int
    coordinators: int
    virtual_s: float
    violation: str = ""
    rule: str = ""
    #: The story, all of it if it was asked for, else its end.
    story: tuple[str, ...] = ()


def simulate(seed: int, *, keep_story: bool = False, wishes: dict[str, Any] | None = None, **makes: Any) -> Outcome:
    """Live through one seed: faults, then none. Never raises for a broken promise; says so in the outcome.

    Args:
        seed: Every choice comes from it; with the same commit it gives the same history on every machine.
        keep_story: Keep every line, not only the last ones.
        wishes: Fields of `Scenario` that are not drawn but given.
        makes: `make_machine`, `make_shell` of `World`.
    """
    world = World(Scenario.draw(seed, **(wishes or {})), keep_story=keep_story, **makes)
    violation = rule = ""
    try:
        world.run_for(FAULTY_S)
        if not world.spawner.is_over:
            world.settle(CALM_S)
        else:
            world.scenario.check_end(world)
    except Violated as broken:
        violation, rule = str(broken), broken.rule
    except Exception as error:
        violation, rule = f"crash: {type(error).__name__}: {error}", "crash"
    return Outcome(
        seed=seed, digest=world.story.digest, steps=world.timeline.steps, decisions=world.watch.decisions,
        coordinators=world.spawner.births.total(), virtual_s=world.timeline.now_s, violation=violation, rule=rule,
        story=tuple(world.story.lines),
    )  # fmt: skip
