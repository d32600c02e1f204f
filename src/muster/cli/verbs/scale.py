"""`muster scale`: more agents of a kind, or fewer, while the fleet runs."""

from __future__ import annotations

import sys
import time

import click

from muster.cli.main import common
from muster.cli.output import print_json
from muster.errors import ConfigError


@click.command("scale", short_help="Have more agents of a kind, or fewer, while the fleet runs.")
@common()
@click.argument("counts", nargs=-1, required=True, metavar="KIND=COUNT…")
@click.option("--wait", default="5m", show_default=True, metavar="DURATION", help="How long to wait for it.")
def command(counts: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None, wait: str) -> int:
    """Have COUNT agents of each KIND, and wait until the new ones are ready and the others have ended.

    The agents with the highest numbers come and go. One that goes finishes what it works on and hands back the rest; its inbox is kept.
    The next `muster up` begins with the counts of fleet.toml again. Exit status 1 if it has not happened within --wait.
    """
    from muster.fleet import changing, places
    from muster.fleet.durations import format_duration, parse_duration

    wanted = dict(_parsed(text) for text in counts)
    found = places.chosen(fleet, store)
    started_at = time.monotonic()
    told = changing.scale(found, wanted, wait_s=parse_duration(wait, "--wait"))
    took_s = time.monotonic() - started_at
    if as_json:
        print_json({"fleet": found.name, "took_s": round(took_s, 3), **told})
    else:
        for kind, count in told["after"].items():
            sys.stdout.write(f"{kind}: {told['before'][kind]} → {count} agents\n")
        if not told["is_done"]:
            sys.stdout.write("this goes on without this command; `muster status` shows how it is\n")
        else:
            sys.stdout.write(f"done ({format_duration(took_s)})\n")
    return 0 if told["is_done"] else 1


def _parsed(text: str) -> tuple[str, int]:
    kind, equals, count = text.partition("=")
    if not equals or not kind or not (count.isascii() and count.isdigit() and len(count) < 9):
        raise ConfigError(f"{text!r:.80} is not KIND=COUNT such as reviewer=20", key="counts")
    return kind, int(count)
