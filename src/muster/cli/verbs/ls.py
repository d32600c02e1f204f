"""`muster ls`: the agents of a fleet."""

from __future__ import annotations

import sys
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import columns, print_json


@click.command("ls", short_help="List the agents of a fleet and what waits for them.")
@common()
@click.option("--fleets", is_flag=True, help="List the fleets of this user instead, also those that are down.")
def command(as_json: bool, store: str | None, fleet: str | None, fleets: bool) -> int:
    """List the agents that can be written to: state, messages that wait in the inbox, age of the oldest of them, dead letters."""
    from muster.fleet import places, state

    if fleets:
        found = [
            {"fleet": f.name, "kind": "run" if f.is_run else "standing", "state": _state(f), "store": str(f.store)}
            for f in places.scan(store)
        ]
        head: tuple[str, ...] = ("FLEET", "KIND", "STATE", "STORE")
    else:
        found = state.roster_of(places.chosen(fleet, store))
        head = ("AGENT", "STATE", "WAITING", "OLDEST", "DEAD")
    if as_json:
        print_json(found)
    else:
        sys.stdout.write("\n".join(columns(head, [_row(row) for row in found])) + "\n")
    return 0


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    from muster.fleet.durations import format_duration

    age_s = row.get("oldest_age_s")
    shown = {**row, "oldest_age_s": None if age_s is None else format_duration(age_s)} if "oldest_age_s" in row else row
    return tuple(shown.values())


def _state(fleet: object) -> str:
    from muster.fleet.places import Fleet

    assert isinstance(fleet, Fleet)
    if fleet.spawner_pid is not None:
        return "up"
    if not fleet.is_run:
        return "down"
    from muster.fleet.leftovers import has_ended

    return "ended" if has_ended(fleet) else "crashed"
