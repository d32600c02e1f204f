"""Event streams of coding command lines: what is read from good ones, and that bad ones do no harm."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.agent.dialects import READERS, ClaudeReader, CodexReader, GeminiReader, Reader
from muster.agent.dialects.limits import limit_in
from muster.agent.dialects.reading import LINE_BYTES_MAX

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC).timestamp()


def stream(*events) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


CLAUDE_INIT = {
    "type": "system",
    "subtype": "init",
    "session_id": "s-1",
    "model": "claude-x",
    "tools": ["Bash"],
    "cwd": "/w",
}
CLAUDE_TOOL = {
    "type": "assistant",
    "message": {"content": [{"type": "text", "text": "hm"}, {"type": "tool_use", "name": "Bash", "input": {}}]},
    "session_id": "s-1",
}
CLAUDE_ALLOWED = {
    "type": "rate_limit_event",
    "rate_limit_info": {"status": "allowed", "resetsAt": 1_771_390_800, "utilization": 0.4},
}
CLAUDE_REJECTED = {
    "type": "rate_limit_event",
    "rate_limit_info": {"status": "rejected", "resetsAt": 1_771_390_800, "rateLimitType": "five_hour"},
}
CLAUDE_DONE = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "result": "forty-two",
    "session_id": "s-1",
    "num_turns": 3,
    "total_cost_usd": 0.125,
    "usage": {"input_tokens": 2, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 50, "output_tokens": 9},
}
CLAUDE_REFUSED = {
    "type": "result",
    "subtype": "success",
    "is_error": True,
    "result": "API Error: Rate limit reached",
    "session_id": "s-1",
}
CODEX_DONE = (
    {"type": "thread.started", "thread_id": "t-1"},
    {"type": "turn.started"},
    {"type": "item.started", "item": {"type": "command_execution", "command": "ls -l"}},
    {"type": "item.completed", "item": {"type": "agent_message", "text": "done it"}},
    {"type": "turn.completed", "usage": {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 3}},
)
GEMINI_DONE = (
    {"type": "init", "session_id": "g-1", "model": "gemini-x"},
    {"type": "message", "role": "user", "content": "hello"},
    {"type": "tool_use", "tool_name": "read_file"},
    {"type": "tool_result", "status": "success"},
    {"type": "message", "role": "assistant", "content": "one ", "delta": True},
    {"type": "message", "role": "assistant", "content": "two", "delta": True},
    {
        "type": "result",
        "status": "success",
        "stats": {"total_tokens": 20, "input_tokens": 12, "output_tokens": 8, "cached": 5},
    },
)
#: A good session of each dialect, for the properties.
SESSIONS = {
    "claude": stream(CLAUDE_INIT, CLAUDE_ALLOWED, CLAUDE_TOOL, CLAUDE_DONE),
    "codex": stream(*CODEX_DONE),
    "gemini": stream(*GEMINI_DONE),
}

#: Lines that are no events.
NOISE = (b"{", b'{"type":', b"[1]", b"null", b'{"type":[]}', b"\xff\xfe", b"[" * 3000)


def read(reader: Reader, data: bytes):
    reader.feed(data)
    return reader.end()


def test_a_claude_session_gives_its_tokens_cost_answer_and_session():
    reading = read(ClaudeReader(), SESSIONS["claude"])
    assert (reading.state, reading.answer, reading.session_id, reading.model) == (
        "done",
        "forty-two",
        "s-1",
        "claude-x",
    )
    assert (reading.input_tokens, reading.cached_tokens, reading.output_tokens, reading.cost_usd) == (152, 50, 9, 0.125)
    assert (reading.turns, reading.utilization, reading.limited) == (3, 0.4, None)


def test_claude_says_success_and_means_an_error_and_is_not_believed():
    reading = read(ClaudeReader(), stream(CLAUDE_INIT, CLAUDE_REFUSED))
    assert reading.state == "limited"
    assert reading.limited is not None
    assert "Rate limit reached" in reading.limited.text


def test_claudes_rejected_limit_gives_the_reset_time_to_the_error_that_follows():
    reading = read(ClaudeReader(), stream(CLAUDE_INIT, CLAUDE_REJECTED, {**CLAUDE_REFUSED, "result": "no"}))
    assert reading.state == "limited"
    assert reading.limited is not None
    assert (reading.limited.resets_unix_s, reading.limited.kind) == (1_771_390_800.0, "five_hour")


def test_a_rejected_limit_that_was_overcome_is_forgotten():
    reading = read(ClaudeReader(), stream(CLAUDE_INIT, CLAUDE_REJECTED, CLAUDE_DONE))
    assert (reading.state, reading.limited) == ("done", None)


def test_claude_waiting_for_permission_says_for_what_and_goes_on_when_it_has_it():
    reader = ClaudeReader()
    ask = {"type": "control_request", "request": {"subtype": "can_use_tool", "tool_name": "Bash"}}
    assert reader.feed(stream(CLAUDE_INIT, ask)) == "waiting"
    assert reader.reading.doing == "permission for Bash"
    assert reader.feed(stream({"type": "user", "message": {}})) == "working"


def test_a_full_context_is_told_apart_from_other_failures():
    full = {"type": "result", "subtype": "error_during_execution", "is_error": True, "result": "Prompt is too long"}
    assert read(ClaudeReader(), stream(CLAUDE_INIT, full)).state == "context_full"
    turns = {"type": "result", "subtype": "error_max_turns", "is_error": False}
    reading = read(ClaudeReader(), stream(CLAUDE_INIT, turns))
    assert (reading.state, reading.error) == ("failed", "error_max_turns")


def test_a_codex_session_adds_up_the_tokens_of_its_turns():
    reading = read(CodexReader(), stream(*CODEX_DONE, {"type": "turn.started"}, CODEX_DONE[-1]))
    assert (reading.state, reading.session_id, reading.answer, reading.turns) == ("done", "t-1", "done it", 2)
    assert (reading.input_tokens, reading.cached_tokens, reading.output_tokens) == (20, 8, 6)


def test_codexs_usage_limit_is_a_limit_with_the_time_it_names():
    message = "You've hit your usage limit. Upgrade to Pro or try again in 2 days 17 hours 14 minutes."
    failed = ({"type": "error", "message": message}, {"type": "turn.failed", "error": {"message": message}})
    reading = read(CodexReader(), stream(*CODEX_DONE[:2], *failed))
    assert reading.state == "limited"
    assert reading.limited is not None
    assert reading.limited.retry_after_s == timedelta(days=2, hours=17, minutes=14).total_seconds()


def test_an_error_that_codex_overcame_is_no_failure():
    reading = read(
        CodexReader(), stream(*CODEX_DONE[:2], {"type": "error", "message": "429 retrying 1/5"}, *CODEX_DONE[2:])
    )
    assert (reading.state, reading.limited, reading.error) == ("done", None, "")


def test_a_gemini_session_joins_its_deltas():
    reading = read(GeminiReader(), SESSIONS["gemini"])
    assert (reading.state, reading.answer, reading.session_id) == ("done", "one two", "g-1")
    assert (reading.input_tokens, reading.cached_tokens, reading.output_tokens) == (12, 5, 8)


def test_geminis_exhausted_quota_is_a_limit():
    error = {
        "type": "result",
        "status": "error",
        "error": {"type": "X", "message": "RESOURCE_EXHAUSTED: Please retry in 41.5s"},
    }
    reading = read(GeminiReader(), stream(*GEMINI_DONE[:2], error))
    assert reading.state == "limited"
    assert reading.limited is not None
    assert reading.limited.retry_after_s == 41.5


@pytest.mark.parametrize(
    ("sentence", "resets_in_s"),
    [
        ("429 Too Many Requests, retry-after: 30", 30.0),
        ("rate_limit_error: Please try again in 1.5s", 1.5),
        ("Claude AI usage limit reached|1795622400", 1_795_622_400 - NOON),
        ('{"type":"usage_limit_reached","resets_at":1795608000,"resets_in_seconds":13872}', 1_795_608_000 - NOON),
        ("You've hit your limit · resets 1pm (UTC)", 3600.0),
        ("usage limit reached, try again at 11:30 AM", 23.5 * 3600),
        ("You've hit your usage limit. Try again at 12:16 PM.", 16 * 60.0),
        ("Overloaded (529)", None),
        ("rate limit hit, resets 99pm", None),
        ("rate limit hit, resets 1pm (Nowhere/At_All)", 3600.0),
        ("quota exceeded; retry after 250 ms", 0.25),
    ],
)
def test_a_limit_in_prose_is_read_with_the_time_that_it_names(sentence, resets_in_s):
    found = limit_in(sentence, NOON, UTC)
    assert found is not None, sentence
    told = found.retry_after_s if found.resets_unix_s is None else found.resets_unix_s - NOON
    assert told == resets_in_s


@pytest.mark.parametrize(
    "sentence", ["", "all good", "wrote 4290 files", "the limit of x is 0", "try again in 5 minutes", "line 429a"]
)
def test_what_is_no_limit_is_not_taken_for_one(sentence):
    assert limit_in(sentence, NOON) is None


@pytest.mark.parametrize("dialect", READERS)
@given(data=st.data())
def test_where_a_stream_is_cut_changes_nothing(dialect, data):
    session = SESSIONS[dialect]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(session)), max_size=20)))
    reader = READERS[dialect]()
    for begin, end in zip([0, *cuts], [*cuts, len(session)], strict=True):
        reader.feed(session[begin:end])
    assert reader.end() == read(READERS[dialect](), session)


@pytest.mark.parametrize("dialect", READERS)
@given(noise=st.lists(st.binary(max_size=60) | st.sampled_from(NOISE)))
def test_noise_between_the_lines_is_left_out_and_told_in_one_sentence(dialect, noise):
    lines = SESSIONS[dialect].splitlines()
    clean = [bad.replace(b"\n", b" ") for bad in noise]
    mixed = b"\n".join([*clean, *lines, *clean]) + b"\n"
    reading, expected = read(READERS[dialect](), mixed), read(READERS[dialect](), SESSIONS[dialect])
    assert (reading.state, reading.answer, reading.session_id) == (expected.state, expected.answer, expected.session_id)
    assert (reading.lines_left_out == 0) == (reading.complaint == "")
    assert "\n" not in reading.complaint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("dialect", READERS)
@given(data=st.data())
def test_fields_of_any_type_do_no_harm(dialect, data):
    reader = READERS[dialect]()
    for line in SESSIONS[dialect].splitlines():
        event = json.loads(line)
        for key in data.draw(st.lists(st.sampled_from(sorted(event)), max_size=3)):
            event[key] = data.draw(JSON)
        reader.feed(stream(event))
    reading = reader.end()
    assert reading.input_tokens >= 0
    assert isinstance(reading.answer, str)


def test_a_line_of_ten_megabytes_is_left_out_and_costs_no_memory():
    reader = ClaudeReader()
    reader.feed(stream(CLAUDE_INIT))
    chunk = b"x" * (64 << 10)
    tracemalloc.start()
    try:
        for _ in range(160):
            reader.feed(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    reader.feed(b"\n" + stream(CLAUDE_DONE))
    reading = reader.end()
    assert peak < 3 * LINE_BYTES_MAX
    assert (reading.state, reading.lines_left_out) == ("done", 1)
    assert reading.complaint == "line 2 of the event stream of claude is longer than 4 MiB, so it was left out"
