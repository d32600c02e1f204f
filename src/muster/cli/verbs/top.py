"""`muster top`: a fleet, live in the terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from muster.cli.main import common
from muster.cli.output import columns, paint, print_json, safe
from muster.errors import UsageError

if TYPE_CHECKING:
    from muster.fleet.overview import View

#: Shorter ones would show nothing new: a busy agent writes its page once a second.
INTERVAL_S_MIN = 0.2
HEAD = ("AGENT", "TEAM", "STATE", "HEALTH", "TASK", "DONE", "FAILED", "INBOX", "RESTARTS", "MEMORY", "SEEN")
_COLORS = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "dead": "red",
    "gone": "red",
    "quarantined": "red",
}


@click.command("top", short_help="Watch a fleet live: agents, tasks, throughput.")
@common()
@click.argument("name", required=False)
@click.option(
    "--once", is_flag=True, help="Print the table once and end; so it is without a terminal, and with --json."
)
@click.option("--interval", default="1s", show_default=True, metavar="DURATION", help="Time between two looks.")
@click.option("--sort", default="agent", show_default=True, metavar="COLUMN", help="Order of the agents.")
@click.option(
    "--filter", "words", default="", metavar="WORDS", help="Only agents whose row contains all of these words."
)
def command(name: str | None, as_json: bool, store: str | None, fleet: str | None, once: bool, **chosen: str) -> int:
    """Show the agents of a fleet with their states, tasks, memory and inboxes, and what the fleet gets done, look after look.

    What is shown comes from the coordinator and from the agents' status pages; looking changes nothing. Keys: s sorts by the next
    column, r reverses, / filters, t shows teams, space freezes, q quits.
    """
    from muster.fleet import places
    from muster.fleet.durations import parse_duration
    from muster.fleet.overview import SORTS, Overview

    sort, words = chosen["sort"], chosen["words"]
    interval_s = parse_duration(chosen["interval"], "--interval")
    if interval_s < INTERVAL_S_MIN:
        raise UsageError(f"--interval: {chosen['interval']} is shorter than {INTERVAL_S_MIN:g}s")
    if sort not in SORTS:
        raise UsageError(f"--sort: there is no column {sort!r:.40}; there are {', '.join(SORTS)}")
    overview = Overview(places.chosen(name or fleet, store))
    if once or as_json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        return _print_once(overview.look(), sort, words, as_json=as_json)
    return _watch(overview, interval_s, sort, words)


def _watch(overview: object, interval_s: float, sort: str, words: str) -> int:
    if os.environ.get("TERM") == "dumb":
        raise UsageError("this terminal cannot be drawn on; `muster top --once` prints the table")
    try:
        from muster.tui.top import Top
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise UsageError(
            "the live table needs textual: pip install 'muster-fleet[tui]'; `muster top --once` prints the table without it"
        ) from None
    return Top(overview, interval_s=interval_s, sort=sort, words=words).run() or 0  # type: ignore[arg-type]


def _print_once(view: View, sort: str, words: str, *, as_json: bool) -> int:
    from muster.fleet.durations import format_duration
    from muster.fleet.overview import arrange, restarts_of
    from muster.fleet.sizes import format_bytes

    rows = arrange(view.agents, sort, words)
    if as_json:
        print_json({**view.as_dict(), "agents": rows})
        return 0 if not view.problem else 1
    sums = view.totals()
    states = ", ".join(f"{count:,} {state}" for state, count in sums["states"].items())
    how = f"{paint(view.state, _COLORS.get(view.state, ''))}, {paint(view.verdict, _COLORS.get(view.verdict, ''))}"
    whole = f"{sums['agents']:,} agents{f' ({states})' if states else ''}; memory {format_bytes(sums['pss_bytes'])}"
    lines = [f"{view.fleet} is {how}; {whole}"]
    if view.problem:
        lines.append(paint(f"  ! {safe(view.problem)}", "red"))
    if view.tasks:
        lines.append("tasks: " + ", ".join(f"{count:,} {what}" for what, count in view.tasks.items() if count))
    table = [
        (
            row["agent"], row.get("team") or None, row["state"], row["verdict"], row.get("task"), row["done"], row["failed"],
            row["inbox_depth"], restarts_of(row), format_bytes(row["pss_bytes"]) if row.get("pss_bytes") else None,
            None if row.get("heartbeat_age_s") is None else format_duration(row["heartbeat_age_s"]),
        )
        for row in rows
    ]  # fmt: skip
    used = [at for at, title in enumerate(HEAD) if title != "TEAM" or any(row[at] for row in table)]
    lines += ["", *columns([HEAD[at] for at in used], [[row[at] for at in used] for row in table], colors=_COLORS)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if not view.problem else 1
