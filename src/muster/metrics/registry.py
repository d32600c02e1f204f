"""Counters, gauges and histograms of one process or agent, kept as plain dicts: counting is one dict addition.

A registry holds what happened *since the last snapshot*. `delta()` hands that out and starts over; `restore()` puts a snapshot back that
could not be sent, so nothing is counted twice or lost. Not thread-safe: one event loop counts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TypedDict

#: Upper bounds in seconds of histograms of durations: 1 ms to 1 h, about three per decade.
SECONDS_BUCKETS: tuple[float, ...] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
)  # fmt: skip
INF = "+Inf"


class Delta(TypedDict, total=False):
    """The fields of a `MetricsSnapshot` except the incarnation; absent means empty."""

    counters: dict[str, float]
    gauges: dict[str, float]
    histograms: dict[str, tuple[int, float, dict[str, int]]]


class _Histogram:
    __slots__ = ("bounds", "buckets", "count", "labels", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.labels = [f"{bound:g}" for bound in bounds] + [INF]
        self.clear()

    def clear(self) -> None:
        self.buckets = [0] * len(self.labels)
        self.count = 0
        self.sum = 0.0


class Registry:
    """What happened since the last snapshot. Names are Prometheus names, as in `muster_tasks_done_total`."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._gauges_told: dict[str, float] = {}
        self._histograms: dict[str, _Histogram] = {}

    def count(self, name: str, by: float = 1) -> None:
        """Add to a counter. Raises ValueError for a negative increase: counters never fall."""
        if by < 0:
            raise ValueError(f"counter {name} cannot fall by {-by}")
        counters = self._counters
        counters[name] = counters.get(name, 0) + by

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge; only changes are part of a snapshot."""
        self._gauges[name] = value

    def observe(self, name: str, value: float, bounds: tuple[float, ...] = SECONDS_BUCKETS) -> None:
        """Add an observation to a histogram. `bounds` (ascending) are fixed by the first call for a name."""
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = _Histogram(bounds)
        histogram.count += 1
        histogram.sum += value
        # A value equal to a bound belongs into its bucket ("less or equal", as Prometheus has it).
        histogram.buckets[bisect_left(histogram.bounds, value)] += 1

    def delta(self) -> Delta:
        """Everything since the last call, and start over. Buckets are not cumulative. Empty when nothing changed."""
        found = Delta()
        if self._counters:
            found["counters"] = self._counters
            self._counters = {}
        gauges = {name: value for name, value in self._gauges.items() if self._gauges_told.get(name) != value}
        if gauges:
            found["gauges"] = gauges
            self._gauges_told.update(gauges)
        histograms: dict[str, tuple[int, float, dict[str, int]]] = {}
        for name, histogram in self._histograms.items():
            if histogram.count:
                filled = {label: n for label, n in zip(histogram.labels, histogram.buckets, strict=True) if n}
                histograms[name] = (histogram.count, histogram.sum, filled)
                histogram.clear()
        if histograms:
            found["histograms"] = histograms
        return found

    def restore(self, delta: Delta) -> None:
        """Put back what `delta()` handed out and nobody has received."""
        for name, by in delta.get("counters", {}).items():
            self.count(name, by)
        for name in delta.get("gauges", {}):
            self._gauges_told.pop(name, None)
        for name, (count, total, filled) in delta.get("histograms", {}).items():
            histogram = self._histograms[name]
            histogram.count += count
            histogram.sum += total
            for label, n in filled.items():
                histogram.buckets[histogram.labels.index(label)] += n
