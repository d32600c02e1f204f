"""A straight line through samples, with what it is not sure of."""

from __future__ import annotations

import math
from dataclasses import dataclass

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Trend:
    """Growth over the whole time that was fitted, as a share of the mean, and its standard error."""

    mean: float
    growth: float
    error: float

    def is_flat(self, tolerance: float) -> bool:
        """Whether it does not grow by `tolerance` or more. Growth that the noise may well have made does not count."""
        return self.growth < tolerance or self.growth < 2 * self.error


def fit(times_s: list[float], values: list[float]) -> Trend:
    """Ordinary least squares (Gauss 1809), with the standard error of the slope from the residuals.

    Raises:
        ValueError: Fewer than three samples, or all at one time.
    """
    count = len(times_s)
    if count < 3 or count != len(values):
        raise ValueError("a trend needs at least three samples")
    mean_t, mean_v = math.fsum(times_s) / count, math.fsum(values) / count
    spread = math.fsum((at - mean_t) ** 2 for at in times_s)
    if spread == 0:
        raise ValueError("all samples are of one time")
    slope = math.fsum((at - mean_t) * (value - mean_v) for at, value in zip(times_s, values, strict=True)) / spread
    residuals = math.fsum(
        (value - mean_v - slope * (at - mean_t)) ** 2 for at, value in zip(times_s, values, strict=True)
    )
    error = math.sqrt(residuals / (count - 2) / spread)
    span_s = max(times_s) - min(times_s)
    scale = span_s / mean_v if mean_v else 0.0
    return Trend(mean_v, slope * scale, error * abs(scale))


def chart(values: list[float], width: int = 40) -> str:
    """The values as a row of bars, from zero when they vary much, else between lowest and highest."""
    if not values:
        return ""
    step = max(1.0, len(values) / width)
    picked = [values[min(len(values) - 1, int(at * step))] for at in range(min(width, len(values)))]
    low, high = min(picked), max(picked)
    # Ten per cent of the value fill the chart's height at least: noise must not look like a mountain.
    room = max(high - low, 0.1 * high, 1e-9)
    return "".join(_BARS[min(7, int((value - low) / room * 7.999))] for value in picked)
