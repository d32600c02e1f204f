"""`python -m tests.crash`: every crash point of the bus, struck. Exit status 1 if anything accepted was lost, or any promise broken."""

from __future__ import annotations

import argparse
import sys
import time

from . import ptrace
from .calls import AFTER
from .faults import Fault
from .points import (
    ALL_SCENARIOS,
    SCENARIOS,
    Frozen,
    Stage,
    Verdict,
    bare_complaints,
    listed,
    read_frozen,
    row,
    stage,
    write_frozen,
)
from .stepped_scenarios import STEPPED_SCENARIOS


class Run:
    """Counts and complaints, told as they come."""

    def __init__(self, *, update: bool) -> None:
        self.update = update
        self.frozen: Frozen = {} if update else read_frozen()
        self.seen: Frozen = {}
        self.points = self.states = self.instructions = self.failures = 0

    def tell(self, verdict: Verdict, *more: str) -> None:
        for text in (str(verdict) if verdict.complaints else "", *more):
            if text:
                self.failures += 1
                print(text, flush=True)

    def system_calls(self, on: Stage) -> None:
        """Every change × every mode."""
        name = on.scenario.name
        self.tell(on.undisturbed())
        for label, modes in listed(on).items():
            self.seen[name, label] = (modes, set())
        for fault in on.points():
            label, verdict = on.calls[fault.at - 1].label, on.strike(fault)
            self.points += 1
            if verdict.bare:
                self.seen[name, label][1].add(fault.mode)
            self.tell(verdict, *bare_complaints(verdict, fault, label, self.seen if self.update else self.frozen, name))
        if on.scenario.is_deep:
            for at in range(1, len(on.calls) + 1):
                for verdict in on.strike_twice(at):
                    self.points += 1
                    self.tell(verdict)

    def instructions_of(self, on: Stage) -> None:
        """Every instruction."""
        steps, verdicts = on.step()
        self.instructions += steps.instructions
        self.states += steps.states
        print(f"{on.scenario.name}: {steps.instructions:,} instructions, {steps.states} states", flush=True)
        if steps.states < 3:
            self.tell(Verdict(on.scenario.name, ("ended: it does not reach the stores it is about",)))
        for verdict in verdicts:
            self.tell(verdict)

    def compare(self) -> None:
        """The list against the frozen one."""
        if self.update:
            write_frozen(self.seen)
            return
        for was, now, what in ((self.frozen, self.seen, "new"), (self.seen, self.frozen, "gone")):
            for key, (modes, bare) in now.items():
                if key not in was or was[key] != (modes, bare):
                    self.failures += 1
                    print(f"{what}: {row(*key, modes, bare)}")


def one_point(on: Stage, arguments: argparse.Namespace) -> int:
    """Replay one failure."""
    verdicts = (
        [on.strike(Fault(arguments.at, arguments.mode))] if not arguments.then else list(on.strike_twice(arguments.at))
    )
    for verdict in verdicts:
        print(f"{verdict.point}: {verdict.complaints or 'mended'} {sorted(verdict.bare) or ''}")
    return int(any(verdict.complaints for verdict in verdicts))


def main() -> int:
    arguments = _parse()
    if ptrace.why_not():
        print(f"skipped: {ptrace.why_not()}")
        return 0
    began = time.monotonic()
    if arguments.at:
        (chosen,) = [scenario for scenario in ALL_SCENARIOS if scenario.name == arguments.scenario]
        with stage(chosen) as on:
            return one_point(on, arguments)
    run = Run(update=arguments.update)
    for scenario in SCENARIOS:
        with stage(scenario) as on:
            before = run.points
            run.system_calls(on)
            print(f"{scenario.name}: {len(on.calls)} changes, {run.points - before} points", flush=True)
    for scenario in STEPPED_SCENARIOS:
        with stage(scenario) as on:
            run.instructions_of(on)
    run.compare()
    for key, (modes, bare) in run.seen.items():
        print(row(*key, modes, bare))
    print(
        f"{run.points:,} points at system calls; {run.instructions:,} instructions, {run.states} states; "
        f"{run.failures} failures; {time.monotonic() - began:.0f} s"
    )
    return int(run.failures > 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("scenario", nargs="?", help="one scenario, with --at")
    parser.add_argument("--at", type=int, default=0, help="replay one point: the number of the change")
    parser.add_argument("--mode", default=AFTER, help="what befalls it (after)")
    parser.add_argument("--then", action="store_true", help="and kill whoever mends it at each of its changes")
    parser.add_argument("--update", action="store_true", help="write points.txt anew")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
