"""A registry hands out what happened since the last snapshot, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.core.protocol import MetricsSnapshot
from muster.metrics.registry import INF, Registry


def test_a_snapshot_has_what_happened_since_the_last_one() -> None:
    registry = Registry()
    registry.count("a_total")
    registry.count("a_total", 2)
    registry.gauge("g", 5)
    registry.observe("h_seconds", 0.003)
    first = registry.delta()
    assert first == {
        "counters": {"a_total": 3},
        "gauges": {"g": 5},
        "histograms": {"h_seconds": (1, 0.003, {"0.005": 1})},
    }
    assert registry.delta() == {}
    registry.count("a_total")
    assert registry.delta() == {"counters": {"a_total": 1}}


def test_a_snapshot_fits_the_message_that_carries_it() -> None:
    registry = Registry()
    registry.observe("h_seconds", 1e9)
    assert MetricsSnapshot(incarnation=1, **registry.delta()).histograms["h_seconds"] == (1, 1e9, {INF: 1})


def test_only_changed_gauges_are_told() -> None:
    registry = Registry()
    registry.gauge("g", 1)
    registry.delta()
    registry.gauge("g", 1)
    assert registry.delta() == {}
    registry.gauge("g", 2)
    assert registry.delta() == {"gauges": {"g": 2}}


def test_a_value_on_a_bound_belongs_to_that_bucket() -> None:
    registry = Registry()
    for value in (1.0, 1.1, 2.0, 2.1):
        registry.observe("h", value, (1.0, 2.0))
    assert registry.delta()["histograms"]["h"][2] == {"1": 1, "2": 2, INF: 1}


def test_a_snapshot_that_was_not_sent_is_put_back() -> None:
    registry = Registry()
    registry.count("a_total", 4)
    registry.gauge("g", 1)
    registry.observe("h", 0.5, (1.0,))
    lost = registry.delta()
    registry.count("a_total")
    registry.observe("h", 3.0, (1.0,))
    registry.restore(lost)
    assert registry.delta() == {
        "counters": {"a_total": 5},
        "gauges": {"g": 1},
        "histograms": {"h": (2, 3.5, {"1": 1, INF: 1})},
    }


def test_a_counter_never_falls() -> None:
    with pytest.raises(ValueError, match="cannot fall"):
        Registry().count("a_total", -1)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.booleans(), st.booleans())))
def test_deltas_add_up_whatever_is_lost_and_put_back(steps: list[tuple[float, bool, bool]]) -> None:
    registry = Registry()
    received = seen = 0
    for value, cut, lost in steps:
        registry.observe("h", value)
        seen += 1
        if cut:
            delta = registry.delta()
            if lost:
                registry.restore(delta)
            else:
                count, _, buckets = delta["histograms"]["h"]
                assert sum(buckets.values()) == count
                received += count
    received += registry.delta().get("histograms", {}).get("h", (0, 0.0, {}))[0]
    assert received == seen
