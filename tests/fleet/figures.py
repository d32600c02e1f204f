"""What the suite measured, as one table at its end and as `build/fleet/figures.json`.

A bound of the design holds on two idle cores. It is shown with the figure; a test fails only at many times of it, because a machine that
is busy elsewhere must not turn a run red.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from .form import FORM

FILE = Path(__file__).resolve().parents[2] / "build" / "fleet" / "figures.json"
#: How many times its bound a figure may be before the test fails.
SLACK = 15.0


class Figure(NamedTuple):
    """One measured value. `goal`: at most this much on an idle machine, or at least where `at_least`; None where there is no goal."""

    what: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "reached" if (self.value >= self.goal if self.at_least else self.value <= self.goal) else "not yet"

    @property
    def shown(self) -> str:
        """The value with its unit, as people read it."""
        is_plain = self.value >= 1000 or self.value == int(self.value)
        return f"{self.value:,.0f} {self.unit}".rstrip() if is_plain else f"{self.value:.3g} {self.unit}".rstrip()

    @property
    def goal_shown(self) -> str:
        """What it should be, or nothing."""
        return "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g} {self.unit}".rstrip()


_figures: list[Figure] = []


def note(what: str, value: float, unit: str, *, goal: float | None = None, at_least: bool = False) -> None:
    """Keep a figure for the table. With a `goal` it fails where the figure is worse by more than `SLACK`."""
    figure = Figure(what, value, unit, goal, at_least)
    _figures.append(figure)
    print(f"    {_row(figure)}", flush=True)
    if goal is not None:
        worst = goal / SLACK if at_least else goal * SLACK
        assert value >= worst if at_least else value <= worst, f"{what}: {value:.3g} {unit}, the bound is {goal:g}"


def table() -> list[str]:
    """The figures of this run, a line each; the load of the machine belongs to them."""
    if not _figures:
        return []
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return [f"{len(os.sched_getaffinity(0))} cores, load {load}", *(_row(figure) for figure in _figures)]


def write() -> None:
    """Leave the figures where the documentation takes them from."""
    if not _figures:
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "form": FORM.name,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "figures": [{**figure._asdict(), "verdict": figure.verdict} for figure in _figures],
    }
    FILE.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def _row(figure: Figure) -> str:
    return f"{figure.what:<74} {figure.shown:>14}  {figure.goal_shown:>12}  {figure.verdict}".rstrip()
