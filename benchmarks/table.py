"""The table that `python -m benchmarks` prints: readable at 80 columns, one line for each comparison."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.harness import Outcome, Verdict, show, verdicts
from benchmarks.setting import machine, versions

_STYLE = {"reached": "green", "not reached": "red", "missing": "yellow", "wrong": "bold red"}


def print_table(outcomes: list[Outcome], console: Console) -> None:
    """Print machine, versions, one block for each case, and what was missing or wrong."""
    facts = machine()
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, load {facts['load']}, {facts['date']}",
        soft_wrap=False,
    )
    console.print(", ".join(f"{name} {found}" for name, found in versions().items()))
    console.print("Ours is signed and counted. A ratio is the median over the rounds (lowest – highest).\n")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, justify in (
        ("", "left"),
        ("muster", "right"),
        ("beside", "left"),
        ("", "right"),
        ("ratio", "left"),
        ("goal", "left"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for outcome in outcomes:
        table.add_section()
        lines = list(verdicts(outcome))
        for verdict in lines:
            table.add_row(*row_of(verdict))
    console.print(table)
    console.print()
    for outcome in outcomes:
        console.print(f"{outcome.case.name}: {outcome.case.title}", style="dim", highlight=False)
        for word, what in (("missing", outcome.missing), ("wrong", outcome.wrong)):
            for contender, reason in what.items():
                last = reason.strip().splitlines()[-1] if reason.strip() else reason
                console.print(Text(f"  {word}: {contender}: {last}", style=_STYLE[word]))


def row_of(verdict: Verdict) -> list[Text | str]:
    """Case, our figure, the peer, its figure, ratio, goal, verdict."""
    goal = verdict.goal
    part = goal.figure.split("_")[0] if goal.figure[:3] in ("p50", "p99") else ""
    name = " ".join(word for word in (verdict.case, goal.label, part) if word)
    ours = "—" if verdict.ours is None else show(goal.figure, verdict.ours)
    peer = "" if goal.peer is None else "—" if verdict.peer is None else show(goal.figure, verdict.peer)
    return [
        Text(name),
        Text(ours, style="bold"),
        Text(goal.peer or "", style="dim"),
        Text(peer),
        Text(_ratio(verdict)),
        Text(goal.text, style="dim"),
        Text(verdict.word.replace("not reached", "not yet"), style=_STYLE.get(verdict.word, "")),
    ]


def _ratio(verdict: Verdict) -> str:
    if verdict.ratio is None:
        return "—"
    middle, low, high = verdict.ratio
    if verdict.goal.peer is None:
        return f"({short(low)}–{short(high)})"
    return f"{short(middle)}× ({short(low)}–{short(high)})"


def short(value: float) -> str:
    """A ratio, to three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
