"""`muster top`: a fleet, live in the terminal. Needs textual, the extra `tui`."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input, Static

from muster.fleet.display import clock, rate
from muster.fleet.overview import SORTS, Overview, View, arrange, sparkline
from muster.fleet.sizes import format_bytes
from muster.tui.columns import AGENTS, COLORS, TEAMS, cell
from muster.tui.rows import Rows

#: Share of a processor that looking may take: a look at a large fleet is made less often.
_LOOKING_SHARE = 0.1
_STATE_COLORS = {**COLORS, "running": "green", "down": "red", "unreachable": "red"}


class Top(App[int]):
    """The live table of one fleet."""

    TITLE = "muster top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: transparent; }
    #title, #tasks, #sums, #foot { height: 1; }
    #foot { color: $text-muted; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    #filter.open { display: block; }
    Rows { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit"),
        Binding("s", "sort(1)", "sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "no_filter", "all", show=False),
        Binding("t", "teams", "teams"),
        Binding("space", "freeze", "freeze"),
    ]

    def __init__(self, overview: Overview, *, interval_s: float, sort: str, words: str = "") -> None:
        super().__init__(ansi_color=True)
        self._overview = overview
        self._interval_s = interval_s
        self._sort = sort
        self._reverse = False
        self._words = words
        self._shows_teams = False
        self._is_frozen = False
        self.view: View | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="tasks")
        yield Static(id="sums")
        yield Rows(id="rows")
        yield Static(id="foot")
        yield Input(self._words, placeholder="words that rows must contain", id="filter", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Rows).focus()
        self.run_worker(self._keep_looking(), exit_on_error=True)

    async def _keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            view, cost_s = await asyncio.to_thread(self._look)
            if not self._is_frozen:
                self.view = view
                self._show()
            rest_s = self._interval_s - (time.monotonic() - began)
            await asyncio.sleep(max(rest_s, cost_s / _LOOKING_SHARE, 0.05))

    def _look(self) -> tuple[View, float]:
        began = time.thread_time()
        view = self._overview.look()
        return view, time.thread_time() - began

    # ------------------------------------------------------------------ showing

    def _show(self) -> None:
        view = self.view
        if view is None or not self.query("#foot"):  # not composed yet, or already taken down
            return
        width = self.size.width
        for name, text in (("title", _title(view)), ("tasks", _tasks(view, width)), ("sums", _sums(view))):
            self.query_one(f"#{name}", Static).update(text)
        rows = self.query_one(Rows)
        if self._shows_teams and view.teams:
            rows.show(view.teams, TEAMS, sort="", key="team")
        else:
            chosen = arrange(view.agents, self._sort, self._words, reverse=self._reverse)
            rows.show(chosen, AGENTS, sort=self._sort, key="agent")
        self._tell()

    def _tell(self) -> None:
        """The line below the table: why the chosen row is as it is, else what the table shows."""
        row = self.query_one(Rows).chosen
        told = [f"by {self._sort}" + (", reversed" if self._reverse else "")]
        if self._words:
            told.append(f"only {self._words!r}")
        if self._is_frozen:
            told.append("frozen")
        if row is not None:
            why = "; ".join(map(str, row.get("evidence") or ())) or f"process {row['pid']}" if row.get("pid") else ""
            told.append(f"{row.get('agent') or row.get('team')}: {why or row['state']}")
        self.query_one("#foot", Static).update(Text(cell(" · ".join(told), max(1, self.size.width), right=False)))

    @on(Rows.Chosen)
    def _chosen(self) -> None:
        self._tell()

    def on_resize(self) -> None:
        self._show()

    # ------------------------------------------------------------------ keys

    def action_sort(self, by: int) -> None:
        names = list(SORTS)
        self._sort = names[(names.index(self._sort) + by) % len(names)]
        self._show()

    def action_reverse(self) -> None:
        self._reverse = not self._reverse
        self._show()

    def action_teams(self) -> None:
        self._shows_teams = not self._shows_teams
        self._show()

    def action_freeze(self) -> None:
        self._is_frozen = not self._is_frozen
        self._tell()

    def action_filter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.add_class("open")
        asked.focus()

    def action_no_filter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self._show()

    @on(Input.Submitted, "#filter")
    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("open")
        self.query_one(Rows).focus()


def _title(view: View) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(view.fleet, "bold").append("  ").append(view.state, _STATE_COLORS.get(view.state, ""))
    text.append("  ").append(view.verdict, _STATE_COLORS.get(view.verdict, ""))
    if view.coordinator_pid:
        text.append(f"   up {clock(view.uptime_s)}   coordinator {view.coordinator_pid}")
        if view.coordinator_restarts:
            text.append(f" (restarted {view.coordinator_restarts} times)", "yellow")
    if view.paused:
        text.append("   paused" if "*" in view.paused else f"   paused: {', '.join(view.paused)}", "yellow")
    if view.problem:
        text.append(f"   {view.problem}", "red")
    return text


def _tasks(view: View, width: int) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    shown = [(count, what) for what, count in view.tasks.items() if what != "submitted" and (count or what == "done")]
    for at, (count, what) in enumerate(shown):
        text.append(" · " if at else "tasks: ")
        text.append(f"{count:,} {what}", "red" if what in ("failed", "dead") and count else "")
    if view.rates:
        text.append(f"   {rate(view.rate_per_s) if view.rate_per_s else 'idle':>7} ")
        text.append(sparkline(view.rates, min(60, width - text.cell_len - 1)), "green")
    return text


def _sums(view: View) -> Text:
    sums = view.totals()
    text = Text(f"{sums['agents']:,} agents", no_wrap=True, overflow="ellipsis")
    for at, (state, count) in enumerate(sums["states"].items()):
        text.append(" · " if at else ": ").append(f"{count:,} {state}", _STATE_COLORS.get(state, ""))
    if view.teams:
        well = sum(team["verdict"] == "healthy" for team in view.teams)
        text.append(f"   {len(view.teams)} teams, {well} healthy", "" if well == len(view.teams) else "yellow")
    text.append(f"   memory {format_bytes(sums['pss_bytes'])}   inboxes {sums['inbox_depth']:,}")
    if view.latency_ms:
        text.append(f"   task p50 {view.latency_ms['p50']:,.0f} ms p99 {view.latency_ms['p99']:,.0f} ms")
    return text
