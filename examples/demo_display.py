"""What the demo shows: a live table of its agents, and at the end a summary that is understood at a glance."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo_kills import Killer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from muster.agent.status import read_status
from muster.core.protocol import Progress
from muster.fleet.display import Display, compose

_COLUMNS = 5
#: Cells from this width on also say which file the agent reads.
_CELL_WITH_FILE = 26
_INTERVAL_S = 0.2
_LOOK = {
    "busy": ("●", "green"),
    "ready": ("○", "dim"),
    "starting": ("·", "dim"),
    "draining": ("○", "dim"),
    "stopped": (" ", "dim"),
}


class DemoDisplay(Display):
    """The live table on a terminal; muster's own plain lines elsewhere."""

    def __init__(self, store: Path, agents: list[str], name_of: Callable[[int], str], killer: Killer) -> None:
        super().__init__("live" if sys.stderr.isatty() else "plain")
        self._store, self._agents, self._name_of, self._killer = store, agents, name_of, killer
        self._shown_at = 0.0
        self._live: Live | None = None
        if self.kind == "live":
            console = Console(stderr=True)
            self._console = console
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def update(self, progress: Progress) -> None:
        if self._live is None:
            super().update(progress)
        elif time.monotonic() - self._shown_at >= _INTERVAL_S:
            self._shown_at = time.monotonic()
            self._live.update(self._table(progress), refresh=True)

    def say(self, line: str) -> None:
        if self._live is None:
            super().say(line)
        else:
            self._live.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().close()

    def _table(self, progress: Progress) -> RenderableType:
        width = self._console.width
        cell = (width - 2) // _COLUMNS
        rows = -(-len(self._agents) // _COLUMNS)
        grid = Table.grid(padding=0)
        for _ in range(_COLUMNS):
            grid.add_column(width=cell, no_wrap=True)
        cells = [self._cell(agent, cell) for agent in self._agents]
        for row in range(rows):
            grid.add_row(*cells[row::rows])
        events = [
            Text(
                f"✖ {kill.agent} (pid {kill.pid}) was SIGKILLed while it read {self._name_of(kill.task)}",
                style="red",
                no_wrap=True,
                overflow="ellipsis",
            )
            for kill in self._killer.kills
        ]
        bar = Text.from_ansi(compose(progress, width, color=True), no_wrap=True)
        return Group(Text(""), grid, Text(""), *events, bar)

    def _cell(self, agent: str, width: int) -> Text:
        page = read_status(self._store, agent)
        kill = next((kill for kill in self._killer.kills if kill.agent == agent), None)
        text = Text(f" {agent:<5}", no_wrap=True, overflow="ellipsis")
        if kill is not None and (page is None or page.incarnation <= kill.incarnation):
            return text.append("✖ killed", style="bold red")
        if page is None:
            return text.append("·", style="dim")
        look, style = _LOOK.get(page.state, ("?", "yellow"))
        text.append(look, style=style)
        text.append(f"{page.done:>4}", style="bold" if page.state == "busy" else "")
        if kill is not None:
            text.append(" ↻", style="yellow")
        if width >= _CELL_WITH_FILE and page.task:
            name, room = self._name_of(page.task), width - text.cell_len - 3
            text.append(" " + (name if len(name) <= room else "…" + name[1 - room :]), style="dim")
        return text


@dataclass(frozen=True)
class Line:
    """One line of the summary. `ok` is None for a figure, else whether a promise was kept."""

    name: str
    text: str
    ok: bool | None = None


def print_summary(title: str, lines: list[Line], verdict: str, *, good: bool) -> None:
    """Print the summary to standard output, in colour on a terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print()
    console.print(Text(title, style="bold"))
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(width=1)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for line in lines:
        mark = Text("") if line.ok is None else Text("✔", style="green") if line.ok else Text("✘", style="bold red")
        table.add_row(mark, line.name, line.text)
    console.print(table)
    console.print()
    console.print(Text(verdict, style="bold green" if good else "bold red"))
