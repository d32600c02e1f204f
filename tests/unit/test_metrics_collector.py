"""Snapshots added up."""

from __future__ import annotations

import random

import pytest

from muster.core.protocol import MetricsSnapshot
from muster.metrics.collector import Collector, Histogram
from muster.metrics.registry import Registry


def snapshot(registry: Registry, incarnation: int = 1) -> MetricsSnapshot:
    return MetricsSnapshot(incarnation=incarnation, **registry.delta())


def test_counters_of_agents_add_up_over_snapshots_and_incarnations():
    collector = Collector()
    for incarnation in (1, 2):
        for agent in ("a", "b"):
            registry = Registry()
            registry.count("muster_x_total", 3)
            collector.add(agent, snapshot(registry, incarnation))
            registry.count("muster_x_total", 2)
            collector.add(agent, snapshot(registry, incarnation))
    assert collector.agents["a"].counters == {"muster_x_total": 10}
    assert collector.fleet.counters == {"muster_x_total": 20}


def test_a_gauge_is_what_was_told_last_and_begins_anew_with_an_incarnation():
    collector = Collector()
    registry = Registry()
    for value in (5, 7):
        registry.gauge("muster_g", value)
        collector.add("a", snapshot(registry))
    collector.add("b", MetricsSnapshot(incarnation=1, gauges={"muster_g": 1}))
    assert collector.gauge_sum("muster_g") == 8
    collector.add("a", MetricsSnapshot(incarnation=2))
    assert collector.gauge_sum("muster_g") == 1


def test_quantiles_of_merged_histograms_are_near_the_true_ones():
    collector, values, rng = Collector(), [], random.Random(3)
    for agent in range(10):
        registry = Registry()
        for _ in range(200):
            values.append(rng.expovariate(10))
            registry.observe("muster_s", values[-1])
        collector.add(f"a-{agent}", snapshot(registry))
    values.sort()
    merged = collector.fleet.histograms["muster_s"]
    assert merged.count == 2000
    assert merged.sum == pytest.approx(sum(values))
    for q in (0.5, 0.9, 0.99):
        assert merged.quantile(q) == pytest.approx(values[int(q * 2000)], rel=0.5)


def test_the_open_bucket_gives_its_lower_bound_and_an_empty_histogram_nothing():
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.add(4, 40_000.0, {"3600": 1, "+Inf": 3})
    assert histogram.quantile(0.99) == 3600


def test_the_summary_is_json_ready():
    import json

    registry = Registry()
    registry.count("muster_x_total")
    registry.observe("muster_s", 0.2)
    collector = Collector()
    collector.add("a", snapshot(registry))
    summary = json.loads(json.dumps(collector.summary()))
    assert summary["counters"] == {"muster_x_total": 1.0}
    assert summary["histograms"]["muster_s"]["count"] == 1
