"""`make soak`: a standing fleet of 50 agents works and talks for SOAK_S seconds; what it holds must not grow.

    SOAK_S=600 python -m benchmarks.soak        (make soak SOAK_S=60 for a short look)

Sampled: memory by role, descriptors, bytes and inodes of the store. The fleet is warmed up at a higher rate first: lanes get segments
of their final size, windows fill. Then a line is fitted through each; growth of 5 % or more over the rest of the run that is no noise
fails, and so does a lost message, a failed task, or a restart. Exit status 0: flat; 1: it grows; 130: interrupted (the fleet is brought
down all the same). A run too short for the warm-up shows its growth and does not judge it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.setting import ROOT, machine, muster_program, program_environment, scratch
from benchmarks.slope import chart, fit
from muster.bus.bus import Bus
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.protocol import FleetStatus, StatusAsk, Submit, TaskInput
from muster.errors import BusError, MusterError
from muster.security.keys import Keyring, load_master
from muster.supervise.client import SpawnerClient

AGENTS = 50
#: Tasks a second, submitted in parts, and how many may be open before the next part waits.
RATE_PER_S = 100
PART_S = 0.5
OPEN_MAX = 800
TOLERANCE = 0.05
#: The warm-up: this share of the time at least and at most, at a higher rate, and so many tasks: then every lane has reached segments
#: of 64 KiB (500 messages of 250 bytes, 50 agents).
WARM_UP_LEAST, WARM_UP_MOST = 0.25, 0.5
WARM_UP_RATE_PER_S = 400
WARM_UP_TASKS = 25_000
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Samples:
    """What was seen, one list for each thing that must not grow."""

    at_s: list[float] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, at_s: float, done: int, found: dict[str, float]) -> None:
        self.at_s.append(at_s)
        self.done.append(done)
        for name, value in found.items():
            self.values.setdefault(name, []).append(value)

    def warm_from(self, duration_s: float) -> tuple[int, bool]:
        """Index of the first sample behind the warm-up, and whether the warm-up was long enough."""
        for at, (at_s, done) in enumerate(zip(self.at_s, self.done, strict=True)):
            if at_s >= WARM_UP_MOST * duration_s:
                return at, False
            if at_s >= WARM_UP_LEAST * duration_s and done >= WARM_UP_TASKS:
                return at, True
        return len(self.at_s) // 2, False


@dataclass
class Counts:
    """What the fleet was given and what became of it."""

    submitted: int = 0
    done: int = 0
    failed: int = 0
    restarts: int = 0

    @property
    def is_good(self) -> bool:
        return self.done == self.submitted > 0 and self.failed == self.restarts == 0


def memory_bytes(pid: int) -> int:
    """Resident bytes of a process; 0 if it is gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def descriptors(pid: int) -> int:
    """Open descriptors of a process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def store_size(store: Path) -> tuple[int, int]:
    """(bytes that its blocks take, inodes) of everything below `store`."""
    blocks = inodes = 0
    for folder, _folders, files in os.walk(store):
        for name in (".", *files):
            with contextlib.suppress(OSError):
                blocks += os.lstat(os.path.join(folder, name)).st_blocks
                inodes += 1
    return blocks * 512, inodes


def look(store: Path, spawner: SpawnerClient) -> dict[str, float]:
    """One sample of the whole fleet."""
    told = spawner.ping()
    workers = [worker["pid"] for worker in told["workers"]]
    coordinator = [pid for pid in [told["coordinator"]["pid"]] if pid]
    blocks, inodes = store_size(store)
    everybody = [told["pid"], *coordinator, *workers]
    return {
        "memory, all": sum(map(memory_bytes, everybody)) / 1e6,
        "  spawner": memory_bytes(told["pid"]) / 1e6,
        "  coordinator": sum(map(memory_bytes, coordinator)) / 1e6,
        "  workers": sum(map(memory_bytes, workers)) / 1e6,
        "descriptors": float(sum(map(descriptors, everybody))),
        "store bytes": blocks / 1e6,
        "store inodes": float(inodes),
    }


class Driver:
    """The operator of the soak: submits tasks, asks how the fleet is, samples it."""

    def __init__(self, store: Path, duration_s: float, say: Callable[[str], None]) -> None:
        self._store, self._duration_s, self._say = store, duration_s, say
        self.samples, self.counts = Samples(), Counts()
        self.is_interrupted = False
        self._restarts_before = 0

    async def run(self) -> None:
        keyring = Keyring.from_master(load_master(self._store), OPERATOR)
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None
        loop.add_signal_handler(signal.SIGINT, main.cancel)
        loop.add_signal_handler(signal.SIGTERM, main.cancel)
        bus = await Bus.open(self._store, OPERATOR, keyring)
        reader = asyncio.create_task(self._read(bus))
        try:
            with SpawnerClient.connect(self._store) as spawner:
                await self._work(bus, spawner)
        except asyncio.CancelledError:
            self.is_interrupted = True
        finally:
            reader.cancel()
            await bus.close()

    async def _read(self, bus: Bus) -> None:
        async for delivery in bus.inbox():
            delivery.ack()

    async def _work(self, bus: Bus, spawner: SpawnerClient) -> None:
        began = time.monotonic()
        await self._ask(bus)
        every_s = min(5.0, max(0.5, self._duration_s / 120))
        next_part = next_look = began
        while (now := time.monotonic()) - began < self._duration_s:
            if now >= next_part and self.counts.submitted - self.counts.done < OPEN_MAX:
                is_cold = now - began < WARM_UP_LEAST * self._duration_s or (
                    self.counts.done < WARM_UP_TASKS and now - began < WARM_UP_MOST * self._duration_s
                )
                self._submit(bus, WARM_UP_RATE_PER_S if is_cold else RATE_PER_S)
                await self._ask(bus)
                next_part = now + PART_S
            if now >= next_look:
                # In a thread: walking the store must not hold up the work.
                self.samples.add(now - began, self.counts.done, await asyncio.to_thread(look, self._store, spawner))
                left_s = self._duration_s - (now - began)
                self._say(
                    f"{self.counts.done:,} tasks done, {self.samples.values['memory, all'][-1]:.0f} MB, {left_s:.0f} s left"
                )
                next_look = now + every_s
            await asyncio.sleep(max(0.01, min(next_part, next_look) - time.monotonic()))
        deadline = time.monotonic() + 30.0
        while self.counts.done + self.counts.failed < self.counts.submitted and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            await self._ask(bus)

    def _submit(self, bus: Bus, rate_per_s: int) -> None:
        first = self.counts.submitted + 1
        tasks = [TaskInput(number, number) for number in range(first, first + int(rate_per_s * PART_S))]
        with contextlib.suppress(BusError):  # no room: the next part tries the same numbers
            bus.post_struct(COORDINATOR, Submit(tasks=tasks))
            self.counts.submitted += len(tasks)

    async def _ask(self, bus: Bus) -> None:
        with contextlib.suppress(BusError):
            reply = await bus.ask(COORDINATOR, StatusAsk(agents=False), type="fleet.status", timeout_s=10.0)
            told = reply.decode(FleetStatus)
            self.counts.done = told.tasks["done"]
            self.counts.failed = told.tasks["failed"] + told.tasks["dead"]
            self.counts.restarts = int(told.counters["restarts"]) + told.coordinator_restarts


def verdict(samples: Samples, counts: Counts, duration_s: float, console: Console) -> bool:
    """Print the chart and the verdict; whether all is well."""
    begin, is_warm = samples.warm_from(duration_s)
    times = samples.at_s[begin:]
    facts = machine()
    console.print(
        f"{AGENTS} agents, {samples.at_s[-1]:.0f} s ({times[0]:.0f} s of them warm-up), {len(times)} samples; "
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load']}, {facts['date']}"
    )
    console.print(
        f"{counts.done:,} of {counts.submitted:,} tasks done, {counts.failed} failed, {counts.restarts} restarts\n"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("", "whole run", "mean", "growth", ""):
        table.add_column(name, no_wrap=True, justify="right" if name in ("mean", "growth") else "left")
    all_flat = True
    for name, values in samples.values.items():
        trend = fit(times, values[begin:])
        is_flat = trend.is_flat(TOLERANCE)
        all_flat = all_flat and is_flat
        unit = " MB" if "memory" in name or name.startswith("  ") or "bytes" in name else ""
        growth = f"{trend.growth:+.1%} ± {trend.error:.1%}"
        word = Text("flat", style="green") if is_flat else Text("GROWS", style="bold red")
        table.add_row(name, chart(values), f"{trend.mean:,.1f}{unit}", growth, word)
    console.print(table)
    console.print()
    good = (all_flat or not is_warm) and counts.is_good
    what = "flat: nothing grows" if all_flat else f"something grows by {TOLERANCE:.0%} or more"
    if not is_warm:
        what = f"not judged: the warm-up takes {WARM_UP_TASKS:,} tasks, and this run was too short for it"
    lost = "every task done, no message missing" if counts.is_good else "tasks were lost, failed, or workers restarted"
    console.print(Text(f"{what}; {lost}.", style="bold green" if good else "bold red"))
    return good


def fleet_file(directory: Path) -> Path:
    """The fleet.toml of the soak."""
    file = directory / "fleet.toml"
    file.write_text(
        f'[fleet]\nname = "soak"\n\n[agents.w]\ncount = {AGENTS}\nhandler = "benchmarks.soak_handler:work"\n'
        f'cwd = "{ROOT}"\n'
    )
    return file


def main() -> int:
    duration_s = float(os.environ.get("SOAK_S", "600"))
    err, out = Console(stderr=True), Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    with scratch() as directory:
        stores = directory / "stores"
        env = {**program_environment(), "MUSTER_STORE_DIR": str(stores), "SOAK_AGENTS": str(AGENTS)}

        def muster(*words: str) -> subprocess.CompletedProcess[Any]:
            # A session of its own: a Ctrl-C at the terminal is ours to act on.
            return subprocess.run([muster_program(), *words], env=env, check=False, timeout=90, start_new_session=True)

        driver = Driver(stores / "soak", duration_s, lambda _text: None)
        if muster("up", "-d", str(fleet_file(directory))).returncode != 0:
            return 1
        try:
            with err.status("soak") as status:
                driver = Driver(stores / "soak", duration_s, lambda text: status.update(f"soak: {text}"))
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(driver.run())
        except MusterError as error:
            err.print(f"soak: {error}")
            return 1
        except KeyboardInterrupt:
            driver.is_interrupted = True
        finally:
            muster("down", "--fleet", "soak")
    if driver.is_interrupted:
        err.print("soak: interrupted; the fleet is down")
        return 130
    return 0 if verdict(driver.samples, driver.counts, duration_s, out) else 1


if __name__ == "__main__":
    sys.exit(main())
