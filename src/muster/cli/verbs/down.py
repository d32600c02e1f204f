"""`muster down`: bring a fleet down."""

from __future__ import annotations

import sys
import time

import click

from muster.cli.main import common
from muster.cli.output import print_json


@click.command("down", short_help="Bring a fleet down.")
@common()
@click.argument("name", required=False)
@click.option("--now", is_flag=True, help="Kill running tasks; they are handed back, and run at the next start.")
@click.option("--wait", default="5m", show_default=True, metavar="DURATION", help="How long to wait for its end.")
def command(name: str | None, as_json: bool, store: str | None, fleet: str | None, now: bool, wait: str) -> int:
    """Bring the fleet NAME (or --fleet) down, and wait until nothing of it is left.

    Work in hand may finish within the fleet's grace; what has not begun is handed back. Tasks that are not finished and messages
    that nobody read are kept for the next start. The last line says how many of each.
    """
    from muster.fleet import farewell, logs, places, up
    from muster.fleet.durations import parse_duration

    found = places.chosen(name or fleet, store)
    marks = logs.marks(found.store)
    started_at = time.monotonic()
    status = up.down(found, now=now, timeout_s=parse_duration(wait, "--wait"))
    took_s = time.monotonic() - started_at
    facts = farewell.farewell(found.store, marks)
    if as_json:
        print_json({"fleet": found.name, "took_s": round(took_s, 3), **facts, "exit_status": status})
    else:
        sys.stdout.write(farewell.sentence(found.name, took_s, facts) + "\n")
    return 0
