"""`python -m muster.testing.simulator`: many seeds with progress, one with its story, or the cost model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

import click

from muster.testing.simulator.runs import Outcome, simulate

#: Lines of the story that a failure shows.
SHOWN = 30


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seeds", default=100, show_default=True, type=click.IntRange(min=1), help="How many seeds to live through."
)
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="The first of them.")
@click.option("--seed", type=click.IntRange(min=0), help="Only this one.")
@click.option("--trace", is_flag=True, help="With --seed: tell the whole story.")
@click.option("--cost-model", is_flag=True, help="Instead: what large fleets cost, and where they bend first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per seed on standard output.")
def main(seeds: int, first: int, seed: int | None, *, trace: bool, as_json: bool, cost_model: bool) -> None:
    """Simulate fleets under faults on virtual time: the same seed and commit give the same history.

    Exit status 1 when a promise was broken.
    """
    if cost_model:
        from muster.testing.simulator.cost import tell

        tell(as_json=as_json)
        return
    chosen = range(first, first + seeds) if seed is None else (seed,)
    broken = [outcome for outcome in _live(chosen, trace=trace, as_json=as_json) if outcome.violation]
    for outcome in broken:
        click.echo(explain(outcome), err=True)
    if broken:
        sys.exit(1)


def _live(seeds: Iterable[int], *, trace: bool, as_json: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    begun = time.monotonic()
    total = len(list(seeds))
    for seed in seeds:
        outcome = simulate(seed, keep_story=trace)
        outcomes.append(outcome)
        if trace:
            click.echo("\n".join(outcome.story))
        if as_json:
            told = asdict(outcome)
            del told["story"]
            click.echo(json.dumps(told))
        elif total == 1:
            click.echo(f"seed {seed}: {summary(outcomes)}, digest {outcome.digest}")
        elif sys.stderr.isatty():
            click.echo(f"\rsimulate: {len(outcomes)} of {total} seeds, {summary(outcomes)}  ", nl=False, err=True)
    if total > 1 and not as_json:
        lead = "\r" if sys.stderr.isatty() else ""
        took_s = time.monotonic() - begun
        click.echo(f"{lead}simulate: {total} seeds, {summary(outcomes)}; {took_s:.1f} s", err=True)
    return outcomes


def summary(outcomes: list[Outcome]) -> str:
    """What a number of seeds came to, in a few words."""
    decisions = sum(outcome.decisions for outcome in outcomes)
    deaths = sum(outcome.coordinators - 1 for outcome in outcomes)
    hours = sum(outcome.virtual_s for outcome in outcomes) / 3600
    broken = sum(bool(outcome.violation) for outcome in outcomes)
    verdict = f"{broken} broke a promise" if broken else "every promise kept"
    return f"{hours:.2f} h of fleets, {decisions:,} decisions, {deaths:,} coordinators died: {verdict}"


def explain(outcome: Outcome) -> str:
    """A broken promise for a person: what, where, how to see it again, and what happened last."""
    lines = [
        f"seed {outcome.seed} broke a promise at step {outcome.steps}, second {outcome.virtual_s:.3f}:",
        f"    {outcome.violation}",
        f"    again: make simulate SEED={outcome.seed} TRACE=1",
        *(f"    {line}"[:400] for line in outcome.story[-SHOWN:]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
