"""What an idle fleet costs: processor time of all its processes over some seconds in which nobody says anything."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.case_fleet import fleet_up
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.processes import LARGE_LIFE_S, Crew, Gate, run_loop
from benchmarks.setting import fleet_store, muster_program
from muster import join
from muster.core import limits
from muster.errors import BusClosedError

#: Between "all are ready" and the first look, so that no start is measured. Then the time that is measured, in seconds: longer than the
#: pause of an idle agent's heartbeats.
_SETTLE_S = 3.0
_LOOK_S = 12.0


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far, in nanoseconds' steps: ticks of 10 ms are too coarse for who sleeps."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    with contextlib.suppress(psutil.NoSuchProcess):
        spent = psutil.Process(pid).cpu_times()
        return float(spent.user + spent.system)
    raise MeasureError(f"process {pid} ended while it was idle")


def _percent(pids: Iterable[int]) -> Figures:
    """Processor time of these over a while, in percent of one core."""
    pids = list(pids)
    time.sleep(effort(_SETTLE_S, 0.5))
    before, began = [_cpu_s(pid) for pid in pids], time.monotonic()
    time.sleep(effort(_LOOK_S, 1.0))
    after, took_s = [_cpu_s(pid) for pid in pids], time.monotonic() - began
    spent = sum(after) - sum(before)
    return {"core_percent": spent / took_s * 100}


async def _listen(store: Path, agent: str, gate: Gate) -> None:
    # A fleet that has run for a while sweeps at any moment: the first sweep comes at a random one, the later ones at their own pace.
    pause_s = limits.SWEEP_S
    limits.SWEEP_S = random.uniform(0.02, 1.0) * pause_s
    async with join(agent, store=store) as bus:
        limits.SWEEP_S = pause_s
        gate.wait()
        with contextlib.suppress(BusClosedError):
            await bus.receive(timeout_s=LARGE_LIFE_S)


def _identities(agents: int) -> Figures:
    """Nothing but the bus: a process for each identity, waiting for a message."""
    ids = [f"w-{number}" for number in range(agents)]
    with fleet_store(ids) as store, Crew(LARGE_LIFE_S) as crew:
        for agent in ids:
            crew.add(run_loop, _listen, store, agent, crew.gate)
        crew.go()
        return _percent(child.pid for child in crew.children)


def _fleet(agents: int) -> Figures:
    """A fleet as users have it: spawner, coordinator with metrics and health, and a worker for each agent."""
    with fleet_up(agents) as (_took_s, env):
        command = [muster_program(), "status", "--json"]
        told = json.loads(subprocess.run(command, env=env, capture_output=True, check=False, timeout=60).stdout)
        workers = {agent["pid"] for agent in told["agents"]}
        if len(workers) != agents:
            raise MeasureError(f"{len(workers)} of {agents} agents are there")
        spawner = psutil.Process(next(iter(workers))).parent()
        if spawner is None:
            raise MeasureError("the workers have no parent")
        return _percent({spawner.pid, *(child.pid for child in spawner.children(recursive=True))})


def _case(agents: int, percent_max: float) -> Case:
    return Case(
        f"idle{agents}",
        f"{agents} agents, a process each, that nobody speaks to: share of one core",
        [Contender("bus alone", lambda: _identities(effort(agents, 10)))],
        [Goal("core_percent", "bus alone", None, "<=", percent_max, label="bus")],
        rounds=1,
    )


def cases() -> list[Case]:
    fifty = _case(50, 0.5)
    # No profile admits a fleet of 750 agents: that many are measured on the bus alone.
    fifty.contenders.append(Contender("whole fleet", lambda: _fleet(effort(50, 5))))
    fifty.goals.append(Goal("core_percent", "whole fleet", None, "<=", 0.5, label="fleet"))
    return [fifty, _case(750, 3.0)]
