"""`python -m tests.fuzz [TARGET …]`: each target for a while, guided by coverage where atheris is installed, else by chance.

`--input BASE64` or `--file PATH` replays one input of one target. Exit status 1 as soon as a claim is broken; the input is told, and kept
in `build/fuzz/<target>/` beside the inputs that reached something new.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from .mutations import INPUT_BYTES_MAX, corpus, mutated
from .target import BrokenClaimError, Target
from .targets import TARGETS

FOUND = Path("build") / "fuzz"
#: A target may hold this much before the engine calls it a leak.
RSS_MIB_MAX = 1024


def has_engine() -> bool:
    return importlib.util.find_spec("atheris") is not None


def by_chance(target: Target, seconds: float) -> int:
    """Fresh mutations until the time is up; how many."""
    ends, seed, tried = time.monotonic() + seconds, os.urandom(4).hex(), 0
    for _index, data in mutated(target, sys.maxsize, seed):
        if time.monotonic() > ends:
            break
        target.execute(data)
        tried += 1
    return tried


def guided(target: Target, seconds: float) -> int:
    """libFuzzer ends its process by itself, so each target gets one of its own. Its exit status."""
    found = FOUND / target.name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(corpus(target)):
        (found / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds:.0f}", f"-max_len={INPUT_BYTES_MAX}", f"-rss_limit_mb={RSS_MIB_MAX}", "-timeout=20",
        f"-artifact_prefix={found}/crash-", "-verbosity=0", "-print_final_stats=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "tests.fuzz.guided", target.name, *options, str(found)]
    return subprocess.run(command, check=False).returncode


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--input", help="replay this input (base64)")
    parser.add_argument("--file", type=Path, help="replay the input in this file")
    options = parser.parse_args(words)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in options.targets] or list(TARGETS.values())
    if options.input is not None or options.file is not None:
        data = base64.b64decode(options.input) if options.file is None else options.file.read_bytes()
        for target in targets:
            target.execute(data)
        return 0
    engine = has_engine()
    how = "guided by coverage" if engine else "by chance"
    print(f"fuzz: {len(targets)} targets, {options.seconds:g} s each, {how}", flush=True)
    for target in targets:
        if engine:
            if guided(target, options.seconds):
                return 1
        else:
            try:
                print(f"fuzz: {target.name}: {by_chance(target, options.seconds):,} inputs", flush=True)
            except BrokenClaimError as error:
                print(f"fuzz: {target.name}: {error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
