"""`muster restart`: have workers started anew without losing work."""

from __future__ import annotations

import sys
import time

import click

from muster.cli.main import common
from muster.cli.output import print_json, safe


@click.command("restart", short_help="Start workers anew, few at a time, without losing work.")
@common()
@click.argument("names", nargs=-1, metavar="[KIND|AGENT]…")
@click.option(
    "--grace",
    metavar="DURATION",
    help="Time for what an agent works on; what is not done by then is handed back. Default: as long as it takes.",
)
@click.option("--wait", default="10m", show_default=True, metavar="DURATION", help="How long to wait for its end.")
def command(
    names: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None, grace: str | None, wait: str
) -> int:
    """Have the workers of kinds or agents, or all workers, drained and started anew, and wait until they are ready.

    At most a tenth of a kind is away at a time; the others work on. A worker that was set aside because it kept crashing is started
    again. If one that was started anew keeps crashing, the rest of its kind is left as it is. Exit status 1 if not all got ready.
    """
    from muster.fleet import changing, places
    from muster.fleet.durations import format_duration, parse_duration

    found = places.chosen(fleet, store)
    grace_s = None if grace is None else parse_duration(grace, "--grace")
    started_at = time.monotonic()
    is_shown = sys.stderr.isatty() and not as_json

    def show(done: int, total: int) -> None:
        if is_shown:
            sys.stderr.write(f"\r{done} of {total} workers restarted")
            sys.stderr.flush()

    told = changing.restart(found, list(names), grace_s=grace_s, wait_s=parse_duration(wait, "--wait"), show=show)
    took_s = time.monotonic() - started_at
    if is_shown:
        sys.stderr.write("\r\033[K")
    if as_json:
        print_json({"fleet": found.name, "took_s": round(took_s, 3), **told})
    else:
        total = len(told["workers"])
        count = f"{total} worker{'' if total == 1 else 's'}"
        if told["is_done"]:
            sys.stdout.write(f"{count} of {found.name} restarted ({format_duration(took_s)})\n")
        elif told["quarantined"]:
            names_of = ", ".join(map(safe, told["quarantined"]))
            sys.stdout.write(f"{names_of}: keeps crashing and is set aside; see `muster status`\n")
        else:
            sys.stdout.write(f"{count} of {found.name} are being restarted; they go on without this command\n")
    return 0 if told["is_done"] else 1
