"""Many agents in few processes: 10,000 identities in 8 workers, each answers one asker, who counts what came back.

The bus alone: processes that host identities and one that asks in the coordinator's place. `muster up` starts a process for every few
agents it is told to; what it adds to this is measured by the fleet's own cases.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.processes import LARGE_LIFE_S, Crew, Gate, run_loop
from benchmarks.setting import fleet_store
from muster import join
from muster.bus.bus import Bus

WORKERS = 8
_ASKER = "asker"
_WAIT_S = 60.0
_BODY = b"are you there"


async def _answer_once(bus: Bus) -> None:
    delivery = await bus.receive(timeout_s=_WAIT_S)
    if delivery is None:
        return  # the asker counts
    receipt = await bus.send(_ASKER, delivery.body + bus.id.encode(), wait_s=_WAIT_S)
    delivery.ack()
    await receipt.wait_acked(timeout_s=_WAIT_S)


async def _host(store: Path, agents: list[str], gate: Gate) -> None:
    buses = [await join(agent, store=store) for agent in agents]
    try:
        gate.wait()
        await asyncio.gather(*(_answer_once(bus) for bus in buses))
    finally:
        for bus in buses:
            await bus.close()


async def _ask(store: Path, agents: list[str], gate: Gate) -> tuple[float, int]:
    heard: set[str] = set()
    async with join(_ASKER, store=store) as bus:
        gate.wait()
        began = time.perf_counter()
        for agent in agents:
            await bus.send(agent, _BODY, wait_s=_WAIT_S)
        while len(heard) < len(agents):
            delivery = await bus.receive(timeout_s=_WAIT_S)
            if delivery is None:
                break
            if delivery.body != _BODY + delivery.sender.encode() or delivery.sender in heard:
                raise MeasureError(f"{delivery.sender} answered {delivery.body!r}")
            heard.add(delivery.sender)
            delivery.ack()
        return time.perf_counter() - began, len(heard)


def _dense(count: int) -> Figures:
    agents = [f"w-{number}" for number in range(count)]
    with fleet_store([_ASKER, *agents]) as store, Crew(LARGE_LIFE_S) as crew:
        gate = crew.gate
        asker = crew.add(run_loop, _ask, store, agents, gate)
        for worker in range(WORKERS):
            crew.add(run_loop, _host, store, agents[worker::WORKERS], gate)
        crew.go()
        took_s, heard = asker.result()
    if heard != count:
        raise MeasureError(f"{heard} of {count} agents answered")
    return {"lost": float(count - heard), "s": took_s}


def cases() -> list[Case]:
    return [
        Case(
            "dense",
            f"10,000 agents in {WORKERS} processes, each answers one asker",
            [Contender("muster", lambda: _dense(effort(10_000, 200)))],
            [Goal("lost", "muster", None, "<=", 0.0, label="lost"), Goal("s", "muster", None)],
            rounds=1,
        )
    ]
