"""`muster up`: start a standing fleet."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import print_json, safe
from muster.errors import ConfigError


@click.command("up", short_help="Start the standing fleet that a fleet.toml describes.")
@common(fleet=False)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("-d", "--detach", is_flag=True, help="Return as soon as all agents are ready; the fleet goes on.")
@click.option("--profile", metavar="NAME", help="development, staging or production (also MUSTER_PROFILE).")
@click.option(
    "--grace", metavar="DURATION", help="Time for work in hand when the fleet is brought down (also MUSTER_GRACE)."
)
@click.option("--agents-per-worker", type=int, metavar="N", help="Agents that share one process.")
@click.option(
    "--wait", "ready", default="60s", show_default=True, metavar="DURATION", help="Time for the agents to become ready."
)
def command(file: Path | None, as_json: bool, store: str | None, detach: bool, ready: str, **flags: Any) -> int:
    """Start the fleet that FILE describes (default: the nearest fleet.toml), and stay in front of it.

    In front, its events are printed line by line; Ctrl-C or SIGTERM brings it down orderly, a second one at once.
    Messages that were not read when it went down last time are still there.
    """
    from muster.fleet import farewell, logs, places, up
    from muster.fleet.durations import format_duration, parse_duration

    chosen = file or places.nearest_fleet_file(Path.cwd())
    if chosen is None:
        raise ConfigError("which fleet? Name its file, or run this below a fleet.toml", key="file")
    if chosen.is_dir():
        chosen /= "fleet.toml"
    fleet = up.start(chosen, flags, store_root=store, detach=detach)
    for notice in fleet.notices:
        sys.stderr.write(safe(f"muster: {notice}") + "\n")
    missing = up.wait_ready(fleet, parse_duration(ready, "--wait"))
    count = len(up.hosted(fleet.spec))
    took_s = time.monotonic() - fleet.started_at
    facts = {
        "fleet": fleet.name,
        "pid": fleet.spawner.pid,
        "agents": count,
        "not_ready": missing,
        "ready_s": round(took_s, 3),
    }
    if as_json:
        print_json({"event": "fleet.up", **facts, "store": str(fleet.store)})
    else:
        late = f"; not ready: {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}" if missing else ""
        sys.stdout.write(
            f"{fleet.name} is up: {count - len(missing)} of {count} agents ready in {format_duration(took_s)}{late}\n"
        )
    sys.stdout.flush()
    if detach:
        return 1 if missing else 0

    began: list[float] = []

    def say(entry: dict[str, Any]) -> None:
        if entry.get("event") in ("fleet.stopping", "fleet.draining"):
            began.append(time.monotonic())
        sys.stdout.write((json.dumps(entry, default=str) if as_json else safe(logs.render(entry))) + "\n")
        sys.stdout.flush()

    status = up.watch(fleet, say)
    left = farewell.farewell(fleet.store, fleet.log_marks)
    took_s = time.monotonic() - began[0] if began else 0.0
    if as_json:
        print_json(
            {"event": "fleet.down", "fleet": fleet.name, "took_s": round(took_s, 3), **left, "exit_status": status}
        )
    else:
        sys.stdout.write(farewell.sentence(fleet.name, took_s, left) + "\n")
    return status
