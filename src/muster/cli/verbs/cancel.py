"""`muster cancel`: end tasks that nobody wants any more."""

from __future__ import annotations

import sys
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import print_json
from muster.errors import UsageError

WAITING = ("queued", "delayed", "blocked")


@click.command("cancel", short_help="Cancel tasks: those that wait, and those that run.")
@common()
@click.argument("numbers", nargs=-1, metavar="[NUMBER|FIRST-LAST]…")
@click.option("--waiting", is_flag=True, help="All that have not begun.")
@click.option("--running", is_flag=True, help="All that agents work on.")
@click.option("--all", "everything", is_flag=True, help="All that are not over.")
@click.option("--kind", default="", metavar="KIND", help="Of these, only tasks for agents of KIND.")
@click.option("--reason", default="", metavar="TEXT", help="Kept as evidence with each of them.")
@click.option("--wait", default="30s", show_default=True, metavar="DURATION", help="How long to wait for what runs.")
def command(numbers: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None, **options: Any) -> int:
    """Cancel tasks by number, or all that wait, run, or both.

    What waits is cancelled at once, and so dies whatever comes after it. What runs is ended with its whole process tree; it is cancelled
    once nothing of it is left. Cancelled tasks are kept: `muster retry` queues them again. Exit status 1 if something still runs after
    --wait.
    """
    from muster.core.requests import CancelTasks
    from muster.fleet import places, tasking
    from muster.fleet.durations import parse_duration

    waits, runs = (options["everything"] or options[which] for which in ("waiting", "running"))
    states = [*(WAITING if waits else ()), *(("assigned",) if runs else ())]
    chosen = tasking.parse_numbers(numbers)
    if bool(chosen) == bool(states):
        raise UsageError("name tasks by number, or say --waiting, --running or --all")
    order = CancelTasks(numbers=chosen, states=states, kind=options["kind"], reason=options["reason"])
    told = tasking.cancel(places.chosen(fleet, store), order, wait_s=parse_duration(options["wait"], "--wait"))
    if as_json:
        print_json(told)
    else:
        over = f"; {told['over']:,} were over before" if told["over"] else ""
        left = f"; {len(told['running']):,} are still being ended" if told["running"] else ""
        sys.stdout.write(f"{told['cancelled']:,} cancelled{over}{left}\n")
    return 1 if told["running"] else 0
