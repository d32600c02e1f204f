"""`muster run` behind its command line: check, prepare the store, start the fleet, follow it to its end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from muster.bus.store import add_agent, create_store, remove_store, write_spec
from muster.core import limits
from muster.core import spec as specs
from muster.core.names import COORDINATOR, OPERATOR, fleet_name
from muster.core.settings import BusSettings
from muster.errors import FleetRunningError, MusterError, StoreUnsuitableError
from muster.fleet import leftovers, places
from muster.fleet.entries import entries
from muster.fleet.handlers import check_handler
from muster.fleet.proxying import sealed
from muster.fleet.results import Recorded, ResultsFile, resume_plan
from muster.fleet.run_options import RunOptions
from muster.supervise.spawner import SpawnerClient, start_spawner

if TYPE_CHECKING:
    from muster.core.spec import FleetSpec
    from muster.fleet.client import Outcome
    from muster.fleet.display import Display
    from muster.fleet.inputs import Item

#: Letters of generated names: no vowels (no words), nothing that looks like something else.
_LETTERS = "bcdfghjkmnpqrstvwxz23456789"


@dataclass
class Prepared:
    """A run that is checked and whose store exists, ready to be started."""

    options: RunOptions
    spec: FleetSpec
    store: Path
    first: list[tuple[int, Item]]
    numbered: int
    rest: Iterator[list[Item]]
    results: ResultsFile | None
    recorded: Recorded | None
    killed: list[int]
    #: Signals that came before there was anybody to act on them.
    signals: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.spec.name

    def discard(self) -> None:
        """Remove what was made. Only while no spawner was started."""
        with contextlib.suppress(OSError, MusterError):
            remove_store(self.store)
        self.close()

    def close(self) -> None:
        """Let go of the results file, and remove the spool."""
        if self.results is not None:
            self.results.close()
        if self.spec.spool is not None:
            shutil.rmtree(self.spec.spool, ignore_errors=True)


def prepare(options: RunOptions) -> Prepared:
    """Check everything that can be checked, reclaim what a crashed run left, and make the store.

    Raises:
        UsageError, StoreError, SecurityError, FleetRunningError, ResultsFileError: Nothing was started, and nothing was made that
            was not removed again.
    """
    options.check()
    if options.handler is not None:
        check_handler(options.handler, options.cwd)
    batches = options.inputs.batches()
    first: list[tuple[int, Item]] = []
    numbered, recorded, results = 0, None, None
    killed: list[int] = []
    try:
        if options.results is not None:
            results = ResultsFile(options.results, resume=options.resume)
            # Before the file is read: processes of the crashed run might still be writing to it.
            killed = leftovers.reclaim_run_of(options.results, options.store_root)
            if options.resume:
                recorded = results.read()
                first, numbered = resume_plan(recorded, batches)
        leftovers.reclaim_quietly(options.store_root)
        spec, store = _make_store(options)
    except BaseException:
        if results is not None:
            results.close()
        raise
    return Prepared(options, spec, store, first, numbered, batches, results, recorded, killed)


def _make_store(options: RunOptions) -> tuple[FleetSpec, Path]:
    from muster.bus.transports.lanes import probe

    root = places.make_private(places.run_root(options.store_root))
    places.check_room(root, options.jobs)
    name, store = _claim_name(root, options.name)
    try:
        probe.check(store)
        store_id = secrets.token_hex(16)
        spool = places.spool_of(store_id, options.store_root)
        spec = options.spec(name=name, store_id=store_id, spool=spool)
        create_store(store, BusSettings(agents_max=max(limits.AGENTS_MAX, specs.identities(spec))))
        spec = sealed(spec, store)
        write_spec(store, spec)
        for agent in (COORDINATOR, OPERATOR, *specs.teams(spec), *specs.roster(spec), *specs.services(spec)):
            add_agent(store, agent)
        places.make_private(spool.parent.parent)
        places.make_private(spool.parent)
        places.make_private(spool)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(store)
        raise
    return spec, store


def _claim_name(root: Path, wanted: str | None) -> tuple[str, Path]:
    """Make the store's directory. mkdir is the claim: of two runs of one name, one gets it."""
    while True:
        name = fleet_name(wanted) if wanted else "run-" + "".join(secrets.choice(_LETTERS) for _ in range(6))
        store = root / name
        try:
            os.mkdir(store, 0o700)
        except FileExistsError:
            if wanted is None:
                continue
            places.check_private(store)
            pid = places.spawner_pid(store)
            if pid is not None:
                raise FleetRunningError(
                    f"a fleet called {name!r} is already running (process {pid})", fleet=name, pid=pid
                ) from None
            raise FleetRunningError(
                f"a crashed run called {name!r} is still here; `muster doctor --fix` removes it", fleet=name
            ) from None
        except OSError as error:
            raise StoreUnsuitableError(f"cannot make a store in {root}: {error.strerror}", path=str(root)) from None
        return name, store


def note_signals(noted: list[int]) -> None:
    """From now on SIGINT, SIGTERM and SIGHUP are only added to `noted`; those that are ignored (as under nohup) stay ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: noted.append(number))


def start(prepared: Prepared) -> SpawnerClient:
    """Fork the fleet's spawner. Call it while this process has one thread and no event loop.

    From here on SIGINT, SIGTERM and SIGHUP are only noted, in `prepared.signals`, until `follow` acts on them: a Ctrl-C that comes while
    the fleet is starting must end the fleet, not just this process.

    Raises:
        SpawnFailedError: It did not become ready; the store was removed.
    """
    note_signals(prepared.signals)
    try:
        return start_spawner(prepared.store, entries(), foreground=True)
    except BaseException:
        prepared.discard()
        raise


def follow(prepared: Prepared, spawner: SpawnerClient, display: Display) -> Outcome:
    """Feed and watch the run until nothing of it is left.

    What is imported here was kept out of the spawner, which was forked before.
    """
    import asyncio

    import uvloop

    from muster.fleet.client import Plan, RunClient
    from muster.fleet.output import OutputWriter

    options = prepared.options
    writer = OutputWriter(display, as_json=options.as_json)
    writer.event({"event": "run.started", "fleet": prepared.name, "store": str(prepared.store), "agents": options.jobs})
    plan = Plan(rest=prepared.rest, first=prepared.first, numbered=prepared.numbered, signals=prepared.signals)
    if prepared.recorded is not None:
        plan.done = prepared.recorded.done

    async def live() -> Outcome:
        return await RunClient(prepared.store, spawner, plan, display, writer).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(live())
    finally:
        spawner.close()
        prepared.close()
        display.close()
    if options.as_json and outcome.ended is not None:
        writer.event(
            {
                "event": "run.ended",
                "exit_status": outcome.exit_status,
                "reason": outcome.ended.reason,
                "error": outcome.ended.error,
                "report": outcome.ended.report,
            }
        )
    # After the second Ctrl-C nobody waits for a reader that does not read.
    writer.close(None if outcome.exit_status < 128 else 1.0)
    return outcome


def summary(outcome: Outcome, started_at: float) -> list[str]:
    """What a person wants to know at the end, in a line or two."""
    from muster.fleet.display import rate
    from muster.fleet.durations import format_duration

    if outcome.ended is None:
        return []
    report = outcome.ended.report
    done, failed = int(report.get("done", 0)), int(report.get("failed", 0))
    took_s = float(report.get("duration_s") or time.monotonic() - started_at)
    parts = [f"{done:,} done", *([f"{failed:,} failed"] if failed else [])]
    unfinished = int(report.get("tasks", 0)) - done - failed
    if unfinished > 0:
        parts.append(f"{unfinished:,} not finished")
    line = f"muster: {', '.join(parts)} in {format_duration(took_s)}"
    if done + failed >= 10 and took_s > 0:
        line += f" ({rate((done + failed) / took_s)})"
    for key, word in (("restarts", "workers restarted"), ("reassigned", "tasks reassigned")):
        if report.get(key):
            line += f", {report[key]} {word}"
    lines = [line]
    if outcome.failures:
        lines.append("muster: first failures: " + "; ".join(outcome.failures))
    if outcome.ended.reason == "halted":
        lines.append("muster: halted, because enough tasks had failed")
    return lines
