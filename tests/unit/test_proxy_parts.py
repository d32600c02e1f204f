"""The parts of the proxy that decide: waits, prices, usage."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy import vendor as play

from muster.core.limits import LIMITED_S_MAX
from muster.errors import ConfigError
from muster.limit.prices import PriceTable, Usage, built_in
from muster.limit.proxy.meter import JSON_BYTES_MAX, Meter
from muster.limit.proxy.upstream import Upstream
from muster.limit.proxy.waits import resets_in_s

NOW = 1_795_600_000.0


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ({"retry-after": "7"}, b"", 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, b"", 0.25),
        ({"Retry-After": "Wed, 25 Nov 2026 12:00:10 GMT"}, b"", 1_795_608_010 - NOW),
        ({"anthropic-ratelimit-requests-reset": "2026-11-25T12:00:05Z"}, b"", 1_795_608_005 - NOW),
        ({"anthropic-ratelimit-unified-reset": "1795600060"}, b"", 60.0),
        ({"x-ratelimit-reset-requests": "1m30s"}, b"", 90.0),
        ({"x-ratelimit-reset-tokens": "6ms", "x-ratelimit-reset-requests": "20s"}, b"", 20.0),
        (
            {
                "x-ratelimit-reset-requests": "20s",
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-tokens": "5s",
                "x-ratelimit-remaining-tokens": "0",
            },
            b"",
            5.0,
        ),
        ({}, b'{"error":{"type":"usage_limit_reached","resets_in_seconds":13872}}', 13872.0),
        ({"retry-after": "soon"}, b"", None),
        ({"retry-after": "nan"}, b"", None),
        ({"retry-after": "-3"}, b"", 0.0),
        ({"retry-after": "999999999"}, b"", LIMITED_S_MAX),
        ({}, b"", None),
    ],
)
def test_the_wait_is_read_from_what_the_vendor_says(headers, body, wait_s):
    assert resets_in_s([(k.encode(), v.encode()) for k, v in headers.items()], body, NOW) == wait_s


@given(
    st.dictionaries(
        st.sampled_from([b"retry-after", b"retry-after-ms", b"x-ratelimit-reset-tokens"]), st.binary(max_size=40)
    ),
    st.binary(),
)
def test_no_header_makes_a_wait_that_cannot_be(headers, body):
    wait = resets_in_s(list(headers.items()), body, NOW)
    assert wait is None or 0 <= wait <= LIMITED_S_MAX


def test_the_longest_name_that_fits_gives_the_price():
    table = built_in()
    assert table.price_of("gpt-5-mini-2026") != table.price_of("gpt-5-2026")
    assert table.price_of("llama-9") is None
    assert table.cost_usd(Usage("llama-9", 10, 0, 10)) is None, "an unknown price is unknown, not nothing"
    assert table.cost_usd(Usage("claude-sonnet-9", 1_000_000, 1_000_000, 1_000_000)) == Decimal("18.30")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no [prices.MODEL] table"),
        ("prices = 3", "there is no [prices.MODEL] table"),
        ("[prices.x]\ninput = 1", "output is missing"),
        ("[prices.x]\ninput = -1\noutput = 1", "must not be negative"),
        ("[prices.x]\ninput = true\noutput = 1", "is not a number of dollars"),
        ('[prices.x]\ninput = "nan"\noutput = 1', "must not be negative"),
        ("[prices.x]\ninputs = 1\noutput = 1", "unknown key 'inputs'"),
        ("[prices", "cannot be read"),
    ],
)
def test_a_bad_price_is_one_sentence(tmp_path: Path, text, sentence):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        PriceTable.read(file)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message.replace(str(file), "").partition("cannot be read")[0]


def test_prices_of_a_file_are_exact(tmp_path: Path):
    file = tmp_path / "prices.toml"
    file.write_text('[prices."my-model"]\ninput = 0.1\noutput = "0.2"\n')
    table = PriceTable.read(file)
    assert table.cost_usd(Usage("my-model-2", 1, 0, 1)) == Decimal("0.0000003")
    assert table.cost_usd(Usage("my-model-2", 0, 1_000_000, 0)) == Decimal("0.1"), (
        "cached costs as input if nothing is said"
    )


@given(cuts=st.lists(st.integers(0, 4000), max_size=10))
def test_usage_does_not_depend_on_where_a_stream_is_cut(cuts):
    data = b"".join(play.events_of_message(20))
    meter = Meter(b"text/event-stream; charset=utf-8")
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        meter.feed(data[at:cut])
        at = max(at, cut)
    assert meter.end() == Usage("claude-sonnet-9", 1000, 200, 50)


def test_the_responses_api_is_read_too():
    usage = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 7}
    event = {"type": "response.completed", "response": {"model": "gpt-5", "usage": usage}}
    meter = Meter(b"text/event-stream")
    meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert meter.end() == Usage("gpt-5", 40, 60, 7)


@given(st.binary(max_size=200), st.sampled_from([b"text/event-stream", b"application/json", b"text/html", b""]))
def test_whatever_a_body_holds_its_usage_is_never_negative(data, content_type):
    meter = Meter(content_type)
    meter.feed(data)
    usage = meter.end()
    assert min(usage.input_tokens, usage.cached_tokens, usage.output_tokens) >= 0


def test_a_json_body_that_is_too_large_is_not_kept():
    meter = Meter(b"application/json")
    for _ in range(10):
        meter.feed(b" " * (JSON_BYTES_MAX // 4))
    assert meter.end() == Usage()


@pytest.mark.parametrize("url", ["", "api.anthropic.com", "ftp://x", "http://", "http://x:port", "https://[::1"])
def test_a_bad_upstream_is_one_sentence(url):
    with pytest.raises(ConfigError, match="upstream"):
        Upstream(url)
