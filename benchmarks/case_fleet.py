"""A standing fleet from outside: how long until it is ready, what an agent weighs, and what a short verb costs."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.case_run import carry_out
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.setting import muster_program, program_environment, scratch
from muster.core.limits import GRACE_S

#: Above this many seconds for 50 agents the larger fleet is not tried.
_LARGE_IF_BELOW_S = 3.0
_PYTHON = sys.executable
_last_ready_s: list[float] = []


def _verbs() -> int:
    """How often a short verb is timed in one block."""
    return effort(10, 2)


#: Times short programs inside an agent: what a command that an agent runs pays for speaking.
_INSIDE = """
import json, statistics, subprocess, sys, time
def time_of(command):
    taken = []
    for _ in range({times}):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)
print(json.dumps(time_of({command!r})))
"""


@contextlib.contextmanager
def fleet_up(agents: int) -> Iterator[tuple[float, dict[str, str]]]:
    """A standing fleet of `agents` workers: (seconds from exec of `muster up -d` to its return, environment to speak with it)."""
    with scratch() as directory:
        file = directory / "fleet.toml"
        file.write_text(
            f'[fleet]\nname = "bench"\n\n[bus]\nagents_max = {agents + 64}\n\n[agents.w]\ncount = {agents}\ncommand = ["true"]\n'
        )
        env = {**program_environment(), "MUSTER_STORE_DIR": str(directory / "stores"), "MUSTER_FLEET": "bench"}
        try:
            took_s, _out, _said = carry_out([muster_program(), "up", "-d", str(file)], env)
            yield took_s, env
        finally:
            subprocess.run([muster_program(), "down"], env=env, capture_output=True, check=False, timeout=60)


def _ready(full: int) -> Figures:
    agents = effort(full, 5)
    if agents > 50 and _last_ready_s and min(_last_ready_s) > _LARGE_IF_BELOW_S:
        raise MeasureError(f"not tried: 50 agents took {min(_last_ready_s):.1f} s on this machine")
    with fleet_up(agents) as (took_s, env):
        deadline = time.monotonic() + 20
        while True:
            told = _status(env)
            weights = [agent["pss_bytes"] for agent in told["agents"] if agent["pss_bytes"]]
            ready = [agent for agent in told["agents"] if agent["state"] == "ready"]
            if len(weights) == len(ready) == agents:
                break
            if time.monotonic() > deadline:
                raise MeasureError(f"{len(ready)} of {agents} agents are ready")
            time.sleep(0.2)
        measured_mb = _pss_now_mb({agent["pid"] for agent in told["agents"]})
        down_s = carry_out([muster_program(), "down"], env)[0]
    if agents == 50:
        _last_ready_s.append(took_s)
    return {"s": took_s, "pss_mb": measured_mb or statistics.mean(weights) / 1e6, "down_s": down_s}


def _status(env: dict[str, str]) -> dict[str, Any]:
    """What `muster status` says. Without an answer of the coordinator it still tells the agents, and exits 1."""
    ended = subprocess.run(
        [muster_program(), "status", "--json"], env=env, capture_output=True, check=False, timeout=60
    )
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def _pss_now_mb(pids: set[int]) -> float | None:
    """Mean PSS of the workers as the kernel tells it now; None where it does not tell (then the agents' own figures are used)."""
    total_kb = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return None
        total_kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total_kb * 1024 / len(pids) / 1e6


# ---------------------------------------------------------------------------- short verbs


def _send_as_operator() -> Figures:
    with fleet_up(1) as (_took_s, env):
        taken = []
        for number in range(_verbs()):
            took_s, out, _said = carry_out([muster_program(), "send", "--json", "w", "hello"], env)
            if json.loads(out)["seq"] != number + 1:
                raise MeasureError(f"message {number + 1} was stored as {out!r}")
            taken.append(took_s * 1e3)
    return {"ms": statistics.median(taken)}


def _inside_an_agent(command: list[str]) -> Figures:
    with scratch() as directory:
        env = {**program_environment(), "MUSTER_STORE_DIR": str(directory / "stores")}
        script = _INSIDE.format(times=_verbs(), command=command)
        out = carry_out([muster_program(), "run", "-q", "-j", "1", "--", _PYTHON, "-c", script], env, b"1\n")[1]
    return {"ms": float(json.loads(out))}


def _bare_python() -> Figures:
    taken = [carry_out([_PYTHON, "-c", "pass"], program_environment())[0] * 1e3 for _ in range(_verbs())]
    return {"ms": statistics.median(taken)}


def _ready_case(agents: int, ready_s: float, rounds: int) -> Case:
    return Case(
        f"ready{agents}",
        f"exec of `muster up -d` until {agents} agents, one process each, are ready",
        [Contender("muster", lambda: _ready(agents))],
        [
            Goal("s", "muster", None, "<=", ready_s),
            Goal("pss_mb", "muster", None, "<=", 4.0, label="PSS/agent"),
            Goal("down_s", "muster", None, "<=", GRACE_S + 1, label="down"),
        ],
        rounds=rounds,
    )


def cases() -> list[Case]:
    return [
        Case(
            "verb",
            "wall time of one `muster send`",
            [
                Contender("muster", _send_as_operator),
                Contender("python3 -c pass", _bare_python),
                Contender("muster, in agent", lambda: _inside_an_agent([muster_program(), "send", "w-1", "hello"])),
            ],
            [
                Goal("ms", "muster", "python3 -c pass", "<=", 3.0, label="operator"),
                Goal("ms", "muster, in agent", "python3 -c pass", "<=", 3.0, label="in agent"),
            ],
            rounds=3,
        ),
        *(
            _ready_case(agents, ready_s, rounds)
            for agents, ready_s, rounds in ((50, 1.0, 3), (358, 3.0, 1), (750, 7.0, 1))
        ),
    ]
