"""`muster logs`: what a fleet logged."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import print_json, safe


@click.command("logs", short_help="Show what a fleet and its agents logged.")
@common()
@click.argument("agent", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is logged, until the fleet is down.")
def command(agent: str | None, as_json: bool, store: str | None, fleet: str | None, follow: bool) -> int:
    """Show the events of a fleet and what its agents' processes printed; only those that concern AGENT if it is given.

    Works on a fleet that is down, too.
    """
    from muster.core.names import agent_id
    from muster.errors import UnknownAgentError
    from muster.fleet import logs, places

    found = places.chosen(fleet, store)
    if agent is not None:
        agent_id(agent, allow_reserved=True)
        if agent not in ("coordinator", "spawner") and not (found.store / "agents" / agent).is_dir():
            raise UnknownAgentError(f"the fleet {found.name!r} has no agent {agent!r}", agent=agent)
    for entry in logs.entries(found.store, agent, follow=follow, ended=lambda: places.spawner_pid(found.store) is None):
        if as_json:
            print_json(entry)
        else:
            sys.stdout.write(safe(logs.render(entry)) + "\n")
        sys.stdout.flush()
    return 0
