"""`muster resume`: assign tasks again after a pause, or after a budget was used up."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import print_json


@click.command("resume", short_help="Assign tasks again after a pause.")
@common()
@click.argument("kinds", nargs=-1, metavar="[KIND]…")
@click.option("--budget", metavar="BUDGET", help="Let the fleet spend so much in all, e.g. 40USD or '4M tokens'.")
def command(kinds: tuple[str, ...], budget: str | None, as_json: bool, store: str | None, fleet: str | None) -> int:
    """Let agents of each KIND work again; without one, everybody."""
    from muster.core.requests import Resume
    from muster.fleet import asking, places
    from muster.fleet.limiting import budget_of

    wanted = None
    if budget is not None:
        bound = budget_of(budget, "--budget")
        wanted = (bound.micro_usd, bound.tokens)
    told = asking.order(places.chosen(fleet, store), Resume(kinds=list(kinds), budget=wanted))
    if as_json:
        print_json(told)
    else:
        rest = f"; still paused: {', '.join(told['paused'])}" if told["paused"] else ""
        sys.stdout.write(f"resumed{rest}\n")
    return 0
