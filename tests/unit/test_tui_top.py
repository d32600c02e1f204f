"""The live table: what it shows at any width, how keys change it, and what is said where it cannot be drawn."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from textual.widgets import Input

from muster.cli.verbs import top as verb
from muster.errors import UsageError
from muster.fleet.overview import Overview, View
from muster.tui.columns import AGENTS, cell, fit
from muster.tui.rows import Rows
from muster.tui.top import Top


def agent(number: int, **fields: Any) -> dict[str, Any]:
    plain = {"pid": 1000 + number, "state": "ready", "verdict": "healthy", "task": None, "done": number, "failed": 0}
    rest = {"inbox_depth": 0, "heartbeat_age_s": 0.5, "pss_bytes": 4_200_000, "restarts": 0, "evidence": [], "team": ""}
    return {"agent": f"w-{number}", **plain, **rest, **fields}


def team(number: int) -> dict[str, Any]:
    return {
        "team": f"team-{number}", "kind": "w", "state": "ready", "verdict": "healthy", "pid": 7, "agents": 50, "ready": 49, "holding": 3,
        "done": 12, "failed": 0, "restarts": 0, "evidence": [],
    }  # fmt: skip


class Scene(Overview):
    """Looks that a test has made up; the last one stays."""

    def __init__(self, *views: View) -> None:
        self.views = list(views)

    def look(self) -> View:
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]


def a_view(agents: int = 30, **fields: Any) -> View:
    rows = [agent(number) for number in range(1, agents + 1)]
    rows[2].update(state="busy", task=77, verdict="degraded", evidence=["the event loop was held up for 3.0 s"])
    return View(
        "review", "running", "healthy", rows, uptime_s=61, coordinator_pid=42, tasks={"submitted": 9, "queued": 4, "done": 5},
        rates=[1.0, 2.0], rate_per_s=2.0, **fields,
    )  # fmt: skip


def an_app(*views: View, sort: str = "agent") -> Top:
    return Top(Scene(*views), interval_s=60.0, sort=sort)


def screen(app: Top) -> list[str]:
    """The lines on the screen, as a person sees them."""
    return ["".join(segment.text for segment in strip).rstrip() for strip in app.screen._compositor.render_strips()]


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 12), (20, 8)])
async def test_it_fits_any_terminal(size: tuple[int, int]) -> None:
    app = an_app(a_view())
    async with app.run_test(size=size) as pilot:
        await _shown(pilot, app)
        lines = screen(app)
        assert len(lines) == size[1]
        assert max(map(len, lines)) <= size[0]
        assert lines[0].startswith("review  running")
        assert lines[3].startswith("AGENT•")
        assert lines[4].startswith("w-1")


async def _shown(pilot: Any, app: Top) -> None:
    while app.view is None:
        await pilot.pause(0.01)
    await pilot.pause()


async def test_what_matters_stands_on_80_columns() -> None:
    app = an_app(a_view())
    async with app.run_test(size=(80, 24)) as pilot:
        await _shown(pilot, app)
        text = "\n".join(screen(app))
        for words in ("up 1:01", "coordinator 42", "4 queued · 5 done", "2.0/s ▅█", "30 agents", "memory 126 MB"):
            assert words in text
        row = next(line for line in screen(app) if line.startswith("w-3 "))
        assert row.split() == ["w-3", "busy", "degraded", "77", "3", "4.2", "MB", "500ms"]


async def test_keys_sort_reverse_filter_and_quit() -> None:
    app = an_app(a_view())
    async with app.run_test(size=(100, 24)) as pilot:
        await _shown(pilot, app)
        await pilot.press("r")
        assert screen(app)[4].startswith("w-30")
        await pilot.press("r", "s", "s", "s")
        assert screen(app)[4].startswith("w-3 "), "by health, the degraded one first"
        assert "by health" in screen(app)[-2]
        await pilot.press("slash", *"w-2")
        shown = [line.split()[0] for line in screen(app)[4:] if line.startswith("w-")]
        assert set(shown) == {"w-2", *(f"w-2{digit}" for digit in range(10))}
        await pilot.press("enter")
        assert not app.query_one("#filter", Input).has_class("open")
        await pilot.press("escape")
        assert any(line.startswith("w-1 ") for line in screen(app)[4:])
        await pilot.press("q")
    assert app.return_code == 0


async def test_the_chosen_agent_stays_chosen_when_the_order_changes_and_tells_why() -> None:
    before = a_view()
    after = View("review", "running", "healthy", list(reversed(before.agents)))
    scene = Scene(before)
    app = Top(scene, interval_s=0.05, sort="agent")
    async with app.run_test(size=(80, 24)) as pilot:
        await _shown(pilot, app)
        await pilot.press("down", "down")
        assert "w-3: the event loop was held up for 3.0 s" in screen(app)[-2]
        await pilot.press("r")
        scene.views = [after]
        while app.view is not after:
            await pilot.pause(0.01)
        assert (app.query_one(Rows).chosen or {})["agent"] == "w-3"


async def test_long_tables_scroll_with_the_chosen_row_in_sight() -> None:
    app = an_app(a_view(agents=500))
    async with app.run_test(size=(80, 24)) as pilot:
        await _shown(pilot, app)
        await pilot.press("end")
        await pilot.pause()
        assert any(line.startswith("w-500") for line in screen(app))
        await pilot.press("pageup")
        await pilot.pause()
        chosen = (app.query_one(Rows).chosen or {})["agent"]
        assert any(line.startswith(chosen) for line in screen(app))
        await pilot.press("home")
        await pilot.pause()
        assert screen(app)[4].startswith("w-1 ")


async def test_teams_have_a_table_of_their_own() -> None:
    app = an_app(a_view(teams=[team(1), team(2)]))
    async with app.run_test(size=(80, 24)) as pilot:
        await _shown(pilot, app)
        assert "2 teams, 2 healthy" in "\n".join(screen(app)[:3])
        await pilot.press("t")
        assert screen(app)[3].startswith("TEAM")
        assert screen(app)[5].split()[:5] == ["team-2", "w", "ready", "healthy", "49/50"]
        await pilot.press("t")
        assert screen(app)[3].startswith("AGENT")


async def test_frozen_it_shows_what_it_showed() -> None:
    scene = Scene(a_view())
    app = Top(scene, interval_s=0.05, sort="agent")
    async with app.run_test(size=(80, 24)) as pilot:
        await _shown(pilot, app)
        await pilot.press("space")
        scene.views = [View("review", "down", "unknown", [])]
        await pilot.pause(0.3)
        assert screen(app)[0].startswith("review  running")
        await pilot.press("space")
        while not screen(app)[0].startswith("review  down"):
            await pilot.pause(0.01)


async def test_a_silent_coordinator_is_said_and_control_characters_are_not_obeyed() -> None:
    rows = [agent(1, evidence=["\x1b[2J\x07bad"], state="gone")]
    app = an_app(View("review", "unreachable", "unknown", rows, problem="the coordinator does not answer: no reply"))
    async with app.run_test(size=(160, 24)) as pilot:
        await _shown(pilot, app)
        assert "the coordinator does not answer" in screen(app)[0]
        assert "�[2J�bad" in screen(app)[4]


def test_columns_are_left_out_from_the_least_important_and_never_overflow() -> None:
    rows = [agent(number) for number in range(5)]
    before = len(AGENTS) + 1
    for room in range(200, 0, -1):
        chosen = fit(AGENTS, rows, room)
        assert sum(width for _, width in chosen) + len(chosen) - 1 <= room
        assert len(chosen) <= before
        before = len(chosen)
        assert chosen[0][0].title == "AGENT"
    assert before == 1


@pytest.mark.parametrize(
    ("text", "right", "shown"),
    [("ab", False, "ab  "), ("ab", True, "  ab"), ("abcde", True, "abc…"), ("a\nb", False, "a�b ")],
)
def test_a_cell_has_its_width(text: str, right: bool, shown: str) -> None:
    assert cell(text, 4, right=right) == shown


def test_without_the_extra_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "textual" or name.startswith(("textual.", "muster.tui"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(UsageError, match=r"pip install 'muster-fleet\[tui\]'; `muster top --once`"):
        verb._watch(Scene(a_view()), 1.0, "agent", "")


def test_a_dumb_terminal_is_not_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(UsageError, match="cannot be drawn on"):
        verb._watch(Scene(a_view()), 1.0, "agent", "")
