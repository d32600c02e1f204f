"""Metric snapshots of all agents, added up: counters and histograms as sums, gauges as last told. Pure bookkeeping, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from muster.metrics.registry import INF

if TYPE_CHECKING:
    from muster.core.protocol import MetricsSnapshot


@dataclass
class Histogram:
    """A merged histogram: counts per bucket (upper bound as text), not cumulative."""

    count: int = 0
    sum: float = 0.0
    buckets: dict[str, int] = field(default_factory=dict)

    def add(self, count: int, total: float, buckets: dict[str, int]) -> None:
        """Merge an increase."""
        self.count += count
        self.sum += total
        for bound, increase in buckets.items():
            self.buckets[bound] = self.buckets.get(bound, 0) + increase

    def quantile(self, q: float) -> float | None:
        """Estimate by linear interpolation within the bucket that holds the rank, as Prometheus' `histogram_quantile` does.

        None without observations. A rank in the last, open bucket gives that bucket's lower bound: it is at least that much.
        """
        bounds = sorted(
            (float("inf") if bound == INF else float(bound), count) for bound, count in self.buckets.items()
        )
        total = sum(count for _, count in bounds)
        if not total:
            return None
        rank, seen, lower = q * total, 0, 0.0
        for upper, count in bounds:
            if count and seen + count >= rank:
                if upper == float("inf"):
                    return lower
                return lower + (upper - lower) * max(0.0, rank - seen) / count
            seen += count
            lower = upper if upper != float("inf") else lower
        return lower


@dataclass
class Series:
    """What was collected of one agent, or of all."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def add(self, snapshot: MetricsSnapshot) -> None:
        """Add increases; gauges are replaced."""
        for name, increase in snapshot.counters.items():
            self.counters[name] = self.counters.get(name, 0) + increase
        self.gauges.update(snapshot.gauges)
        for name, (count, total, buckets) in snapshot.histograms.items():
            self.histograms.setdefault(name, Histogram()).add(count, total, buckets)


class Collector:
    """Snapshots by agent and for the fleet. Counters go on over restarts of an agent; its gauges begin anew."""

    def __init__(self) -> None:
        self.agents: dict[str, Series] = {}
        self.fleet = Series()
        self.snapshots = 0
        self._incarnations: dict[str, int] = {}

    def add(self, agent: str, snapshot: MetricsSnapshot) -> None:
        """Take a snapshot that `agent` sent."""
        series = self.agents.setdefault(agent, Series())
        if self._incarnations.get(agent) != snapshot.incarnation:
            self._incarnations[agent] = snapshot.incarnation
            series.gauges.clear()
        self.snapshots += 1
        series.add(snapshot)
        self.fleet.add(snapshot)
        self.fleet.gauges.clear()

    def gauge_sum(self, name: str) -> float:
        """The sum of a gauge over all agents."""
        return sum(series.gauges.get(name, 0.0) for series in self.agents.values())

    def summary(self) -> dict[str, object]:
        """The fleet's metrics as a JSON-ready object: counters, and count, mean, p50 and p99 of each histogram."""
        return {
            "counters": dict(sorted(self.fleet.counters.items())),
            "histograms": {
                name: {
                    "count": histogram.count,
                    "mean": histogram.sum / histogram.count if histogram.count else None,
                    "p50": histogram.quantile(0.5),
                    "p99": histogram.quantile(0.99),
                }
                for name, histogram in sorted(self.fleet.histograms.items())
            },
        }
