"""The local API proxy between the vendors' own clients and a server that plays their APIs."""

from __future__ import annotations

import asyncio
import contextlib
import time

import anthropic
import openai
import pytest
from tests.proxy import vendor as play
from tests.proxy.vendor import Vendor

from muster.errors import MusterError
from muster.limit.proxy.request import Route
from muster.limit.proxy.server import Proxy
from muster.limit.proxy.upstream import Upstream
from muster.testing import eventually_async

SECRET = "s3cret"


class WaitingGate:
    """Admits after the last refusal's wait is over, on the real clock; notes what it is told."""

    def __init__(self, default_s=0.05):
        self.refusals, self.settled, self.admitted = [], [], 0
        self.open_at, self.default_s = 0.0, default_s

    async def admit(self, agent, api, tokens):
        await asyncio.sleep(max(0.0, self.open_at - time.monotonic()))
        self.admitted += 1
        return self

    def settle(self, usage, cost_usd):
        self.settled.append((usage, cost_usd))

    def refused(self, resets_in_s):
        self.refusals.append(resets_in_s)
        self.open_at = time.monotonic() + (self.default_s if resets_in_s is None else resets_in_s)


@contextlib.asynccontextmanager
async def between(vendor, *, gate=None, key=None):
    routes = {
        "anthropic": Route(Upstream(vendor.url), key=key),
        "openai": Route(Upstream(vendor.url)),
    }
    proxy = Proxy(routes, gate=gate)
    account = proxy.admit_agent("agent-1", SECRET)
    port = await proxy.start()
    proxy.base = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    try:
        yield proxy, account
    finally:
        await proxy.close()


def claude(proxy, **options):
    return anthropic.AsyncAnthropic(
        api_key="the users key", base_url=f"{proxy.base}/{SECRET}/anthropic", max_retries=0, **options
    )


def gpt(proxy, **options):
    return openai.AsyncOpenAI(api_key="k", base_url=f"{proxy.base}/{SECRET}/openai/v1", max_retries=0, **options)


HELLO = {"model": "claude-sonnet-9", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
CHAT = {"model": "gpt-5-mini-1", "messages": [{"role": "user", "content": "hello"}]}


async def raw(proxy, body=b"{}", path=f"/{SECRET}/anthropic/v1/messages"):
    """One request by hand: the whole answer as bytes until the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.base.rpartition(":")[2]))
    lines = (f"POST {path} HTTP/1.1", "host: localhost", "connection: close", "content-type: application/json")
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    writer.write(head.encode() + body)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_anthropics_client_gets_its_answer_and_the_account_its_price():
    async with Vendor() as vendor, between(vendor) as (proxy, account), claude(proxy) as client:
        answer = await client.messages.create(**HELLO)
        assert answer.content[0].text == "hello"
        assert vendor.asked[0].path == "/v1/messages"
        assert "the users key" in str(vendor.asked[0].headers)
        assert vendor.asked[0].headers["host"] == vendor.url.removeprefix("http://")
        await eventually_async(lambda: account.usage.output_tokens == 50)
        assert (account.requests, account.usage.input_tokens, account.usage.cached_tokens) == (1, 1000, 200)
        assert account.cost_usd == pytest.approx((1000 * 3 + 200 * 0.3 + 50 * 15) / 1e6)


async def test_openais_client_gets_its_answer_and_cached_tokens_are_priced_once():
    async with Vendor() as vendor, between(vendor) as (proxy, account), gpt(proxy) as client:
        answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "hello"
        assert vendor.asked[0].path == "/v1/chat/completions"
        await eventually_async(lambda: account.usage.output_tokens == 50)
        assert account.cost_usd == pytest.approx((600 * 0.25 + 400 * 0.025 + 50 * 2) / 1e6)


async def test_both_clients_stream_through_it_and_usage_is_read_on_the_way():
    async with Vendor() as vendor, between(vendor) as (proxy, account), claude(proxy) as one, gpt(proxy) as other:
        async with one.messages.stream(**HELLO) as stream:
            texts = [text async for text in stream.text_stream]
        assert "".join(texts) == "".join(f"piece {n} " for n in range(20))
        chunks = await other.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        said = [chunk.choices[0].delta.content async for chunk in chunks if chunk.choices]
        assert said == [f"piece {n} " for n in range(20)]
        await eventually_async(lambda: account.usage.output_tokens == 100)
        assert account.usage.input_tokens == 1600


async def test_a_stream_passes_byte_by_byte_with_its_headers():
    pieces = play.events_of_message(50)
    async with Vendor() as vendor, between(vendor) as (proxy, _):
        vendor.script.append(play.streamed(pieces))
        answer = await raw(proxy)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-odd: kept" in head.lower()
    joined, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        joined, rest = joined + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert joined == b"".join(pieces)


async def test_pieces_arrive_as_they_are_sent_and_not_at_the_end():
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        vendor.script.append(play.message_stream(5, pause_s=0.1))
        arrived = []
        async with client.messages.stream(**HELLO) as stream:
            async for _text in stream.text_stream:
                arrived.append(time.monotonic())
        assert arrived[-1] - arrived[0] > 0.25


async def test_a_refusal_with_a_reset_is_held_and_the_client_sees_only_the_answer():
    gate = WaitingGate()
    async with Vendor() as vendor, between(vendor, gate=gate) as (proxy, account), claude(proxy) as client:
        vendor.script += [play.refuse(429, retry_after="0.3"), play.refuse(529)]
        answer = await client.messages.create(**HELLO)
    assert answer.content[0].text == "hello"
    assert gate.refusals == [0.3, None]
    assert [asked.body for asked in vendor.asked] == [vendor.asked[0].body] * 3
    assert vendor.asked[1].at - vendor.asked[0].at >= 0.3
    assert (account.requests, account.retried) == (3, 2)
    assert len(gate.settled) == gate.admitted == 3


async def test_other_errors_are_the_vendors_own_answer():
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        vendor.script.append(
            play.plain(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}})
        )
        with pytest.raises(anthropic.BadRequestError, match="no"):
            await client.messages.create(**HELLO)


async def test_a_stream_that_the_api_cuts_is_cut_for_the_client_too():
    async with Vendor() as vendor, between(vendor) as (proxy, account), claude(proxy) as client:
        vendor.script.append(play.message_stream(20, cut_after=6))
        texts = []
        with pytest.raises(Exception) as caught:
            async with client.messages.stream(**HELLO) as stream:
                async for text in stream.text_stream:
                    texts.append(text)
        assert "incomplete" in str(caught.value) or "closed" in str(caught.value)
        assert len(texts) == 4
        await eventually_async(lambda: account.failed == 1)
        assert account.usage.input_tokens == 1000, "what was used before the cut counts"


async def test_an_api_that_does_not_answer_is_one_sentence_for_the_client():
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        vendor.script += [play.hang_up] * 3
        with pytest.raises(anthropic.InternalServerError, match="muster: the API did not answer"):
            await client.messages.create(**HELLO)


async def test_a_connection_that_went_stale_is_replaced_and_nobody_notices():
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        await client.messages.create(**HELLO)
        vendor.script.append(play.hang_up)
        assert (await client.messages.create(**HELLO)).content[0].text == "hello"
        assert vendor.connections == 2


async def test_connections_to_the_api_are_used_again():
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        for _ in range(5):
            await client.messages.create(**HELLO)
        assert vendor.connections == 1


async def test_a_client_that_leaves_while_it_is_held_costs_no_request():
    gate = WaitingGate()
    gate.open_at = time.monotonic() + 30
    async with Vendor() as vendor, between(vendor, gate=gate) as (proxy, account):
        async with claude(proxy, timeout=0.2) as client:
            with pytest.raises(anthropic.APITimeoutError):
                await client.messages.create(**HELLO)
        await eventually_async(lambda: account.held_s > 0)
        assert (vendor.asked, gate.admitted, account.requests) == ([], 0, 0)


async def test_a_client_that_leaves_a_stream_ends_the_request_upstream():
    async with Vendor() as vendor, between(vendor) as (proxy, account):
        vendor.script.append(play.message_stream(10_000, pause_s=0.01))
        async with claude(proxy) as client, client.messages.stream(**HELLO) as stream:
            async for _text in stream.text_stream:
                break
        await eventually_async(lambda: account.failed == 1)


async def test_a_budget_that_is_used_up_is_said_in_the_clients_own_words():
    class Shut:
        async def admit(self, agent, api, tokens):
            raise MusterError("the budget of 20 USD is used up")

    async with Vendor() as vendor, between(vendor, gate=Shut()) as (proxy, _), claude(proxy) as client:
        with pytest.raises(anthropic.PermissionDeniedError, match="the budget of 20 USD is used up"):
            await client.messages.create(**HELLO)
        assert vendor.asked == []


async def test_the_key_can_stay_with_the_proxy():
    async with (
        Vendor() as vendor,
        between(vendor, key=(b"x-api-key", b"the fleets key")) as (proxy, _),
        claude(proxy) as client,
    ):
        await client.messages.create(**HELLO)
        assert vendor.asked[0].headers["x-api-key"] == "the fleets key"
        assert "the users key" not in str(vendor.asked[0].headers)


@pytest.mark.parametrize(
    "path", ["/", "/wrong/anthropic/v1/messages", "//anthropic/v1/messages", f"/{SECRET[:-1]}/anthropic/x"]
)
async def test_without_an_agents_secret_nothing_is_asked(path):
    async with Vendor() as vendor, between(vendor) as (proxy, _):
        answer = await raw(proxy, path=path)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"belongs to no agent" in answer
        assert vendor.asked == []


async def test_an_unknown_api_is_named():
    async with Vendor() as vendor, between(vendor) as (proxy, _):
        assert b"there is no API 'nowhere' here" in await raw(proxy, path=f"/{SECRET}/nowhere/v1")


@pytest.mark.parametrize(
    "noise", [b"\x00\xff\n\n", b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n", b"A" * 100_000, b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_noise_ends_its_own_connection_and_nothing_else(noise):
    async with Vendor() as vendor, between(vendor) as (proxy, _), claude(proxy) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.base.rpartition(":")[2]))
        writer.write(noise)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                await reader.read()
        writer.close()
        assert (await client.messages.create(**HELLO)).content[0].text == "hello"


async def test_large_requests_are_sent_whole_and_a_too_large_one_is_refused():
    async with Vendor() as vendor, between(vendor) as (proxy, _):
        body = b'{"x":"' + b"y" * (5 << 20) + b'"}'
        vendor.script += [play.refuse(429, retry_after="0"), play.message]
        assert (await raw(proxy, body)).startswith(b"HTTP/1.1 200")
        assert [asked.body == body for asked in vendor.asked] == [True, True]


async def test_fifty_streams_at_once_are_each_equal_to_what_was_sent():
    async with Vendor() as vendor, between(vendor) as (proxy, account):
        vendor.pieces = 200
        expected = b"".join(play.events_of_message(200))

        async def one():
            answer = await raw(proxy, b'{"stream": true}')
            rest, joined = answer.partition(b"\r\n\r\n")[2], b""
            while rest:
                size, _, rest = rest.partition(b"\r\n")
                joined, rest = joined + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            return joined

        bodies = await asyncio.gather(*(one() for _ in range(50)))
        assert bodies == [expected] * 50
        await eventually_async(lambda: account.usage.output_tokens == 50 * 50)
