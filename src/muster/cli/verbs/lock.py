"""`muster lock`: run a command under a lock of the whole fleet; list the locks."""

from __future__ import annotations

import sys
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import columns, print_json, safe, say
from muster.errors import UsageError

HEAD = ("STATE", "HOLDER", "PID", "TOKEN", "SINCE", "LEFT", "WAITS FOR", "NAMES")


class _BeforeCommand(click.Command):
    """Everything behind "--" is the command, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "--", "COMMAND…"]


@click.command("lock", cls=_BeforeCommand, short_help="Run a command under a lock of the whole fleet.")
@common()
@click.argument("names", nargs=-1, metavar="NAME_OR_GLOB…")
@click.option("--wait", metavar="DURATION", help="Wait so long for it; 0 not at all [default: as long as it takes].")
@click.option(
    "--ttl", metavar="DURATION", default="60s", show_default=True, help="How long it holds if we fall silent."
)
@click.option("--list", "is_list", is_flag=True, help="Show what is held and who waits, and run nothing.")
def command(names: tuple[str, ...], as_json: bool, store: str | None, fleet: str | None, **values: Any) -> int:
    """Run COMMAND while nobody else in the fleet holds a lock that meets one of the names.

    \b
    muster lock migration-number -- ./new-migration.sh
    muster lock 'src/api/**' docs/api.md --wait 10m -- claude -p "…"

    All names are had at once. Two locks meet if some path fits both; `src/` means src and all below. COMMAND finds its fencing token in
    MUSTER_LOCK_TOKEN. When it ends, or the lock is lost, what it started is ended. Exit status: COMMAND's; 75 if the lock was not had or
    was lost; 2 for a mistake.
    """  # noqa: D301 -- click's mark for lines that stay as they are
    from muster.fleet import locking
    from muster.fleet.durations import parse_duration

    words = click.get_current_context().meta["command"]
    if values["is_list"]:
        if names or words:
            raise UsageError("--list shows all locks; it takes no names and no command")
        return _list(locking.listed(fleet, store), as_json=as_json)
    if not names or not words:
        raise UsageError("a lock needs names, and behind `--` a command; see `muster lock --help`")
    timeout_s = None if values["wait"] is None else parse_duration(values["wait"], "--wait")
    order = locking.Order(names, words, timeout_s, parse_duration(values["ttl"], "--ttl"), _tell_wait(names, as_json))
    if as_json:
        order.on_held = lambda token: print(f'{{"event": "lock.held", "token": {token}}}', file=sys.stderr, flush=True)
    return locking.run_locked(order, fleet, store)


def _tell_wait(names: tuple[str, ...], as_json: bool) -> Any:
    """What is said on standard error while the lock is somebody else's; the command's own output stays its own."""
    from muster.fleet.durations import format_duration

    def tell(facts: dict[str, Any]) -> None:
        if as_json:
            import json

            shown = {key: value for key, value in facts.items() if key in ("holder", "names", "held_s", "ahead")}
            say(json.dumps({"event": "lock.waiting", **shown}))
            return
        since = "" if facts.get("held_s") is None else f", held for {format_duration(facts['held_s'])}"
        ahead = int(facts.get("ahead", 1))
        line = f" ({ahead - 1} more before us)" if ahead > 1 else ""
        what = ", ".join(map(repr, names))
        say(safe(f"muster: waiting for {what}: {facts.get('holder', 'somebody')} has it{since}{line}"))

    return tell


def _list(found: dict[str, Any], *, as_json: bool) -> int:
    from muster.fleet.durations import format_duration

    if as_json:
        print_json(found)
        return 0
    if not found["locks"]:
        sys.stdout.write("no locks\n")
        return 0
    rows = [
        (
            lock["state"],
            lock["agent"],
            lock["pid"],
            lock["token"],
            format_duration(lock["since_s"]),
            None if lock["left_s"] is None else format_duration(lock["left_s"]),
            lock["waits_for"],
            " ".join(lock["names"]),
        )
        for lock in found["locks"]
    ]
    sys.stdout.write("\n".join(columns(HEAD, rows)) + "\n")
    if found["total"] > len(rows):
        sys.stdout.write(f"… and {found['total'] - len(rows):,} more\n")
    return 0
