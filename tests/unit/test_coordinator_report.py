"""The report's numbers come from what was written, and its file is whole or untouched."""

from __future__ import annotations

import json
import os

import pytest

from muster.coordinator import report as reports
from muster.coordinator.state import LatencyHistogram
from muster.errors import ResultsFileError


@pytest.mark.parametrize(
    ("fleet", "told", "began"),
    [(1000.0, 999.5, 999.5), (1000.0, 0.0, 1000.0), (1000.0, 1000.5, 1000.0), (5000.0, 1000.0, 5000.0)],
)
def test_the_wait_begins_with_the_front_door_if_that_is_plausible(fleet, told, began):
    assert reports.wait_began_s(fleet, told) == began


def test_a_report_replaces_an_older_one_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    reports.write(str(path), {"agents": 3})
    assert json.loads(path.read_bytes()) == {"agents": 3}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_report_that_cannot_be_written_is_a_typed_error_and_leaves_the_older_one(tmp_path, monkeypatch):
    with pytest.raises(ResultsFileError, match="cannot write the report"):
        reports.write(str(tmp_path / "missing" / "report.json"), {})
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsFileError, match="No space left"):
        reports.write(str(path), {"agents": 3})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("scale_s", [1e-4, 0.01, 3.0, 5000.0])
def test_quantiles_of_latencies_are_within_five_percent_at_every_scale(scale_s):
    histogram = LatencyHistogram()
    values = [scale_s * (1 + n / 1000) for n in range(1000)]
    for value in values:
        histogram.add(value)
    for q in (0.01, 0.5, 0.99):
        assert histogram.quantile_s(q) == pytest.approx(values[int(q * 1000)], rel=0.05)


def test_latencies_beyond_the_ends_are_counted_at_the_ends():
    histogram = LatencyHistogram()
    for value in (0.0, -1.0, 1e-9, 1e12):
        histogram.add(value)
    assert sum(histogram.counts) == 4
    assert LatencyHistogram().quantile_s(0.5) is None
