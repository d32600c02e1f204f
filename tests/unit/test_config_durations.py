"""Durations as people write them."""

from __future__ import annotations

import pytest

from muster.errors import ConfigError
from muster.fleet.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2d", 172_800.0),
        ("1h 30m", 5400.0),
        ("10", 10.0),
        (7, 7.0),
        (0.5, 0.5),
        ("0", 0.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text, "timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "-5s", "5s5", "1e9", "five", "٣s", "5s\nx", None, True, -1, float("nan"), "99999999999d"]
)
def test_anything_else_is_refused_with_the_name_of_the_option(text: object) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        parse_duration(text, "timeout")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (4.21, "4.2s"), (59.97, "1m 00s"), (200, "3m 20s"), (3900, "1h 05m"), (183_600, "2d 3h")],
)
def test_a_duration_is_shown_in_two_parts_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
