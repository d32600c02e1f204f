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

    Work in hand may finish within the fleet's grace; what has not begun is handed back. Messages that nobody read are kept for the next
    start.
    """
    from muster.bus.store import unread
    from muster.fleet import places, up
    from muster.fleet.durations import format_duration, parse_duration
    from muster.fleet.logs import last_event

    found = places.chosen(name or fleet, store)
    started_at = time.monotonic()
    status = up.down(found, now=now, timeout_s=parse_duration(wait, "--wait"))
    took_s = time.monotonic() - started_at
    ended = last_event(found.store, "fleet.ended") or {}
    kept = unread(found.store) if found.store.exists() else 0
    facts = {key: value for key, value in ended.items() if key not in ("at", "event", "source")}
    if as_json:
        print_json(
            {"fleet": found.name, "exit_status": status, "took_s": round(took_s, 3), "unread_kept": kept, **facts}
        )
    else:
        note = f"; {kept} unread messages are kept for the next start" if kept else ""
        sys.stdout.write(f"{found.name} is down ({format_duration(took_s)}){note}\n")
    return 0
