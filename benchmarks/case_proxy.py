"""What the local API proxy adds to streams: fifty at once, through it and straight to the server, in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks import streams
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError, percentile
from benchmarks.processes import Crew, run_loop
from benchmarks.setting import ROOT, muster_program, program_environment, scratch
from muster.limit.proxy import life

STREAMS = 50
_PIECES = 100
_TURNS = 3
_LIMIT_S = 120.0


def _weight_mb(store: Path) -> float:
    """Proportional memory of the fleet's proxy."""
    found = life.read(store)
    if found is None:
        raise MeasureError("the fleet has no proxy")
    return float(psutil.Process(found.pid).memory_full_info().pss) / 1e6


def _measure() -> Figures:
    count, pieces, turns = effort(STREAMS, 5), effort(_PIECES, 10), effort(_TURNS, 1)
    with scratch() as directory, Crew(int(_LIMIT_S)) as crew:
        read_fd, write_fd = os.pipe()
        crew.add(run_loop, streams.serve, write_fd)
        os.close(write_fd)
        url = f"http://127.0.0.1:{os.read(read_fd, 16).decode()}"
        os.close(read_fd)
        env = {**program_environment(), "MUSTER_STORE_DIR": str(directory / "stores"), "PYTHONPATH": str(ROOT)}
        command = [
            muster_program(), "run", "-q", "-j", "1", "--upstream", f"anthropic={url}", sys.executable, "-m", "benchmarks.streams", url,
            str(count), str(pieces), str(turns), ":::", "once",
        ]  # fmt: skip
        with (directory / "out").open("w+b") as out, (directory / "err").open("w+b") as err:
            run = subprocess.Popen(command, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            weight_mb, deadline = 0.0, time.monotonic() + _LIMIT_S
            try:
                while run.poll() is None and time.monotonic() < deadline:
                    for file in directory.glob(f"stores/*/{life.FILE}"):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            weight_mb = max(weight_mb, _weight_mb(file.parent))
                    time.sleep(0.5)
            finally:
                run.terminate()
                status = run.wait(30)
            out.seek(0)
            err.seek(0)
            if status != 0:
                raise MeasureError(f"the run ended with status {status}: {err.read().decode(errors='replace')[-300:]}")
            told = json.loads(out.read())
    return {**_added(told), "proxy_mb": weight_mb}


def _added(told: dict[str, list[list[float]]]) -> Figures:
    """Milliseconds that the proxy adds; the worst turn, because each is a whole measurement."""
    figures: Figures = {}
    for name, suffix in (("piece", ""), ("first", "_first")):
        for fraction, label in ((0.5, "p50"), (0.99, "p99")):
            figures[f"{name}_{label}_ms"] = max(
                percentile(through, fraction) - percentile(straight, fraction)
                for straight, through in zip(told[f"straight{suffix}"], told[f"through{suffix}"], strict=True)
            )
    return figures


def cases() -> list[Case]:
    def goal(figure: str, most: float | None, label: str) -> Goal:
        return Goal(figure, "muster", None, "<=", most, label=label)

    return [
        Case(
            "proxy",
            f"{STREAMS} streams at once through the proxy: what it adds",
            [Contender("muster", _measure)],
            [
                goal("piece_p50_ms", 2.0, "a piece, p50"),
                goal("piece_p99_ms", 2.0, "a piece, p99"),
                goal("first_p50_ms", None, "head of the answer, p50"),
                goal("first_p99_ms", None, "head of the answer, p99"),
                goal("proxy_mb", 40.0, "memory"),
            ],
            rounds=3,
        )
    ]
