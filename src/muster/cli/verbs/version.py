"""`muster version`."""

from __future__ import annotations

import platform
import sys

import click

from muster._version import __version__
from muster.cli.main import common
from muster.cli.output import print_json


@click.command("version", short_help="Print the version.")
@common(fleet=False)
def command(as_json: bool, store: str | None) -> int:
    """Print the version of muster, and of the Python it runs on."""
    del store
    if as_json:
        print_json({"muster": __version__, "python": platform.python_version()})
    else:
        sys.stdout.write(f"muster {__version__} (Python {platform.python_version()})\n")
    return 0
