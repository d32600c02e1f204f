"""`muster retire`: take an agent off the roster."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import print_json, safe


@click.command("retire", short_help="Take an agent off the roster, and keep what waits for it.")
@common()
@click.argument("name")
@click.option("--reason", default="retired", show_default=True, metavar="TEXT", help="What its dead letters say.")
def command(name: str, as_json: bool, store: str | None, fleet: str | None, reason: str) -> int:
    """Take the agent NAME off the roster: nobody can write to it any more.

    What waits for it becomes dead letters, and its senders are told so; what it has sent stays until it is read. Refused while a living
    process is that agent. Calling it again frees what has been read since. Exit status 1 if messages came in at the same instant: call it
    again.
    """
    from muster.bus.transports.lanes.retire import retire_agent
    from muster.fleet import places

    found = places.chosen(fleet, store)
    done = retire_agent(found.store, name, reason=reason)
    if as_json:
        print_json({"agent": name, "fleet": found.name, **done._asdict()})
    else:
        lines = [f"{name} is retired; {_messages(done.letters)} for it became dead letters"]
        lines += [
            f"{_messages(count)} of its own still {'waits' if count == 1 else 'wait'} for {other}"
            for other, count in done.waiting.items()
        ]
        lines += [f"{_messages(done.left)} came in meanwhile: call it again"] if done.left else []
        sys.stdout.write(safe("\n".join(lines)) + "\n")
    return 1 if done.left else 0


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"
