"""`muster dead`: list, show, redrive and drop dead letters, messages and tasks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from muster.cli.main import common
from muster.cli.output import columns, print_json, safe
from muster.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

HEAD = ("ID", "AGENT", "FROM", "TYPE", "AGE", "ATTEMPTS", "BYTES", "REASON")
#: A terminal narrower than this gets the beginning of each id and fewer columns. So much of an id is time and counter.
WIDE_COLUMNS, SHORT_ID_CHARS = 120, 18
#: Characters of a body that `show` prints to a terminal; --json has all of it.
SHOWN_CHARS_MAX = 4000


@click.group("dead", short_help="List, show, redrive and drop dead letters.")
def command() -> None:
    """Dead letters: messages and tasks that were given up, kept with the reason.

    No message is lost until you drop it; of tasks the newest 10,000 are kept. A task's id is its number.
    """


def _filters(function: F) -> F:
    for option in (
        click.option("--older-than", metavar="DURATION", help="Only letters that have been dead for longer."),
        click.option("--reason-contains", metavar="TEXT", help="Only letters with TEXT in their reason."),
        click.option("--type", metavar="TYPE", help="Only messages of this type."),
        click.option("--sender", metavar="NAME", help="Only messages from NAME."),
        click.option("--agent", metavar="NAME", help="Only letters in the inbox of NAME."),
    ):
        function = option(function)
    return function


def _chosen(options: dict[str, Any]) -> tuple[Any, Any]:
    """(fleet, filters) from a command's options."""
    from muster.fleet import letters, places
    from muster.fleet.durations import parse_duration

    older = options["older_than"]
    filters = letters.Filters(
        options["agent"],
        options["sender"],
        options["type"],
        options["reason_contains"],
        None if older is None else parse_duration(older, "--older-than"),
    )
    return places.chosen(options["fleet"], options["store"]), filters


@command.command("list", short_help="List dead letters, oldest first.")
@common()
@_filters
def list_(as_json: bool, **options: Any) -> int:
    """List the dead letters of all inboxes, oldest first, then the tasks that were given up, by number."""
    from muster.fleet import dead_tasks, letters

    fleet, filters = _chosen(options)
    found = [one.facts for one in letters.find(fleet.store, filters)]
    found += [one.facts for one in dead_tasks.find(fleet, filters)]
    if as_json:
        print_json(found)
    elif not found:
        sys.stdout.write("no dead letters\n")
    else:
        rows: list[tuple[object, ...]] = [_row(facts) for facts in found]
        head: tuple[str, ...] = HEAD
        if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE_COLUMNS:
            head = tuple(title for title in HEAD if title not in ("TYPE", "BYTES"))
            rows = [(str(row[0])[:SHORT_ID_CHARS], *row[1:3], *row[4:6], row[7]) for row in rows]
        sys.stdout.write("\n".join(columns(head, rows)) + "\n")
    return 0


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    from muster.fleet.durations import format_duration

    age_s = facts["age_s"]
    age = None if age_s is None else format_duration(age_s)
    return (
        facts["id"],
        facts["agent"],
        facts["from"],
        facts["type"],
        age,
        facts["attempts"],
        facts["body_bytes"],
        facts["reason"],
    )


@command.command("show", short_help="Show a dead letter with its body.")
@common()
@_filters
@click.argument("id_", metavar="ID")
def show(id_: str, as_json: bool, **options: Any) -> int:
    """Show everything about the dead letter ID (the beginning of one is enough), or the task of that number.

    Its body is shown as data: control characters are never sent to the terminal.
    """
    from muster.fleet import dead_tasks, letters

    fleet, filters = _chosen(options)
    numbers, ids = dead_tasks.split([id_])
    shown = [dead_tasks.show(fleet, number) for number in numbers]
    shown += [letters.show(one) for one in (letters.chosen(fleet.store, filters, ids, everything=False) if ids else ())]
    for facts in shown:
        if as_json:
            print_json(facts)
        else:
            body = facts.pop("body")
            width = max(map(len, facts))
            lines = [
                f"{key.removesuffix('_ns'):<{width}}  {_one_line(key, value)}"
                for key, value in facts.items()
                if value is not None
            ]
            sys.stdout.write("\n".join([*lines, "", _body(body), ""]))
    return 0


def _one_line(key: str, value: object) -> str:
    if key.endswith("_ns") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1e9, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return safe(text).replace("\n", " ")


def _body(body: object) -> str:
    if isinstance(body, bytes):
        text = body.decode(errors="backslashreplace")
    else:
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, indent=2, default=str)
    text = safe(text)
    cut = len(text) - SHOWN_CHARS_MAX
    return text if cut <= 0 else f"{text[:SHOWN_CHARS_MAX]}\n… and {cut:,} more characters; --json shows all of them"


@command.command("redrive", short_help="Give dead letters back to their recipients.")
@common()
@_filters
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that fit the filters.")
def redrive(ids: tuple[str, ...], as_json: bool, everything: bool, **options: Any) -> int:
    """Put dead letters back into the inboxes they died in, as the messages they were: same sender, type, id and body.

    Their recipients find them whether they run now or later; the count of attempts begins anew. Exit status 1 if some were refused. Tasks
    are queued again, as `muster retry` does it; for that the fleet has to run.
    """
    from muster.fleet import dead_tasks, letters

    fleet, tasks, found = _meant(ids, options, everything=everything)
    results = dead_tasks.redrive(fleet, tasks) + letters.put_back(fleet.store, found)
    _tell(results, "redriven", as_json=as_json)
    return 0 if all(result["outcome"] == "redriven" for result in results) else 1


@command.command("drop", short_help="Remove dead letters for good.")
@common()
@_filters
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that fit the filters; needs --yes.")
@click.option("--yes", is_flag=True, help="Really remove all of them.")
def drop(ids: tuple[str, ...], as_json: bool, everything: bool, yes: bool, **options: Any) -> int:
    """Remove dead letters for good. There is no way back."""
    from muster.fleet import dead_tasks, letters

    fleet, tasks, found = _meant(ids, options, everything=everything)
    if everything and not yes:
        count = len(found) + len(tasks)
        raise UsageError(f"this would remove {count:,} dead letters for good; say --yes if that is meant")
    _tell(dead_tasks.drop(fleet, tasks) + letters.drop(found), "dropped", as_json=as_json)
    return 0


def _meant(ids: tuple[str, ...], options: dict[str, Any], *, everything: bool) -> tuple[Any, list[int], list[Any]]:
    """(fleet, numbers of tasks, letters) that a command line means. Raises UsageError; nothing was done."""
    from muster.fleet import dead_tasks, letters

    fleet, filters = _chosen(options)
    numbers, others = dead_tasks.split(ids)
    if everything and not ids:
        numbers = [one.task.number for one in dead_tasks.find(fleet, filters)]
    found = (
        letters.chosen(fleet.store, filters, others, everything=everything)
        if others or not numbers or everything
        else []
    )
    return fleet, numbers, found


def _tell(results: list[dict[str, Any]], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(results)
        return
    count = sum(result["outcome"] == done for result in results)
    sys.stdout.write(f"{count:,} {done}\n")
    for result in results:
        if result["outcome"] != done:
            why = f": {result['detail']}" if "detail" in result else ""
            sys.stdout.write(safe(f"{result['id']} in {result['agent']} {result['outcome']}{why}") + "\n")
