"""Progress lines: what they say, and that they fit."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.core.protocol import Progress
from muster.fleet.display import Display, clock, compose, plain, rate


def progress(**given: object) -> Progress:
    values: dict[str, object] = {
        "total": 2000,
        "submitted": 2000,
        "queued": 710,
        "running": 50,
        "done": 1237,
        "failed": 3,
        "reassigned": 0,
        "restarts": 0,
        "agents_ready": 50,
        "agents": 50,
        "elapsed_s": 4.0,
        "rate_per_s": 310.0,
        "eta_s": 2.4,
    }
    return Progress(**{**values, **given})  # type: ignore[arg-type]


def test_the_line_says_how_much_how_fast_and_how_long() -> None:
    line = compose(progress(restarts=2, reassigned=4), 160, color=False)
    assert re.fullmatch(
        r"━+─+ 1,240/2,000 62% · 3 failed · 50 running · 0:02 left · 310/s · 2 restarted · 4 reassigned · 0:04", line
    )


def test_a_narrow_line_keeps_what_matters_most() -> None:
    assert compose(progress(), 40, color=False) == "1,240/2,000 62% · 3 failed · 50 running"
    assert compose(progress(), 12, color=False) == "1,240/2,000"
    assert "━" in compose(progress(), 80, color=False)


def test_without_an_end_in_sight_there_is_no_bar() -> None:
    line = compose(progress(total=None, submitted=5000), 100, color=False)
    assert line.startswith("1,240 of 5,000 so far · 3 failed")
    assert "━" not in line
    assert "left" not in line


def test_while_agents_start_that_is_what_is_said() -> None:
    assert "12/50 agents ready" in compose(progress(done=0, failed=0, agents_ready=12), 80, color=False)


def test_everything_is_said_to_be_done_only_when_it_is() -> None:
    assert "99%" in compose(progress(done=1999, failed=0), 80, color=False)
    assert "100%" in compose(progress(done=2000, failed=0), 80, color=False)
    assert "0/0 100%" in compose(progress(total=0, submitted=0, done=0, failed=0), 80, color=False)


@given(
    width=st.integers(4, 300),
    color=st.booleans(),
    numbers=st.lists(st.integers(0, 10**9), min_size=6, max_size=6),
    total=st.one_of(st.none(), st.integers(0, 10**9)),
)
def test_the_line_never_wraps(width: int, color: bool, numbers: list[int], total: int | None) -> None:
    done, failed, running, restarts, submitted, ready = numbers
    line = compose(
        progress(
            total=None if total is None else max(total, done + failed),
            done=done,
            failed=failed,
            running=running,
            restarts=restarts,
            submitted=submitted,
            agents_ready=ready,
        ),
        width,
        color=color,
    )
    assert len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width - 1
    assert "\n" not in line


def test_a_log_gets_a_sentence() -> None:
    assert plain(progress()) == "muster: 1,240/2,000 62%, 3 failed, 50 running, 0:02 left, 310/s, 0:04"


@pytest.mark.parametrize(("per_s", "text"), [(1234.5, "1,234/s"), (311.4, "311/s"), (4.23, "4.2/s"), (0.3, "18/min")])
def test_rates_have_about_three_digits(per_s: float, text: str) -> None:
    assert rate(per_s) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (7, "0:07"), (751, "12:31"), (3723, "1:02:03")])
def test_times_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_line_that_is_said_stands_above_the_live_line() -> None:
    stream = io.StringIO()
    display = Display("live", stream)
    display.update(progress())
    display.say("note")
    display.close()
    shown = stream.getvalue()
    first, second, rest = shown.split("\r\x1b[K", 3)[1:]
    assert "1,240/2,000" in first
    assert second == "note\n" or second.startswith("note\n")
    assert "1,240/2,000" in rest or rest == ""
    assert shown.endswith("\r\x1b[K")


def test_a_terminal_that_goes_away_does_not_end_the_run() -> None:
    stream = io.StringIO()
    display = Display("live", stream)
    stream.close()
    display.update(progress())
    display.say("note")
    display.close()
