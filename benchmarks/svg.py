"""Charts as SVG text: bars with their values written beside them, and lines with their names at the end. Light and dark by themselves.

A chart draws its own card, so that it reads well on a page of either colour. Nothing is drawn that has no name or number beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
_FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif"
_STYLE = f"""
.card {{ fill: #ffffff; stroke: #d8dee4 }}
text {{ {_FONT}; font-size: 13px; fill: #1f2328 }}
.title {{ font-size: 16px; font-weight: 600 }}
.soft {{ fill: #59636e; font-size: 12px }}
.own {{ font-weight: 600 }}
.axis {{ stroke: #d8dee4; stroke-width: 1 }}
.pale {{ opacity: 0.45 }}
.s0 {{ fill: #0a66c2 }} .s1 {{ fill: #8c959f }} .s2 {{ fill: #b35900 }} .s3 {{ fill: #1a7f37 }} .s4 {{ fill: #8250df }}
.s5 {{ fill: #cf222e }} .s6 {{ fill: #9a6700 }}
.l0 {{ stroke: #0a66c2; stroke-width: 3 }} .l1 {{ stroke: #8c959f }} .l2 {{ stroke: #b35900 }} .l3 {{ stroke: #1a7f37 }}
.l4 {{ stroke: #8250df }} .l5 {{ stroke: #cf222e }} .l6 {{ stroke: #9a6700 }}
.line {{ fill: none; stroke-width: 2; stroke-linejoin: round }} .l0.line {{ stroke-width: 3 }}
.range {{ stroke: #1f2328; stroke-width: 1.5; opacity: 0.55 }}
.limit {{ stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 5 4 }}
@media (prefers-color-scheme: dark) {{
.card {{ fill: #161b22; stroke: #3d444d }}
text {{ fill: #e6edf3 }} .soft {{ fill: #9198a1 }} .axis {{ stroke: #3d444d }}
.s0 {{ fill: #4da3ff }} .s1 {{ fill: #7d8590 }} .s2 {{ fill: #f0a050 }} .s3 {{ fill: #56d364 }} .s4 {{ fill: #bc8cff }}
.s5 {{ fill: #ff7b72 }} .s6 {{ fill: #d8b13c }}
.l0 {{ stroke: #4da3ff }} .l1 {{ stroke: #7d8590 }} .l2 {{ stroke: #f0a050 }} .l3 {{ stroke: #56d364 }}
.l4 {{ stroke: #bc8cff }} .l5 {{ stroke: #ff7b72 }} .l6 {{ stroke: #d8b13c }}
.range {{ stroke: #e6edf3 }} .limit {{ stroke: #9198a1 }}
}}
"""
#: Left of the bars: the names.
_NAMES = 190
#: Right of the bars and lines: values and names.
_VALUES = 150
_ROW = 24
#: Left of the lines: what the ticks say.
_LEFT = 94

Show = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """One bar: its value, and the lowest and highest that were measured."""

    name: str
    value: float
    low: float
    high: float
    is_own: bool = False
    is_pale: bool = False


@dataclass(frozen=True)
class Group:
    """Bars below one heading."""

    heading: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """Points of one contender, in the order of x. Colour 0 is ours, drawn boldly; 1 to 6 are peers'."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0

    @property
    def is_own(self) -> bool:
        return self.colour == 0


class Scale:
    """A logarithmic scale from values to pixels. Raises ValueError for values that are not above zero."""

    def __init__(self, values: Sequence[float], at: tuple[float, float], *, whole_decades: bool = True) -> None:
        if not values or min(values) <= 0:
            raise ValueError("a logarithmic scale needs values above zero")
        low, high = math.log10(min(values)), math.log10(max(values))
        if whole_decades or high - low < 1e-9:
            low, high = math.floor(low + 1e-9), math.ceil(high - 1e-9)
            high = max(high, low + 1)
        self._low, self._high = low, high
        self._from, self._to = at

    def __call__(self, value: float) -> float:
        part = (math.log10(value) - self._low) / (self._high - self._low)
        return self._from + part * (self._to - self._from)

    def ticks(self) -> list[float]:
        """The powers of ten within it."""
        return [10.0**power for power in range(math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9) + 1)]


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _mark(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _round(words: str) -> str:
    """A power of ten as a tick says it: without the zeros behind its point."""
    return re.sub(r"\.0+(?!\d)", "", words)


def _document(title: str, note: str, height: float, parts: list[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>',
        _text(20, 30, title, "title"),
        _text(20, 50, note, "soft"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def bars(title: str, note: str, groups: Sequence[Group], show: Show) -> str:
    """Horizontal bars on one logarithmic scale: the bar is the median, the thin mark from lowest to highest, the number its value."""
    every = [value for group in groups for bar in group.bars for value in (bar.low, bar.high)]
    scale = Scale(every, (_NAMES, WIDTH - _VALUES))
    parts, y = [], 66.0
    for group in groups:
        if group.heading:
            parts.append(_text(20, y + 16, group.heading, "own"))
            y += 26
        for bar in group.bars:
            parts += _bar(bar, y, scale, show)
            y += _ROW
        y += 10
    bottom = y
    grid = []
    for tick in scale.ticks():
        grid.append(_mark(scale(tick), 62, scale(tick), bottom, "axis"))
        grid.append(_text(scale(tick), bottom + 16, _round(show(tick)), "soft", "middle"))
    return _document(title, note, bottom + 32, [*grid, *parts])


def _bar(bar: Bar, y: float, scale: Scale, show: Show) -> list[str]:
    middle = y + _ROW / 2
    width = max(1.0, scale(bar.value) - _NAMES)
    own = "own" if bar.is_own else ""
    kind = "s0" if bar.is_own else "s1 pale" if bar.is_pale else "s1"
    label_x = max(scale(bar.high), scale(bar.value)) + 8
    return [
        _text(_NAMES - 8, middle + 4, bar.name, own, "end"),
        f'<rect x="{_NAMES}" y="{y + 4:.1f}" width="{width:.1f}" height="{_ROW - 8}" rx="2" class="{kind}"/>',
        _mark(scale(bar.low), middle, scale(bar.high), middle, "range"),
        _text(label_x, middle + 4, show(bar.value), own),
    ]


@dataclass(frozen=True)
class Axes:
    """What the axes say: names, how a number is written, and the values of x that get a mark."""

    x_name: str
    y_name: str
    show_x: Show
    show_y: Show
    x_ticks: Sequence[float]
    limit: tuple[float, str] | None = None


def lines(title: str, note: str, found: Sequence[Line], axes: Axes) -> str:
    """Lines over two logarithmic axes, each with its name where it ends."""
    height, top, bottom = 420.0, 84.0, 366.0
    xs = [x for line in found for x, _y in line.points]
    ys = [y for line in found for _x, y in line.points] + ([axes.limit[0]] if axes.limit else [])
    right = WIDTH - 170
    across, up = Scale(xs, (_LEFT, right), whole_decades=False), Scale(ys, (bottom, top))
    parts = [
        _text(20, top - 12, axes.y_name, "soft"),
        _text((_LEFT + right) / 2, height - 14, axes.x_name, "soft", "middle"),
    ]
    for tick in up.ticks():
        parts.append(_mark(_LEFT, up(tick), right, up(tick), "axis"))
        parts.append(_text(_LEFT - 8, up(tick) + 4, _round(axes.show_y(tick)), "soft", "end"))
    for tick in axes.x_ticks:
        parts.append(_mark(across(tick), bottom, across(tick), bottom + 5, "axis"))
        parts.append(_text(across(tick), bottom + 20, axes.show_x(tick), "soft", "middle"))
    if axes.limit is not None:
        value, words = axes.limit
        parts += [_mark(_LEFT, up(value), right, up(value), "limit"), _text(_LEFT + 6, up(value) - 6, words, "soft")]
    ends = spread([up(line.points[-1][1]) for line in found], 16, bottom)
    for line, end in sorted(zip(found, ends, strict=True), key=lambda each: each[0].is_own):
        colour = line.colour
        where = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline points="{where}" class="line l{colour}"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" class="s{colour}"/>' for x, y in line.points]
        parts.append(_text(right + 12, end + 4, line.name, f"s{colour}{' own' if line.is_own else ''}"))
    return _document(title, note, height, parts)


def spread(wanted: Sequence[float], least: float, most: float) -> list[float]:
    """Positions near the wanted ones, at least `least` apart, none above `most`, in the same order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [wanted[index] for index in order]
    for _ in range(200):
        moved = False
        for one in range(len(places) - 1):
            lack = least - (places[one + 1] - places[one])
            if lack > 1e-6:
                places[one] -= lack / 2
                places[one + 1] += lack / 2
                moved = True
        if not moved:
            break
    for one in reversed(range(len(places))):
        places[one] = min(places[one], most)
        most = places[one] - least
    found = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found
