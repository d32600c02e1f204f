"""`muster guide`."""

from __future__ import annotations

from pathlib import Path

import click

from muster.cli.main import common
from muster.cli.output import print_json
from muster.fleet.guide import GUIDE, put_into


@click.command("guide", short_help="Print what to tell agents about the bus.")
@common(fleet=False)
@click.option(
    "--write",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Put it into FILE, or bring it up to date there.",
)
def command(as_json: bool, store: str | None, files: tuple[Path, ...]) -> int:
    """Print what to tell an agent about the bus.

    It belongs into AGENTS.md, CLAUDE.md or the prompt: agents that are not told about a bus do not use it.
    --write AGENTS.md puts it there between two marks; again, and it is replaced by the newer text.
    """
    del store
    if not files:
        if as_json:
            print_json({"guide": GUIDE})
        else:
            click.echo(GUIDE, nl=False)
        return 0
    changed = {str(file): put_into(file) for file in files}
    if as_json:
        print_json({"changed": changed})
    else:
        for file, was_changed in changed.items():
            click.echo(f"{file}: {'written' if was_changed else 'was up to date'}")
    return 0
