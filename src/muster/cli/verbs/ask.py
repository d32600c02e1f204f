"""`muster ask`: send a request, print the reply."""

from __future__ import annotations

from typing import Any

import click

from muster.cli.fast import Parsed
from muster.cli.main import common
from muster.cli.speaking import carry_out


@click.command("ask", short_help="Send a request and print the reply.")
@common()
@click.argument("to")
@click.argument("body", required=False)
@click.option(
    "--as", "as_", metavar="NAME", help="Speak as NAME [default: the agent whose command this is, else operator]."
)
@click.option("-t", "--type", metavar="TYPE", help="Type of the request [default: ask].")
@click.option("--json-body", is_flag=True, help="BODY is a JSON value, not text.")
@click.option("--timeout", metavar="DURATION", help="How long to wait for the reply [default: 30s].")
def command(to: str, body: str | None, as_json: bool, json_body: bool, **values: Any) -> int:
    """Send BODY (default: standard input) to agent TO and print the body of its reply.

    Exit status 1 if none came in time; the request was stored, and may still be handled.
    """
    flags = {name for name, given in (("json", as_json), ("json_body", json_body)) if given}
    values["as"] = values.pop("as_")
    words = [to] if body is None else [to, body]
    return carry_out(Parsed("ask", words, {key: value for key, value in values.items() if value is not None}, flags))
