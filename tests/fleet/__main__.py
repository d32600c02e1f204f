"""`python -m tests.fleet`: the figures of the last `make fleet` into docs/performance.md."""

from __future__ import annotations

import json
import sys

from benchmarks.page import PAGE, replace_part

from . import figures


def main() -> int:
    """Write the table. 1 if there are no figures of a whole run."""
    try:
        told = json.loads(figures.FILE.read_text())
    except FileNotFoundError:
        print("tests.fleet: there are no figures yet; `make fleet` measures them", file=sys.stderr)
        return 1
    load = " ".join(f"{one:.1f}" for one in told["load"])
    lines = [
        f"{told['cores']} cores, load at the end {load}, {told['at']}, form `{told['form']}`.",
        "",
        "| | | goal | |",
        "|---|---:|---|---|",
    ]
    for row in told["figures"]:
        figure = figures.Figure(**{name: row[name] for name in figures.Figure._fields})
        lines.append(
            f"| {figure.what.replace('  ', '… ', 1)} | {figure.shown} | {figure.goal_shown} | {figure.verdict} |"
        )
    PAGE.write_text(replace_part(PAGE.read_text(encoding="utf-8"), "kills", "\n".join(lines)), encoding="utf-8")
    print(f"tests.fleet: wrote {len(told['figures'])} figures into {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
