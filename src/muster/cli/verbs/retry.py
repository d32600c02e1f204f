"""`muster retry`: queue tasks again that ended without success."""

from __future__ import annotations

import sys
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import print_json
from muster.errors import UsageError

STATES = ("failed", "dead", "cancelled")


@click.command("retry", short_help="Queue tasks again that failed, died or were cancelled.")
@common()
@click.argument("numbers", nargs=-1, metavar="[NUMBER|FIRST-LAST]…")
@click.option("--failed", is_flag=True, help="All whose attempts failed.")
@click.option("--dead", is_flag=True, help="All that were given up: their workers died, or nobody could do them.")
@click.option("--cancelled", is_flag=True, help="All that were cancelled.")
@click.option("--all", "everything", is_flag=True, help="All of these.")
@click.option("--kind", default="", metavar="KIND", help="Of these, only tasks for agents of KIND.")
def command(numbers: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None, **options: Any) -> int:
    """Queue tasks again by number, or all that ended so, with the attempts that they are allowed counted anew.

    The newest 10,000 tasks that ended without success are kept for this, with their inputs; `muster dead` lists them.
    """
    from muster.core.requests import RetryTasks
    from muster.fleet import places, tasking

    states = [state for state in STATES if options["everything"] or options[state]]
    chosen = tasking.parse_numbers(numbers)
    if bool(chosen) == bool(states):
        raise UsageError("name tasks by number, or say --failed, --dead, --cancelled or --all")
    told = tasking.retry(places.chosen(fleet, store), RetryTasks(numbers=chosen, states=states, kind=options["kind"]))
    if as_json:
        print_json(told)
    else:
        count = told["retried"]
        sys.stdout.write(f"{count:,} {'task is' if count == 1 else 'tasks are'} queued again\n")
    return 0
