"""Draw the lives of tasks, workers and agents from the coordinator's own tables: `.venv/bin/python scripts/diagrams.py`.

Every state is a vertical line, every move an arrow from line to line with its causes, in the order of the table. `--check` writes nothing
and fails when a drawing in docs/charts is not what the tables say.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from muster.coordinator import lives, tasks

CHARTS = Path(__file__).resolve().parent.parent / "docs" / "charts"
Table = Mapping[tuple[str, str], str]

#: File -> its title and its table.
DIAGRAMS: dict[str, tuple[str, Table]] = {
    "life-of-a-task.svg": ("The life of a task", tasks.TRANSITIONS),
    "life-of-a-worker.svg": ("The life of a worker, as the coordinator knows it", lives.WORKER_TRANSITIONS),
    "life-of-an-agent.svg": ("The life of an agent, as the coordinator knows it", lives.AGENT_TRANSITIONS),
}

COLUMN, ROW, MARGIN, TOP = 116, 30, 66, 108
STYLE = """
.card { fill: #ffffff; stroke: #d8dee4 }
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; font-size: 12px; fill: #1f2328; text-anchor: middle }
.title { font-size: 16px; font-weight: 600; text-anchor: start }
.state { fill: #eaf3fc; stroke: #0a66c2 }
.last { fill: #f0f1f3; stroke: #59636e }
.name { font-weight: 600 }
.line { stroke: #d8dee4; stroke-width: 2 }
.move { stroke: #0a66c2; stroke-width: 1.5; fill: none }
.tip { fill: #0a66c2 }
.cause { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
"""


def states_of(table: Table) -> list[str]:
    """Every state, in the order in which the table names them."""
    return list(dict.fromkeys(state for (old, _), new in table.items() for state in (old, new)))


def moves_of(table: Table) -> list[tuple[str, str, str]]:
    """(from, to, causes): moves between the same two states are one arrow."""
    causes: dict[tuple[str, str], list[str]] = {}
    for (old, cause), new in table.items():
        causes.setdefault((old, new), []).append(cause)
    return [(old, new, ", ".join(why).replace("_", " ")) for (old, new), why in causes.items()]


def draw(title: str, table: Table) -> str:
    """The drawing as SVG."""
    states, moves = states_of(table), moves_of(table)
    at = {state: MARGIN + COLUMN * number for number, state in enumerate(states)}
    width = 2 * MARGIN + COLUMN * (len(states) - 1) + 44
    height = TOP + ROW * len(moves) + 12
    begun = {old for old, _ in table}
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="title" x="16" y="30">{escape(title)}</text>',
    ]
    for state, x in at.items():
        parts += [
            f'<line class="line" x1="{x}" y1="76" x2="{x}" y2="{height - 14}"/>',
            f'<rect class="{"state" if state in begun else "last"}" x="{x - 50}" y="48" width="100" height="28" rx="14"/>',
            f'<text class="name" x="{x}" y="66">{escape(state)}</text>',
        ]
    for row, (old, new, why) in enumerate(moves):
        parts += arrow(at[old], at[new], TOP + ROW * row, why)
    return "\n".join([*parts, "</svg>", ""])


def arrow(start: int, end: int, y: int, why: str) -> list[str]:
    """One move at height `y`; a move from a state to itself is a loop."""
    text = escape(why)
    if start == end:
        path = f"M{start} {y - 7} h14 a5 5 0 0 1 5 5 v4 a5 5 0 0 1 -5 5 h-8"
        tip = f"{start + 1},{y + 7} {start + 9},{y + 3} {start + 9},{y + 11}"
        label = f'<text class="cause" x="{start + 26}" y="{y + 4}" style="text-anchor: start">{text}</text>'
    else:
        step = 1 if end > start else -1
        path = f"M{start} {y} H{end - 7 * step}"
        tip = f"{end - step},{y} {end - 9 * step},{y - 4} {end - 9 * step},{y + 4}"
        middle = (start + end) // 2 if abs(end - start) < 2 * COLUMN else start + step * COLUMN
        label = f'<text class="cause" x="{middle}" y="{y - 5}">{text}</text>'
    return [
        label,  # below the arrow: its halo is for the lines of the states
        f'<path class="move" d="{path}"/>',
        f'<circle class="tip" cx="{start}" cy="{y if start != end else y - 7}" r="3"/>',
        f'<polygon class="tip" points="{tip}"/>',
    ]


def main() -> int:
    """Write the drawings, or with `--check` compare them."""
    behind = []
    for name, (title, table) in DIAGRAMS.items():
        drawing, path = draw(title, table), CHARTS / name
        if path.exists() and path.read_text(encoding="utf-8") == drawing:
            continue
        behind.append(name)
        if "--check" not in sys.argv:
            path.write_text(drawing, encoding="utf-8")
    if "--check" in sys.argv and behind:
        print(f"docs/charts is behind the tables ({', '.join(behind)}): run .venv/bin/python scripts/diagrams.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
