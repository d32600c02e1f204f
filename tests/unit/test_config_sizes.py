"""Amounts of memory are read as people write them."""

from __future__ import annotations

import pytest

from muster.errors import ConfigError
from muster.fleet.sizes import BYTES_MAX, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("512MB", 512_000_000),
        ("64k", 64_000),
        ("64KiB", 65_536),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        ("1024TiB", BYTES_MAX),
    ],
)
def test_amounts_are_read_with_decimal_and_binary_units(text: object, amount: int) -> None:
    assert parse_bytes(text, "rss") == amount


@pytest.mark.parametrize(
    "text", ["", "GB", "2XB", "-1MB", "2GB4", "1iB", True, None, [], float("nan"), "0", 0, "2000TB", "0.5"]
)
def test_what_is_no_amount_is_refused_with_its_key(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^rss: ") as refused:
        parse_bytes(text, "rss")
    assert refused.value.facts["key"] == "rss"


@pytest.mark.parametrize(
    ("count", "text"),
    [(812, "812 B"), (4_200_000, "4.2 MB"), (1_349_000_000, "1.3 GB"), (999_960, "1.0 MB"), (214e6, "214 MB")],
)
def test_amounts_are_written_with_two_or_three_digits(count: float, text: str) -> None:
    assert format_bytes(count) == text
