"""Deterministic simulation of a whole fleet: one seed is one history. `python -m muster.testing.simulator --help`, docs/simulation.md."""

from __future__ import annotations

from muster.testing.simulator.faults import Faults
from muster.testing.simulator.runs import Outcome, simulate
from muster.testing.simulator.scenario import Scenario
from muster.testing.simulator.watch import Violated
from muster.testing.simulator.world import World

__all__ = ["Faults", "Outcome", "Scenario", "Violated", "World", "simulate"]
