"""Very many very short commands, recorded one by one, beside programs that only start them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.acceptance.place import COMMAND, Place

from . import figures
from .form import FORM

ROUNDS = 3
JOBS = (2, 50)
#: GNU parallel starts some fifty to two hundred a second: a part tells its rate.
PARALLEL_SHARE = 10
#: Program, arguments, what part of the commands it gets, and the goal for the ratio.
PEERS = [
    ("xargs", ["-P", "{jobs}", "-n", "1"], 1, 0.9),
    ("parallel", ["-j", "{jobs}"], PARALLEL_SHARE, 3.0),
]
PATIENCE_S = 60 + FORM.commands / 20

pytestmark = [
    pytest.mark.timeout(int(12 * PATIENCE_S)),
    pytest.mark.slow,
    pytest.mark.skipif(not FORM.commands, reason="a comparison of rates: `make fleet`"),
]


def rate(place: Place, command: list[str], count: int) -> float:
    """Commands per second, from start to end."""
    inputs = place.inputs(map(str, range(count)))
    with open(inputs, "rb") as stream:
        began = time.monotonic()
        subprocess.run(
            command,
            stdin=stream,
            env=place.env,
            cwd=place.work,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE_S,
        )
        return count / (time.monotonic() - began)


def muster_rate(place: Place, jobs: int) -> float:
    """The same of `muster run`, which has to say that each task was recorded once."""
    report = place.work / "report.json"
    command = [str(COMMAND), "run", "-q", "-j", str(jobs), "--report", str(report), "true"]
    per_s = rate(place, command, FORM.commands)
    told = json.loads(report.read_bytes())
    assert (told["tasks"], told["done"], told["delivered_ratio"], told["duplicates"]) == (FORM.commands,) * 2 + (1.0, 0)
    return per_s


def peer(name: str, arguments: list[str]) -> list[str] | None:
    """The peer's command line, or None if it is not installed, here or by the benchmarks."""
    unpacked = Path(__file__).resolve().parents[2] / "build" / "bench" / "root" / "usr" / "bin"
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{unpacked}")
    return None if found is None else [found, *arguments, "true"]


@pytest.mark.parametrize("jobs", JOBS)
def test_many_short_commands_are_each_recorded_once(place: Place, jobs: int) -> None:
    contenders: dict[str, Callable[[], float]] = {"muster": lambda: muster_rate(place, jobs)}
    for name, arguments, share, _ in PEERS:
        if (command := peer(name, [one.format(jobs=jobs) for one in arguments])) is not None:
            contenders[name] = lambda command=command, share=share: rate(place, command, FORM.commands // share)  # type: ignore[misc]
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):  # in turns, so that a slow moment hits all of them
        for name, measure in contenders.items():
            measured[name].append(measure())
    place.assert_nothing_is_left()

    ours = measured["muster"]
    figures.note(f"{FORM.commands:,} × true, -j {jobs}: muster run", statistics.median(ours), "/s")
    for name, _, _, goal in PEERS:
        if name not in measured:
            continue
        ratios = sorted(mine / theirs for mine, theirs in zip(ours, measured[name], strict=True))
        figures.note(f"  beside {name}", statistics.median(measured[name]), "/s")
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        figures.note(f"  ratio ({spread})", statistics.median(ratios), "×", goal=goal, at_least=True)
