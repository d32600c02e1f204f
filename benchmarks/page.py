"""`--write docs`: the tables of docs/performance.md, between their markers, and the charts beside it.

A marked part looks like this; what stands between its markers is replaced, everything else on the page is written by people:

    <!-- bench:messages -->
    …
    <!-- bench:end -->

A part is only written when all its cases were measured in this run, so that `--only` never thins out a table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.case_flow import PATTERNS, SIZES
from benchmarks.charts import draw
from benchmarks.harness import Outcome, Verdict, show, verdicts
from benchmarks.setting import ROOT, machine, versions
from benchmarks.table import row_of, short

PAGE = ROOT / "docs" / "performance.md"
CHARTS = ROOT / "docs" / "charts"
#: Raw socket pairs and bare digests store nothing and promise nothing: floors, not peers.
_FLOORS = ("socketpair", "two digests", "python3 -c pass")

Outcomes = Mapping[str, Outcome]


class MarkerError(Exception):
    """The page lacks a marker, or has it twice; nothing was written."""


def replace_part(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of the part `name`. Raises MarkerError."""
    begin, end = f"<!-- bench:{name} -->", "<!-- bench:end -->"
    if page.count(begin) != 1:
        raise MarkerError(f"the page has the marker {begin} {page.count(begin)} times")
    start = page.index(begin) + len(begin)
    stop = page.find(end, start)
    following = page.find("<!-- bench:", start)
    if stop < 0 or following != stop:
        raise MarkerError(f"the part {name} of the page has no {end}")
    return f"{page[:start]}\n\n{text.strip()}\n\n{page[stop:]}"


def _of(outcomes: Outcomes, names: Sequence[str]) -> list[Outcome]:
    return [outcomes[name] for name in names]


def _facts() -> str:
    facts = machine()
    system = facts["system"].split("-")[0]
    measured = f"{facts['processor']}, {facts['cores']} cores, {system}, load {facts['load']}, {facts['date']}."
    return measured + "\n" + ", ".join(f"{name} {found}" for name, found in versions().items()) + "."


def goals_table(outcomes: Sequence[Outcome]) -> str:
    """One line for each comparison of these cases."""
    lines = ["| case | muster | beside | | ratio (lowest–highest) | goal | |", "|---|---:|---|---:|---|---|---|"]
    for outcome in outcomes:
        lines += ["| " + " | ".join(str(cell) for cell in row_of(verdict)) + " |" for verdict in verdicts(outcome)]
    return "\n".join(lines)


def matrix(outcomes: Sequence[Outcome], figure: str, *, more_is_better: bool = True) -> str:
    """A line for each case, a column for each contender: its median, and how muster stands to it within the rounds."""
    names = list(dict.fromkeys(contender.name for outcome in outcomes for contender in outcome.case.contenders))
    ours, peers = names[0], names[1:]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for outcome in outcomes:
        mine = _values(outcome, ours, figure)
        cells = [f"**{show(figure, statistics.median(mine))}**" if mine else _why(outcome, ours)]
        for peer in peers:
            theirs = _values(outcome, peer, figure)
            if not mine or not theirs:
                cells.append(_why(outcome, peer))
                continue
            ratios = [m / t if more_is_better else t / m for m, t in zip(mine, theirs, strict=False)]
            cells.append(f"{show(figure, statistics.median(theirs))} ({short(statistics.median(ratios))} ×)")
        lines.append(f"| {outcome.case.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _values(outcome: Outcome, contender: str, figure: str) -> list[float]:
    return [figures[figure] for figures in outcome.rounds.get(contender, []) if figure in figures]


def _why(outcome: Outcome, contender: str) -> str:
    return "missing" if contender in outcome.missing else "wrong" if contender in outcome.wrong else "—"


def is_lost(verdict: Verdict) -> bool:
    """Whether the peer does better than muster here, goal or no goal. Floors do not count, nor what is no comparison."""
    goal = verdict.goal
    if verdict.ratio is None or goal.peer is None or goal.peer.startswith(_FLOORS) or goal.peer.endswith(" agents"):
        return False
    return verdict.ratio[0] < 1 if goal.sense == ">=" else verdict.ratio[0] > 1


def peers_ahead(outcomes: Sequence[Outcome]) -> str:
    """Every comparison that a peer wins, in words that need no goal."""
    lines = ["| what | muster | peer | | peer is ahead by |", "|---|---:|---|---:|---|"]
    for outcome in outcomes:
        for verdict in verdicts(outcome):
            if is_lost(verdict) and verdict.ratio and verdict.ours is not None and verdict.peer is not None:
                goal = verdict.goal
                ahead = 1 / verdict.ratio[0] if goal.sense == ">=" else verdict.ratio[0]
                what = ", ".join(word for word in (outcome.case.title, goal.label, goal.figure[:3]) if word)
                what = what if goal.figure[:3] in ("p50", "p99") else what.removesuffix(f", {goal.figure[:3]}")
                ours, theirs = show(goal.figure, verdict.ours), show(goal.figure, verdict.peer)
                lines.append(f"| {what} | {ours} | {goal.peer} | {theirs} | {short(ahead)} × |")
    return "\n".join(lines)


_PATTERN_CASES = [name + suffix for name in PATTERNS for suffix in ("", "b")]
_SIZE_CASES = [f"size{name}" for name in SIZES]
_STORE_CASES = [f"store{name}" for name in SIZES]
_GOALS = {
    "messages": ["message", "sign", "roundtrip"],
    "rounds": ["round50", "round358", "round750"],
    "fleets": ["idle50", "idle750", "dense", "ready50", "ready358", "ready750"],
    "commands": ["run2", "run50", "work", "verb"],
    "proxy": ["proxy"],
}


def parts(outcomes: Outcomes) -> dict[str, str]:
    """The text of every part whose cases were all measured."""

    def has(names: Sequence[str]) -> bool:
        return all(name in outcomes for name in names)

    found = {name: goals_table(_of(outcomes, cases)) for name, cases in _GOALS.items() if has(cases)}
    if has(_PATTERN_CASES):
        fifty = [verdict for verdict in verdicts(outcomes["50to1"]) if verdict.goal.factor is not None]
        goal = "; ".join(
            f"{verdict.goal.peer}: {verdict.goal.text}, {verdict.word or 'not judged'}" for verdict in fifty
        )
        table = matrix(_of(outcomes, _PATTERN_CASES), "per_s")
        found["patterns"] = f"{table}\n\nGoal for fifty to one, one at a time, beside {goal}."
    if has(_SIZE_CASES):
        found["sizes"] = matrix(_of(outcomes, _SIZE_CASES), "per_s")
    if has(_STORE_CASES):
        found["store"] = matrix(_of(outcomes, _STORE_CASES), "bytes", more_is_better=False)
    if has([*_GOALS["messages"], *_PATTERN_CASES, *_SIZE_CASES, *_STORE_CASES, *_GOALS["rounds"], *_GOALS["commands"]]):
        found["machine"] = _facts()
        found["peers-ahead"] = peers_ahead(list(outcomes.values()))
    return found


def write(outcomes: Sequence[Outcome], *, page: Path = PAGE, charts: Path = CHARTS) -> list[str]:
    """Write the parts and charts for which everything was measured; their names. Raises MarkerError, and then nothing was written."""
    by_name = {outcome.case.name: outcome for outcome in outcomes}
    text, written = page.read_text(encoding="utf-8"), []
    for name, part in parts(by_name).items():
        text = replace_part(text, name, part)
        written.append(name)
    drawn = draw(by_name)
    page.write_text(text, encoding="utf-8")
    charts.mkdir(exist_ok=True)
    for name, svg in drawn.items():
        (charts / f"{name}.svg").write_text(svg, encoding="utf-8")
        written.append(f"{name}.svg")
    return written
