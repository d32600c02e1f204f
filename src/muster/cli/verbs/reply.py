"""`muster reply`: answer a message."""

from __future__ import annotations

from typing import Any

import click

from muster.cli.fast import Parsed
from muster.cli.main import common
from muster.cli.speaking import carry_out


@click.command("reply", short_help="Answer a message that was taken.")
@common()
@click.argument("to")
@click.argument("body", required=False)
@click.option(
    "--as", "as_", metavar="NAME", help="Speak as NAME [default: the agent whose command this is, else operator]."
)
@click.option("--answers", metavar="ID", help="Answer the message with this id [default: the newest one of TO].")
@click.option("-t", "--type", metavar="TYPE", help="Type of the message [default: message; reply to who asks].")
@click.option("--json-body", is_flag=True, help="BODY is a JSON value, not text.")
@click.option(
    "--wait",
    metavar="DURATION",
    help="Wait this long for room in a full inbox; 0s: be refused at once [default: as the inbox's overflow says].",
)
def command(to: str, body: str | None, as_json: bool, json_body: bool, **values: Any) -> int:
    """Answer the newest message that was taken of agent TO with BODY (default: standard input).

    Whoever asked with `muster ask` gets it as the reply. Any other answer makes its conversation one message longer; when it is longer than
    the fleet allows, nothing is sent, and the exit status is 1: so agents that answer each other come to an end. `muster send` begins anew.
    """
    flags = {name for name, given in (("json", as_json), ("json_body", json_body)) if given}
    values["as"] = values.pop("as_")
    words = [to] if body is None else [to, body]
    return carry_out(Parsed("reply", words, {key: value for key, value in values.items() if value is not None}, flags))
