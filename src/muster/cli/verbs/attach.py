"""`muster attach`: follow a detached run."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import print_json


@click.command("attach", short_help="Follow a run that was started with --detach.")
@common(fleet=False)
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(name: str | None, as_json: bool, store: str | None, quiet: bool) -> int:
    """Print what the detached run NAME has printed and prints, show its progress, and exit with its status.

    Without NAME it is the run that was started last. Ctrl-C only lets go of it.
    """
    from muster.fleet import detached
    from muster.fleet.display import Display

    record = detached.find(name, store)
    display = Display.fitting(wanted=not quiet and not as_json)
    try:
        status = detached.attach(record, display)
    except KeyboardInterrupt:
        display.close()
        sys.stderr.write(f"\nmuster: the run {record.name} goes on; come back with: muster attach {record.name}\n")
        return 0
    finally:
        display.close()
    if as_json:
        print_json({"fleet": record.name, **(record.ended() or {})})
    return status
