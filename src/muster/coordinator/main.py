"""The coordinator process: take the identity, replay, adopt the living, run, end in order.

spec ─▶ bus ─▶ log (snapshot + replay) ─▶ results file ─▶ ListWorkers ─▶ adopt ─▶ services ─▶ turns … ─▶ services in reverse ─▶ report
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muster.bus.bus import Bus
from muster.bus.store import read_spec
from muster.coordinator import events as ev
from muster.coordinator import report as reports
from muster.coordinator.adoption import adopt
from muster.coordinator.control import ControlSocket
from muster.coordinator.grants import Grants
from muster.coordinator.log import EventLog
from muster.coordinator.notes import Notes
from muster.coordinator.outputs import OutputFlow
from muster.coordinator.results import ResultsFile
from muster.coordinator.services import Pinger, ProgressTeller, Service
from muster.coordinator.shell import Shell
from muster.coordinator.status import StatusTeller, expected
from muster.core import limits
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.orders import Finished, ListWorkers, ToCoordinator, WorkerList
from muster.core.protocol import TYPE_OF, FleetStatus, HealthChanged, MetricsSnapshot, RunEnded, StatusAsk
from muster.core.spec import FleetSpec
from muster.errors import BusError, MusterError, ResultsFileError
from muster.health.monitor import HealthMonitor
from muster.metrics.collector import Collector
from muster.security.keys import Keyring, load_master
from muster.supervise.platform import allow_descriptors

_run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
with contextlib.suppress(ImportError):
    # Here and not later: the fork server imports this module once for every coordinator that may be started.
    import uvloop

    _run = uvloop.run

if TYPE_CHECKING:
    from muster.bus.delivery import Delivery
    from muster.health.check import Judgement

#: Wait for the identity of a coordinator that has just died: its locks go with it.
IDENTITY_WAIT_S = 5.0
#: Wait for the spawner's list of workers, and for the operator to read the last message.
LIST_WAIT_S = 10.0
LAST_WORD_S = 5.0
#: Descriptors that a coordinator of a large fleet uses: lanes in both directions with up to four each, bells of agents, its own files.
_FDS_MAX = 9 * limits.OPEN_LANES_MAX + 256
#: Exit status of a coordinator that ends because its spawner is gone, or because it could not begin: the spawner decides what follows.
LOST_STATUS = 1


def main(store: Path, control_fd: int, name: str = COORDINATOR) -> int:
    """Coordinate the fleet at `store` until it ends, as `name`; `control_fd` is the SEQPACKET socket to the spawner.

    Returns the fleet's exit status after `Finished` was sent; else 1 (the spawner is gone, or the store cannot be used), and a new
    coordinator may go on from the log. Never raises.
    """
    allow_descriptors(_FDS_MAX)
    try:
        return _run(_coordinate(store, control_fd, name))
    except MusterError as error:
        print(f"muster: coordinator: {error.message}", file=sys.stderr)
    except Exception:
        traceback.print_exc()  # a bug: the spawner starts the next coordinator, and the log of this one says why
    return LOST_STATUS


async def _coordinate(store: Path, control_fd: int, name: str = COORDINATOR) -> int:
    spec = read_spec(store)
    keyring = Keyring.from_master(load_master(store), name)
    bus = await Bus.open(store, name, keyring, wait_s=IDENTITY_WAIT_S)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(bus.close)
        log = EventLog(store / "coordinator")
        stack.callback(log.close)
        notes = Notes(store)
        stack.callback(notes.close)
        machine, records = log.recover()
        run = spec.run
        outputs = OutputFlow(bus, store, keep_order=run is not None and run.keep_order, is_shown=run is not None)
        shell = Shell(bus, machine, log, None, outputs, notes)
        coordinator = Coordinator(store, spec, shell)
        shell.control = ControlSocket(control_fd, shell.wake.set)
        stack.callback(shell.control.close)
        try:
            coordinator.open_results(records)
        except ResultsFileError as error:
            return await coordinator.end_at_once(error)
        return await coordinator.run()


class Coordinator:
    """One coordinator's life: adoption, services, end."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell) -> None:
        self._store, self._spec, self._shell = store, spec, shell
        shell.grants = Grants(store, spec)
        state = shell.machine.state
        self._collector = Collector()
        self._health = HealthMonitor(
            store, lambda: expected(state), lambda: state.held > 0 or state.queued > 0, self._tell_health
        )
        self._pinger = Pinger(shell, shell.bus, spec.metrics_interval_s) if spec.metrics else None
        self._progress = ProgressTeller(shell)
        self._status = StatusTeller(spec, state, shell.bus, self._health)
        #: Started in this order, stopped in reverse.
        self._services: list[Service] = [
            self._health,
            *([self._progress] if spec.run is not None else []),
            *([self._pinger] if self._pinger is not None else []),
        ]
        shell.on_message = {
            "metrics.snapshot": self._take_metrics,
            "health.changed": self._take_health,
            "fleet.status": self._answer_status,
        }

    # ------------------------------------------------------------------ beginning

    def open_results(self, records: list[ev.Record]) -> None:
        """Open the results file and compare it with what the log says. Raises ResultsFileError."""
        shell = self._shell
        shell.replayed = {record.number: record for record in records}
        if self._spec.run is None or self._spec.run.results is None:
            return
        shell.results = ResultsFile(self._spec.run.results)
        if shell.machine.state.life and shell.results.is_regular:
            written = shell.results.numbers_behind(shell.machine.state.results_base_bytes)
            shell.missing = set(shell.replayed).difference(written)

    async def run(self) -> int:
        """From adoption to the end."""
        shell = self._shell
        listing = await self._ask_spawner()
        if listing is None:
            return LOST_STATUS
        await adopt(shell, self._spec, listing)
        gc.collect()
        gc.freeze()  # what was replayed stays: no collection has to walk it again
        gc.set_threshold(50_000, 20, 50)
        for service in self._services:
            service.start()
        try:
            await shell.run()
        finally:
            for service in reversed(self._services):
                await service.stop()
        if shell.finish is None:
            shell.notes.write("spawner.lost")
            return LOST_STATUS
        return await self._end(shell.finish)

    async def _ask_spawner(self) -> WorkerList | None:
        control = self._shell.control
        assert control is not None
        control.send(ListWorkers())
        early: list[ToCoordinator] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LIST_WAIT_S
        while loop.time() < deadline and not control.is_lost:
            while control.received:
                message = control.received.popleft()
                if isinstance(message, WorkerList):
                    control.received.extendleft(reversed(early))
                    return message
                early.append(message)
            self._shell.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shell.wake.wait(), 0.5)
        self._shell.notes.write("spawner.silent", lost=control.is_lost)
        return None

    # ------------------------------------------------------------------ messages that are no facts

    def _take_metrics(self, delivery: Delivery) -> None:
        snapshot: MetricsSnapshot = delivery.decode(MetricsSnapshot)
        self._collector.add(delivery.sender, snapshot)

    def _take_health(self, delivery: Delivery) -> None:
        change: HealthChanged = delivery.decode(HealthChanged)
        self._health.hear(delivery.sender, change)

    def _tell_health(self, agent: str, judgement: Judgement) -> None:
        if judgement.verdict in ("degraded", "unhealthy"):
            self._shell.notes.write(
                "health.changed", agent=agent, verdict=judgement.verdict, evidence=list(judgement.evidence)
            )

    def _answer_status(self, delivery: Delivery) -> None:
        ask: StatusAsk = delivery.decode(StatusAsk)
        rtt_ms = self._pinger.rtt_ms() if self._pinger is not None else {}
        answer = self._status.tell(self._shell.clock.now_s(), rtt_ms, with_agents=ask.agents)
        if self._pinger is not None:
            answer.counters.update(agents_answered=len(self._pinger.answered), pings_lost=self._pinger.lost)
        with contextlib.suppress(BusError):  # the asker has no room for a reply: it will ask again
            delivery.reply(answer, type=TYPE_OF[FleetStatus])

    # ------------------------------------------------------------------ ending

    async def _end(self, finish: ev.Finish) -> int:
        shell = self._shell
        while await shell.turn():  # final metrics, last words of drained agents
            pass
        await self._outputs_read()
        self._health.sweep()
        error = finish.error
        exit_status = finish.exit_status
        report = reports.build(shell, self._health, self._collector, self._pinger, self._spec.started_unix_s)
        try:
            await self._close_results()
            if self._spec.run is not None and self._spec.run.report is not None:
                reports.write(self._spec.run.report, report)
        except ResultsFileError as failure:
            error, exit_status = error or failure.message, exit_status or 1
        ended = RunEnded(exit_status=exit_status, reason=finish.reason, report=report, error=error)
        shell.notes.write("fleet.ended", reason=finish.reason, exit_status=exit_status, error=error)
        if self._spec.run is not None:
            self._progress.tell()
            await self._last_word(ended)
        if shell.may_snapshot:
            shell.log.write_snapshot(shell.machine.state)
        return await self._finished(exit_status)

    async def _close_results(self) -> None:
        shell = self._shell
        if shell.results is None:
            return
        base = shell.machine.state.results_base_bytes
        if base and not shell.unrecorded:
            # From here on every line of the file counts as this life's: the log must know before the file changes.
            shell.intake.facts.append(ev.ResultsRebased(shell.clock.now_s(), 0))
            await shell.commit()
            shell.results.drop_superseded()
        shell.results.sync()
        shell.results.close()

    async def _outputs_read(self) -> None:
        """Outputs come before the last word: wait for credit as long as somebody is there to read."""
        while self._shell.outputs.waiting:
            self._shell.outputs.retry()
            if self._shell.outputs.waiting:
                await asyncio.sleep(0.02)

    async def _last_word(self, ended: RunEnded) -> None:
        """Tell the operator how it ended and wait until it was read: after that the store may go away."""
        outputs = self._shell.outputs
        loop = asyncio.get_running_loop()
        while outputs.operator_is_there():
            try:
                receipt = self._shell.bus.post_struct(OPERATOR, ended)
            except BusError:
                await asyncio.sleep(0.02)
                continue
            deadline = loop.time() + LAST_WORD_S
            while loop.time() < deadline and outputs.operator_is_there():
                with contextlib.suppress(BusError, TimeoutError):
                    await receipt.wait_acked(timeout_s=0.2)
                if receipt.state not in ("stored", "taken"):
                    return
            return

    async def _finished(self, exit_status: int) -> int:
        control = self._shell.control
        assert control is not None
        control.send(Finished(exit_status=exit_status))
        await control.flush(1.0)
        return exit_status

    async def end_at_once(self, error: MusterError) -> int:
        """Nothing was started and nothing will be: say why, and end."""
        self._shell.notes.write("fleet.not_started", error=error.message)
        ended = RunEnded(exit_status=error.exit_status, reason="error", report={}, error=error.message)
        await self._last_word(ended)
        return await self._finished(error.exit_status)


__all__ = ["main"]
