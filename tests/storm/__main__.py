"""`python -m tests.storm`: a storm of kills on one store, and whether every promise held. Exit status 1 if one did not."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from .plants import PLANTS
from .storm import Outcome, Plan, run_storm, say

#: A short storm writes a tenth of this; a long one about 70 bytes for each message.
ROOM_BYTES = 256 << 20


def main() -> int:
    arguments = _parse()
    directory = Path(tempfile.mkdtemp(prefix="muster-storm-", dir=arguments.directory or _roomy_memory()))
    plan = Plan(
        directory=directory,
        seed=arguments.seed or secrets.token_hex(4),
        seconds=arguments.seconds,
        kills=arguments.kills,
        messages=arguments.messages,
        kills_per_s=arguments.rate,
        drain_s=arguments.drain,
        plant=arguments.plant,
    )
    say(f"storm: seed {plan.seed}, in {directory}")
    kept = arguments.keep
    try:
        outcome = run_storm(plan, tell=say)
        kept = kept or (not outcome.ok and not plan.plant)
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
    if kept:
        say(f"kept: {directory}")
    print(json.dumps(as_json(outcome), indent=2) if arguments.json else as_table(outcome))
    return 0 if outcome.ok else 1


def _roomy_memory() -> str | None:
    """Where stores live by default, if there is room for the journals as well; else wherever temporary files go."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > ROOM_BYTES else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time of killing (60)")
    parser.add_argument("--kills", type=int, default=0, help="end earlier once every role was killed this often ...")
    parser.add_argument("--messages", type=int, default=0, help="... and this many messages were acked")
    parser.add_argument("--rate", type=float, default=40.0, help="blows per second (40)")
    parser.add_argument("--drain", type=float, default=30.0, help="seconds within which all must drain afterwards (30)")
    parser.add_argument("--seed", default="", help="what chooses the victims")
    parser.add_argument("--directory", default="", help="where the store and the journals are made (/dev/shm)")
    parser.add_argument("--keep", action="store_true", help="keep them; they are kept anyway when a promise was broken")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], help="plant a bug that has to be found")
    return parser.parse_args()


def as_json(outcome: Outcome) -> dict[str, object]:
    report = outcome.report
    return {
        "ok": outcome.ok,
        "seed": outcome.plan.seed,
        "storm_s": round(outcome.storm_s, 1),
        "drain_s": round(outcome.drain_s, 2),
        "check_s": round(outcome.check_s, 1),
        "accepted": report.accepted + report.cut_stored,
        "acked": report.acked,
        "dead_letters": report.letters,
        "refused": report.refused,
        "deliveries": report.deliveries,
        "redeliveries": report.redeliveries,
        "sends_cut": report.cut,
        "sends_cut_stored": report.cut_stored,
        "acked_per_s": round(report.acked / max(outcome.storm_s, 0.001)),
        "processes": report.processes,
        "lanes": report.lanes,
        "kills": outcome.kills,
        "kills_in_operation": dict(report.deaths_in_operation),
        "kills_waiting_for_room": dict(report.deaths_waiting),
        "share_in_operation": round(outcome.share_in_operation, 3),
        "broken": dict(report.broken),
        "violations": [str(violation) for violation in report.violations],
        "failures": outcome.failures,
    }


def as_table(outcome: Outcome) -> str:
    facts = as_json(outcome)
    lines = [
        f"{'role':12} {'kills':>8} {'in operation':>13} {'waiting':>8}",
        *(
            f"{role:12} {kills:8,} {outcome.report.deaths_in_operation[role]:13,} {outcome.report.deaths_waiting[role]:8,}"
            for role, kills in outcome.kills.items()
        ),
        "",
        *(
            f"{name:22} {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{name:22} {value}"
            for name, value in facts.items()
            if not isinstance(value, dict | list)
        ),
    ]
    if not outcome.ok:
        lines += ["", *map(str, outcome.failures), *map(str, outcome.report.violations)]
        lines += ["", f"broken: {dict(outcome.report.broken)}; replay with --seed {outcome.plan.seed}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
