"""`muster doctor`: is this machine fit, and what did crashed fleets leave?"""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import paint, print_json, safe

MARKS = {"ok": ("ok  ", "green"), "weak": ("weak", "yellow"), "fail": ("FAIL", "red")}


@click.command("doctor", short_help="Check this machine, and find what crashed fleets left behind.")
@common(fleet=False)
@click.option(
    "--fix",
    is_flag=True,
    help="Reclaim what crashed fleets left: kill it, prove it dead, remove it. Unread messages are kept.",
)
@click.option("--discard", is_flag=True, help="With --fix: remove ended runs in which messages are unread, too.")
def command(as_json: bool, store: str | None, fix: bool, discard: bool) -> int:
    """Check store locations, limits and platform, say what is weaker here, and find what crashed fleets left behind.

    Exit status 1 if something would keep fleets from working.
    """
    from muster.fleet import doctor

    findings = [*doctor.examine(store), *doctor.leftover_findings(store, fix=fix, discard=discard)]
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            mark, color = MARKS[finding.verdict]
            sys.stdout.write(f"{paint(mark, color)}  {finding.subject:<{width}}  {safe(finding.text)}\n")
    return 1 if any(finding.verdict == doctor.FAIL for finding in findings) else 0
