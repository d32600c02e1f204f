"""What a measurement is: cases, contenders, rounds in turn, ratios with their spread.

Contenders of a case take turns (A B C A B C …), so that a slow minute of the machine hits all of them. A ratio is made within a
round, from figures that were measured seconds apart, and reported as the median over the rounds with the lowest and highest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.effort import is_quick

#: One block's figures, by name: what `Goal.figure` names. Units stand in the names: "us", "p50_us", "per_s", "mb".
Figures = dict[str, float]


class MeasureError(Exception):
    """A block did not do what it should have done, so that its figures mean nothing. The text says what was wrong."""


class MissingContenderError(Exception):
    """A contender is not on this machine. The text says what to install."""


@dataclass(frozen=True)
class Contender:
    """One way of doing a case's work. `measure` does one block of it, checks that it was really done, and returns the figures."""

    name: str
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Goal:
    """A comparison that the table shows: our `figure` beside a peer's, or beside a limit when there is no peer.

    `sense` ">=": we should be at least `factor` times as fast as the peer; "<=": we may take at most `factor` times what the peer
    takes. Without `factor` the comparison is shown and not judged.
    """

    figure: str
    ours: str
    peer: str | None
    sense: Literal[">=", "<="] = "<="
    factor: float | None = None
    label: str = ""

    def ratio(self, ours: float, peer: float) -> float:
        """How many times as fast (">="), or how many times as much ("<="), whether the figures are rates or times."""
        is_rate = self.figure.endswith("per_s")
        return ours / peer if is_rate == (self.sense == ">=") else peer / ours

    @property
    def text(self) -> str:
        if self.factor is None:
            return "—"
        sign = "≥" if self.sense == ">=" else "≤"
        return f"{sign} {self.factor:g} ×" if self.peer is not None else f"{sign} {show(self.figure, self.factor)}"


@dataclass(frozen=True)
class Case:
    """One piece of work that several contenders do."""

    name: str
    title: str
    contenders: list[Contender]
    goals: list[Goal]
    rounds: int = 5


@dataclass
class Outcome:
    """What was measured of one case."""

    case: Case
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    case: str
    goal: Goal
    ours: float | None
    peer: float | None
    ratio: tuple[float, float, float] | None  # median, lowest, highest
    word: str  # "reached", "not reached", "missing", "wrong" or "" (not judged)


def measure(case: Case, *, rounds: int | None = None, progress: Callable[[str], None] = lambda _text: None) -> Outcome:
    """Run a case: every contender once per round, in turn. A contender that is missing or wrong is left out of the later rounds."""
    outcome = Outcome(case)
    total = rounds or case.rounds
    for number in range(total):
        for contender in case.contenders:
            if contender.name in outcome.missing or contender.name in outcome.wrong:
                continue
            progress(f"{case.name}: round {number + 1}/{total}, {contender.name}")
            try:
                outcome.rounds.setdefault(contender.name, []).append(contender.measure())
            except MissingContenderError as error:
                outcome.missing[contender.name] = str(error)
            except (MeasureError, TimeoutError) as error:
                outcome.wrong[contender.name] = str(error)
    return outcome


def verdicts(outcome: Outcome) -> Iterable[Verdict]:
    """The lines that this outcome adds to the table."""
    for goal in outcome.case.goals:
        lost = [outcome.missing, outcome.wrong]
        words = [
            word
            for name in (goal.ours, goal.peer or goal.ours)
            for word, what in zip(("missing", "wrong"), lost, strict=True)
            if name in what
        ]
        mine = [figures[goal.figure] for figures in outcome.rounds.get(goal.ours, []) if goal.figure in figures]
        theirs = [figures[goal.figure] for figures in outcome.rounds.get(goal.peer or "", []) if goal.figure in figures]
        ours = statistics.median(mine) if mine else None
        peer = statistics.median(theirs) if theirs else None
        ratio = None
        if goal.peer is None and mine:
            ratio = (statistics.median(mine), min(mine), max(mine))
        elif mine and theirs:
            pairs = [goal.ratio(m, t) for m, t in zip(mine, theirs, strict=False)]
            ratio = (statistics.median(pairs), min(pairs), max(pairs))
        yield Verdict(outcome.case.name, goal, ours, peer, ratio, words[0] if words else _word(goal, ratio))


def _word(goal: Goal, ratio: tuple[float, float, float] | None) -> str:
    if ratio is None or goal.factor is None or is_quick():
        return ""
    reached = ratio[0] >= goal.factor if goal.sense == ">=" else ratio[0] <= goal.factor
    return "reached" if reached else "not reached"


def show(figure: str, value: float) -> str:
    """A figure as people read it; the unit is the last part of its name."""
    match figure.rsplit("_", 1)[-1] if "_" in figure else figure:
        case "us":
            return f"{value:,.1f} µs" if value < 1000 else f"{value / 1000:,.2f} ms"
        case "ms":
            return f"{value:,.1f} ms" if value < 1000 else f"{value / 1000:,.2f} s"
        case "s" if figure.endswith("per_s"):
            return f"{value:,.0f}/s"
        case "s":
            return f"{value:,.2f} s"
        case "percent":
            return f"{value:,.2f} %"
        case "bytes":
            return f"{value:,.0f} B"
        case "lost":
            return f"{value:,.0f}"
        case "mb":
            return f"{value:,.2f} MB"
        case _:
            return f"{value:,.3g}"


def percentile(values: list[float], fraction: float) -> float:
    """The value that `fraction` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(fraction * len(ordered) + 0.5) - 1))]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that was measured, for a machine."""
    return {
        "case": outcome.case.name,
        "title": outcome.case.title,
        "rounds": outcome.rounds,
        "missing": outcome.missing,
        "wrong": outcome.wrong,
        "verdicts": [
            {
                "figure": verdict.goal.figure,
                "ours": verdict.ours,
                "peer_name": verdict.goal.peer,
                "peer": verdict.peer,
                "ratio_median_min_max": verdict.ratio,
                "goal": verdict.goal.text,
                "verdict": verdict.word,
            }
            for verdict in verdicts(outcome)
        ],
    }
