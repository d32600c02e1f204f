"""Which charts docs/performance.md shows, drawn from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from benchmarks.case_flow import BATCH, PATTERNS, SIZES
from benchmarks.case_rounds import COST_AGENTS
from benchmarks.contenders import PROCESS_QUEUE, ZEROMQ
from benchmarks.harness import Outcome, show
from benchmarks.svg import Axes, Bar, Group, Line, bars, lines

_MUSTER = "muster"
#: Drawn paler: they store nothing.
_UNSTORED = (ZEROMQ.name, PROCESS_QUEUE.name)
#: The same colour for the same contender in every chart of lines; 0 is ours.
_COLOURS = {_MUSTER: 0, "Redis": 2, "JetStream": 3, "SQLite": 4, "ZeroMQ": 5, "multiprocessing.Queue": 6}
_NOTE = "logarithmic; thin mark: lowest to highest; pale: stores nothing"
Outcomes = Mapping[str, Outcome]


def _values(outcome: Outcome, contender: str, figure: str) -> list[float]:
    return [figures[figure] for figures in outcome.rounds.get(contender, []) if figure in figures]


def _bars(outcome: Outcome, figure: str) -> list[Bar]:
    """One for each contender that was measured, in the order of the case."""
    found = []
    for contender in outcome.case.contenders:
        values = _values(outcome, contender.name, figure)
        if values:
            own = contender.name.startswith(_MUSTER)
            pale = contender.name in _UNSTORED
            found.append(Bar(contender.name, statistics.median(values), min(values), max(values), own, pale))
    return found


def _message(outcomes: Outcomes) -> str:
    return bars(
        "Send, receive and ack one message of 256 B",
        f"time of one message, in one process; shorter is better; {_NOTE}",
        [Group("", _bars(outcomes["message"], "us"))],
        lambda value: show("us", value),
    )


def _patterns(outcomes: Outcomes, suffix: str, how: str) -> str:
    names = {
        "1to1": "one to one",
        "8to1": "eight to one",
        "50to1": "fifty to one",
        "1to50": "one to fifty",
    }
    return bars(
        f"Messages between processes, {how}",
        f"256 B, per second until the last is acked; longer is better; {_NOTE}",
        [Group(names[name], _bars(outcomes[name + suffix], "per_s")) for name in PATTERNS],
        lambda value: show("per_s", value),
    )


def _lines(outcomes: Outcomes, prefix: str, figure: str) -> list[Line]:
    contenders = [contender.name for contender in outcomes[prefix + next(iter(SIZES))].case.contenders]
    found = []
    for contender in contenders:
        points = [
            (float(size), statistics.median(values))
            for name, size in SIZES.items()
            if (values := _values(outcomes[prefix + name], contender, figure))
        ]
        if points:
            found.append(Line(contender, points, _COLOURS.get(contender.split()[0], 1)))
    return found


def _show_size(value: float) -> str:
    names = {size: name for name, size in SIZES.items()}
    return names[int(value)].replace("B", " B").replace("Ki ", " Ki").replace("Mi ", " Mi")


def _sizes(outcomes: Outcomes) -> str:
    return lines(
        "Messages per second by size of the body",
        "one process to another, one at a time; higher is better; both axes logarithmic",
        _lines(outcomes, "size", "per_s"),
        Axes(
            "size of the body",
            "messages per second",
            _show_size,
            lambda value: show("per_s", value),
            list(SIZES.values()),
        ),
    )


def _store(outcomes: Outcomes) -> str:
    return lines(
        "What a waiting message takes, in times of its body",
        "bytes of the store per byte of body; lower is better; both axes logarithmic",
        _lines(outcomes, "store", "body_times"),
        Axes("size of the body", "times the body", _show_size, lambda value: f"{value:g} ×", list(SIZES.values())),
    )


def _agents(outcomes: Outcomes) -> str:
    outcome = outcomes["round750"]
    points = [
        (float(agents), statistics.median(values))
        for agents in COST_AGENTS
        if (values := _values(outcome, f"{agents} agents", "each_us"))
    ]
    limit = points[0][1] * 1.5
    return lines(
        "What one message costs as the fleet grows",
        "median round of a star, one process for each agent, divided by its messages; both axes logarithmic",
        [Line(_MUSTER, points)],
        Axes(
            "agents",
            "time of one message",
            lambda value: f"{value:.0f}",
            lambda value: show("us", value),
            COST_AGENTS,
            (limit, f"goal: at most 1.5 times what it costs with {COST_AGENTS[0]} agents"),
        ),
    )


def _rounds(outcomes: Outcomes) -> str:
    def group(heading: str, case: str, names: dict[str, str]) -> Group:
        outcome = outcomes[case]
        found = []
        for contender, name in names.items():
            for figure in ("p50_ms", "p99_ms"):
                values = _values(outcome, contender, figure)
                if values:
                    label = f"{name}, {figure[:3]}"
                    own = name.startswith(_MUSTER)
                    found.append(Bar(label, statistics.median(values), min(values), max(values), own, not own))
        return Group(heading, found)

    most = COST_AGENTS[-1]
    star, tree = "socketpair star", "socketpair tree"
    return bars(
        "A round: send to all, and wait for every answer",
        f"one process for each agent; shorter is better; {_NOTE}",
        [
            group("50 agents", "round50", {_MUSTER: _MUSTER, "muster ask": "muster ask", star: star}),
            group("358 processes: a root, 7 coordinators, 350 agents", "round358", {_MUSTER: _MUSTER, tree: tree}),
            group(f"{most} agents", "round750", {f"{most} agents": _MUSTER, f"{star}, {most}": star}),
        ],
        lambda value: show("ms", value),
    )


#: Each chart's file name, the cases that it needs, and how it is drawn.
CHARTS: dict[str, tuple[list[str], Callable[[Outcomes], str]]] = {
    "message": (["message"], _message),
    "patterns": (list(PATTERNS), lambda outcomes: _patterns(outcomes, "", "one at a time")),
    "patterns-batched": ([f"{name}b" for name in PATTERNS], lambda found: _patterns(found, "b", f"by the {BATCH}")),
    "sizes": ([f"size{name}" for name in SIZES], _sizes),
    "rounds": (["round50", "round358", "round750"], _rounds),
    "agents": (["round750"], _agents),
    "store": ([f"store{name}" for name in SIZES], _store),
}


def draw(outcomes: Outcomes) -> dict[str, str]:
    """The SVG text of every chart whose cases were all measured."""
    return {
        name: drawn(outcomes) for name, (needed, drawn) in CHARTS.items() if all(case in outcomes for case in needed)
    }
