"""`python -m benchmarks`: measure muster beside its peers, in one run, and print one table.

    python -m benchmarks                        everything, in about twelve minutes
    python -m benchmarks --only message,run2    some of it
    python -m benchmarks --quick                a smoke run of a minute: every case, no judgement
    python -m benchmarks --json > figures.json  everything that was measured, for a machine
    python -m benchmarks --write docs           tables and charts of docs/performance.md

Contenders take turns; what counts are the ratios and their spread. Exit status 0: everything was measured and did what it should,
whether goals were reached or not; 1: something was wrong (a message lost, an order broken).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time

from rich.console import Console

from benchmarks import (
    case_dense,
    case_fleet,
    case_flow,
    case_idle,
    case_message,
    case_proxy,
    case_round_trip,
    case_rounds,
    case_run,
    case_sign,
    case_store,
    case_work,
    page,
)  # fmt: skip
from benchmarks.effort import be_quick
from benchmarks.harness import Case, Outcome, as_json, measure
from benchmarks.servers import close_all
from benchmarks.setting import fetch_programs, machine, versions
from benchmarks.table import print_table

_MODULES = (
    case_message, case_sign, case_round_trip, case_flow, case_store, case_rounds, case_idle, case_dense, case_run, case_work, case_fleet,
    case_proxy,
)  # fmt: skip


#: On a machine that is this slow the rest is measured in one round.
_LATE_AFTER_S = 600


def chosen(only: str | None) -> list[Case]:
    """The cases named in `only` (a prefix is enough), or all. Raises SystemExit for a name that fits none."""
    cases = [case for module in _MODULES for case in module.cases()]
    if only is None:
        return cases
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    for word in wanted:
        if not any(case.name.startswith(word) for case in cases):
            raise SystemExit(
                f"benchmarks: there is no case {word!r}; there are {', '.join(case.name for case in cases)}"
            )
    return [case for case in cases if any(case.name.startswith(word) for word in wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="A,B", help="only these cases (a prefix of a name is enough)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute: every case, no judgement")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every case instead of its own number")
    parser.add_argument("--json", action="store_true", help="print everything that was measured as JSON")
    parser.add_argument(
        "--write", choices=["docs"], help="put tables and charts into docs/performance.md and docs/charts"
    )
    parser.add_argument("--no-fetch", action="store_true", help="do not unpack peers that this machine lacks")
    given = parser.parse_args()
    if given.quick and given.write:
        parser.error("figures of a smoke run do not belong on the page")
    if given.quick:
        be_quick()
        given.rounds = 1
    cases = chosen(given.only)
    if not given.no_fetch:
        fetch_programs()
    outcomes: list[Outcome] = []
    began = time.monotonic()
    # Servers, children and stores go the same way, whoever ends us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    err = Console(stderr=True)
    try:
        with err.status("benchmarks") as status:

            def progress(text: str) -> None:
                line = f"[{time.monotonic() - began:4.0f} s] {text}"
                if err.is_terminal:
                    status.update(line)
                else:
                    print(line, file=sys.stderr, flush=True)

            for case in cases:
                late = time.monotonic() - began > _LATE_AFTER_S
                outcomes.append(measure(case, rounds=1 if late else given.rounds, progress=progress))
    except KeyboardInterrupt:
        return 130
    finally:
        close_all()
    if given.json:
        told = {"machine": machine(), "versions": versions(), "cases": [as_json(outcome) for outcome in outcomes]}
        print(json.dumps(told, indent=2))
    else:
        print_table(outcomes, Console(highlight=False, width=None if sys.stdout.isatty() else 100))
    if given.write:
        print("written: " + ", ".join(page.write(outcomes)), file=sys.stderr)
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
