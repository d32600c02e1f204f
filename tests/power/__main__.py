"""`python -m tests.power`: power cuts under a durable store. Exit status 1 if anything accepted was lost, or any promise broken."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Iterator

from .cut import Plan, Verdict, cut
from .disk import why_not


def main() -> int:
    arguments = _parse()
    if why := why_not():
        print(f"skipped: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unmounting what is mounted
    began = time.monotonic()
    verdicts: list[Verdict] = []
    for seed in _seeds(arguments.seed, arguments.cuts):
        verdict = cut(Plan(seed, durable=not arguments.memory, is_planted=arguments.plant))
        verdicts.append(verdict)
        if not verdict.ok:
            print(f"{verdict}; again: python -m tests.power --cuts 1 --seed {seed!r}", flush=True)
        _progress(verdicts, arguments.cuts)
    print(_table(verdicts, time.monotonic() - began))
    return int(not all(verdict.ok for verdict in verdicts))


def _seeds(seed: str, cuts: int) -> Iterator[str]:
    yield from [seed] if cuts == 1 else [f"{seed} {n}" for n in range(cuts)]


def _progress(verdicts: list[Verdict], cuts: int) -> None:
    if sys.stderr.isatty() or len(verdicts) % 10 == 0:
        accepted, failed = sum(len(v.told.accepted) for v in verdicts), sum(not v.ok for v in verdicts)
        end = "\r" if sys.stderr.isatty() else "\n"
        print(
            f"{len(verdicts)} of {cuts} cuts, {accepted:,} accepted, {failed} failed",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def _table(verdicts: list[Verdict], took_s: float) -> str:
    rows = {
        "cuts": len(verdicts),
        "accepted": sum(len(v.told.accepted) for v in verdicts),
        "acked before": sum(len(v.told.acking) for v in verdicts),
        "buried before": sum(len(v.told.burying) for v in verdicts),
        "sends cut off": sum(len(v.told.trying) - len(v.told.accepted) for v in verdicts),
        "delivered after": sum(v.delivered for v in verdicts),
        "lost": sum(len(v.lost) for v in verdicts),
        "torn": sum(len(v.torn) for v in verdicts),
        "otherwise broken": sum(len(v.broken) + len(v.stuck) for v in verdicts),
        "damaged, never accepted": sum(v.cut_off for v in verdicts),
        "seconds": round(took_s),
    }
    return "\n".join(f"{name:24} {value:9,}" for name, value in rows.items())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.power", description=__doc__)
    parser.add_argument("--cuts", type=int, default=100, help="how often the power goes (100)")
    parser.add_argument(
        "--seed", default="", help="what chooses the moments and the messages; with --cuts 1 one cut again"
    )
    parser.add_argument("--memory", action="store_true", help="a store that is not durable: it has to lose something")
    parser.add_argument("--plant", action="store_true", help="a sender that does not sync: it has to lose something")
    arguments = parser.parse_args()
    arguments.seed = arguments.seed or secrets.token_hex(4)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
