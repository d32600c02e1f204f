"""`muster send`: put a message into an inbox."""

from __future__ import annotations

from typing import Any

import click

from muster.cli.fast import Parsed
from muster.cli.main import common
from muster.cli.speaking import carry_out

#: Options that only tasks have.
WISHES = ("priority", "delay", "after", "tags", "timeout", "retries")


@click.command("send", short_help="Put a message into an agent's inbox.")
@common()
@click.argument("to")
@click.argument("body", required=False)
@click.option(
    "--as", "as_", metavar="NAME", help="Speak as NAME [default: the agent whose command this is, else operator]."
)
@click.option("-t", "--type", metavar="TYPE", help="Type of the message [default: message].")
@click.option("--json-body", is_flag=True, help="BODY is a JSON value, not text.")
@click.option("--id", metavar="ID", help="Message id: sending it again adds no second copy.")
@click.option("--control", is_flag=True, help="Overtake messages of normal priority.")
@click.option("--priority", type=int, metavar="N", help="Of a task: from -100 to 100, higher ones first.")
@click.option("--delay", metavar="DURATION", help="Of a task: do not begin it earlier.")
@click.option(
    "--after", type=int, multiple=True, metavar="NUMBER", help="Of a task: begin it when task NUMBER is done."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Of a task: for agents whose kind has TAG.")
@click.option("--timeout", metavar="DURATION", help="Of a task: end it when it takes longer.")
@click.option("--retries", type=int, metavar="N", help="Of a task: try it again up to N times when it fails.")
@click.option(
    "--wait",
    metavar="DURATION",
    help="Wait this long for room in a full inbox; 0s: be refused at once [default: as the inbox's overflow says].",
)
def command(to: str, body: str | None, as_json: bool, json_body: bool, control: bool, **values: Any) -> int:
    """Put BODY (default: standard input) into the inbox of agent TO, or of every member of a group such as @workers.

    When it returns 0, the message is stored: it survives the death of every process. --json prints its id and number.

    A message of type task or task@KIND to the coordinator is a task, with BODY as its input; the options of a task say when, where and
    how often it is tried.
    """
    flags = {name for name, given in (("json", as_json), ("json_body", json_body), ("control", control)) if given}
    values["as"] = values.pop("as_")
    wishes = {name: values.pop(name) for name in WISHES}
    words = [to] if body is None else [to, body]
    parsed = Parsed("send", words, {key: value for key, value in values.items() if value is not None}, flags)
    parsed.wishes = {name: value for name, value in wishes.items() if value not in (None, ())}
    return carry_out(parsed)
