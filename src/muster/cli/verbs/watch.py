"""`muster watch`: follow what happens in a fleet."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import paint, print_json, safe

#: Characters of one fact that a line shows; --json has all of it.
FACT_CHARS_MAX = 100
#: What a line leaves out.
HIDDEN = frozenset({"seq", "at", "event", "plan", "start_time", "results_base_bytes"})
BAD = frozenset({"failed", "timeout", "killed"})


@click.command("watch", short_help="Follow what happens in a fleet.")
@common()
@click.option("--after", metavar="SEQ", help="Only what comes behind the event with this `seq`.")
@click.option("--new", is_flag=True, help="Only what happens from now on.")
@click.option("--once", is_flag=True, help="Show what there is and end, though the fleet goes on.")
def command(as_json: bool, store: str | None, fleet: str | None, after: str | None, new: bool, once: bool) -> int:
    """Print the events of a fleet, one per line, from the oldest that its coordinator still keeps, until the fleet is down.

    Every event has a `seq`. A program that remembers the last one and starts again with --after SEQ sees each event exactly once; what
    the coordinator has compacted meanwhile is shown as one event log.gap.
    """
    from muster.errors import UsageError
    from muster.fleet import events, places

    found = places.chosen(fleet, store)
    if new and after is not None:
        raise UsageError("either --new or --after SEQ, not both")
    log = found.store / "coordinator" / "log"
    begin = events.Place() if after is None else events.parse_place(after)
    newest = events.last_record(log)
    if begin.record > newest:
        raise UsageError(f"--after: the event log of {found.name} has only {newest:,} records so far", after=after)
    if new:
        begin = events.Place(newest)
    ended = None if once else lambda: places.spawner_pid(found.store) is None
    for event in events.follow(log, begin, ended=ended):
        if event is None:
            sys.stdout.flush()
        elif as_json:
            print_json(event)
        elif event["event"] != "time.passed":
            sys.stdout.write(_line(event) + "\n")
    return 0


def _line(event: dict[str, Any]) -> str:
    at = event["at"]
    clock = datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S.%f")[:12] if at else " " * 12
    name = event["event"]
    if name == "log.gap":
        text = f"records {event['first']:,} to {event['last']:,} are not kept any more"
        return f"{event['seq']:>8}  {clock}  {paint(f'{name:<18}', 'yellow')}  {text}"
    facts = " ".join(
        f"{key}={_fact(value)}" for key, value in event.items() if key not in HIDDEN and value not in (None, "", [], {})
    )
    bad = event.get("outcome") in BAD or event.get("signal") is not None or name.endswith(("failed", "impossible"))
    color = "red" if bad else "green" if name == "task.ended" else ""
    return f"{event['seq']:>8}  {clock}  {paint(f'{name:<18}', color)}  {facts}".rstrip()


def _fact(value: object) -> str:
    text = safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).replace(
        "\n", " "
    )
    text = text if len(text) <= FACT_CHARS_MAX else f"{text[: FACT_CHARS_MAX - 1]}…"
    return f'"{text}"' if " " in text and isinstance(value, str) else text
