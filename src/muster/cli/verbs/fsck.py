"""`muster fsck`: check a fleet's store, and repair it."""

from __future__ import annotations

import sys

import click

from muster.cli.main import common
from muster.cli.output import paint, print_json, safe

COLORS = {"notice": "dim", "damage": "yellow", "loss": "red"}


@click.command("fsck", short_help="Check a fleet's store, and repair it.")
@common()
@click.option("--repair", is_flag=True, help="Mend what is damaged and owned by no living process.")
def command(as_json: bool, store: str | None, fleet: str | None, repair: bool) -> int:
    """Check every file of a fleet's store, whether the fleet is up or down, and name every message that is lost.

    Exit status 0 if the store is clean, 1 if anything is or was damaged or lost.
    """
    from muster.bus.transports.lanes.fsck.findings import NOTICE
    from muster.bus.transports.lanes.fsck.store import check_store
    from muster.fleet import places

    found = places.chosen(fleet, store)
    findings = check_store(found.store, repair=repair)
    clean = all(finding.severity == NOTICE for finding in findings)
    if as_json:
        print_json(
            {
                "fleet": found.name,
                "store": str(found.store),
                "clean": clean,
                "findings": [f.as_dict() for f in findings],
            }
        )
        return 0 if clean else 1
    for finding in findings:
        sys.stdout.write(
            f"{paint(f'{finding.severity:<6}', COLORS[finding.severity])}  {safe(finding.place)}: {safe(finding.text)}\n"
        )
        told = f"message {finding.message_id}" if finding.message_id else ""
        done = finding.outcome or (f"--repair would: {finding.remedy}" if finding.remedy else "")
        done = f"repaired: {finding.remedy}" if done == "repaired" else done
        for line in filter(None, (told, done)):
            sys.stdout.write(f"        {safe(line)}\n")
    sys.stdout.write(f"{found.name}: {_summary([finding.severity for finding in findings], clean=clean)}\n")
    return 0 if clean else 1


def _summary(severities: list[str], *, clean: bool) -> str:
    names = {"loss": ("loss", "losses"), "damage": ("damage", "damages"), "notice": ("notice", "notices")}
    counts = [
        f"{severities.count(severity):,} {one if severities.count(severity) == 1 else many}"
        for severity, (one, many) in names.items()
        if severity in severities
    ]
    return ", ".join(["clean", *counts] if clean else counts)
