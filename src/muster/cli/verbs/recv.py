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
@click.option("-n", metavar="N", help="Take up to N messages; 0: all that are there [default: 1].")
@click.option("--wait", metavar="DURATION", help="Wait this long for the first one [default: do not wait].")
def command(as_json: bool, **values: Any) -> int:
    """Print messages from the inbox, each with its sender in front (--json: one object per line), and ack them once they are printed.

    Exit status 1 if there was none.
    """
    values["as"] = values.pop("as_")
    given = {key: value for key, value in values.items() if value is not None}
    return carry_out(Parsed("recv", [], given, {"json"} if as_json else set()))
