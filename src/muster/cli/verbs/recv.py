"""`muster recv`: take messages from an inbox."""

from __future__ import annotations

from typing import Any

import click

from muster.cli.fast import Parsed
from muster.cli.main import common
from muster.cli.speaking import carry_out


@click.command("recv", short_help="Take messages from the inbox.")
@common()
@click.option(
    "--as", "as_", metavar="NAME", help="Read as NAME [default: the agent whose command this is, else operator]."
)
@click.option("-n", metavar="N", help="Take up to N messages; 0: all that are there [default: 1, with --peek all].")
@click.option("--wait", metavar="DURATION", help="Wait this long for the first one [default: do not wait].")
@click.option("--peek", is_flag=True, help="Show what waits and leave it there; also while the inbox's owner lives.")
def command(as_json: bool, peek: bool, **values: Any) -> int:
    """Print messages from the inbox, each with its sender in front (--json: one object per line), and ack them once they are printed.

    With --peek they are neither taken nor acked, and --json tells as `state` whether somebody has one in hand. Exit status 1 if there was
    none.
    """
    values["as"] = values.pop("as_")
    given = {key: value for key, value in values.items() if value is not None}
    flags = {name for name, is_given in (("json", as_json), ("peek", peek)) if is_given}
    return carry_out(Parsed("recv", [], given, flags))
