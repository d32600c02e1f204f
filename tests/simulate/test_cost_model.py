"""The cost model keeps its books: with given costs its figures follow, whatever this machine is doing."""

from __future__ import annotations

import pytest

from muster.testing.simulator.cost import Shape, model, table
from muster.testing.simulator.measure import Costs, Machinery

COSTS = Costs(send_us=30.0, receive_us=20.0, append_us=5.0, append_kb_us=7.0)


def machinery(below: int, task_us: float = 15.0) -> Machinery:
    return Machinery(below, task_us, 0.5, 80.0, 15.0, 5.0, 700.0, 5.0, 400_000)


def flat(agents: int, task_us: float = 15.0) -> Shape:
    return Shape(agents, 0, machinery(agents, task_us), None)


def tree(agents: int, per_team: int = 50) -> Shape:
    return Shape(agents, agents // per_team, machinery(agents // per_team), machinery(per_team))


def test_the_root_is_where_a_fleet_with_many_processors_bends():
    for fleet in (flat(1000), tree(1000), tree(10_000)):
        row = model(fleet, COSTS, processors=32)
        assert row.bends == "the root's processor"
        assert 0.8 < row.root_busy <= 1.0
        # One message in, one out, the decision and a line: about 72 µs of the root for each task.
        assert row.tasks_per_s == pytest.approx(1e6 / 72, rel=0.2)


def test_teams_cost_work_where_processors_are_few_and_spare_the_root_its_roll_call():
    few_flat, few_tree = model(flat(5000), COSTS, 2), model(tree(5000), COSTS, 2)
    assert few_tree.round_s > few_flat.round_s
    assert few_tree.recovery_s < few_flat.recovery_s
    assert few_tree.log_bytes == 2 * few_flat.log_bytes


def test_a_dearer_decision_makes_every_round_longer_and_more_processors_none():
    assert model(flat(500, task_us=60.0), COSTS, 2).round_s > model(flat(500), COSTS, 2).round_s
    rounds = [model(tree(500), COSTS, processors).round_s for processors in (1, 2, 4, 8)]
    assert rounds == sorted(rounds, reverse=True)


def test_the_model_is_the_same_every_time_and_its_table_has_a_row_for_each():
    row = model(tree(500), COSTS, 4)
    assert row == model(tree(500), COSTS, 4)
    assert table(COSTS, [row, row]).count("| 500 | 10 | 4 |") == 2
