"""`muster pause`: assign nothing new, to anybody or to some kinds."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import print_json


@click.command("pause", short_help="Assign nothing new, to anybody or to some kinds.")
@common()
@click.argument("kinds", nargs=-1, metavar="[KIND]…")
def command(kinds: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None) -> int:
    """Assign nothing new to agents of each KIND; without one, to nobody.

    What runs goes on to its end. It holds until `muster resume`, also over restarts of the fleet; `muster status` shows it.
    """
    from muster.core.requests import Pause
    from muster.fleet import asking, places

    told = asking.order(places.chosen(fleet, store), Pause(kinds=list(kinds)))
    if as_json:
        print_json(told)
    else:
        running = f"; {told['running']:,} tasks in hand go on" if told["running"] else ""
        who = "everybody" if "*" in told["paused"] else ", ".join(told["paused"])
        sys.stdout.write(f"paused: {who}{running}\n")
    return 0
