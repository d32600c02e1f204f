"""The root coordinator: results file, outputs to the operator, progress, report; it alone says that the fleet is done."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from muster.coordinator import budget
from muster.coordinator import events as ev
from muster.coordinator import report as reports
from muster.coordinator.adoption import adopt, plan_of
from muster.coordinator.caretaker import Caretaker
from muster.coordinator.cleaning import Cleaner
from muster.coordinator.farewell import farewell
from muster.coordinator.hooks import HookRunner
from muster.coordinator.hybrid import Hybrid
from muster.coordinator.limiting import LimitDesk
from muster.coordinator.outputs import OutputFlow
from muster.coordinator.process import Coordinator
from muster.coordinator.proxying import ProxyKeeper
from muster.coordinator.recording import Recording
from muster.coordinator.results import ResultsFile
from muster.coordinator.services import ProgressTeller, Service
from muster.core.names import OPERATOR, PROXY
from muster.core.orders import Finished
from muster.core.protocol import RunEnded, TeamAdopt, TeamNoted
from muster.errors import BusError, ResultsFileError

if TYPE_CHECKING:
    from pathlib import Path

    from muster.bus.delivery import Delivery
    from muster.coordinator.shell import Shell
    from muster.core.orders import WorkerList
    from muster.core.protocol import FleetStatus
    from muster.core.spec import FleetSpec
    from muster.errors import MusterError

#: Wait for the operator to read the last message.
LAST_WORD_S = 5.0


class Root(Coordinator):
    """The coordinator of the fleet."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell, records: list[ev.Record]) -> None:
        """`records`: what the replay of the log has decided."""
        super().__init__(store, spec, shell)
        run = spec.run
        outputs = OutputFlow(shell.bus, store, keep_order=run is not None and run.keep_order, is_shown=run is not None)
        self.recording = Recording(shell.bus, outputs, shell.notes, shell.recording_failed)
        self.recording.retries = shell.machine.state.retries
        self.recording.recover(records)
        shell.recorder = self.recording
        self._hybrid = Hybrid(store, spec, shell, self.collector)
        shell.on_message |= {"team.noted": self._note_of_team, "team.report": self._hybrid.take_report}
        self.limits = LimitDesk(shell, spec)
        shell.on_kept["limit.ask"] = self.limits.take_ask
        shell.on_message["limit.settle"] = self.limits.take_settlement
        shell.on_exit = self._forget_worker
        self.proxy = None if spec.proxy is None else ProxyKeeper(store, shell, self._forget_proxy)
        self._progress = ProgressTeller(shell, outputs.operator_is_there)

        self._caretakers: dict[str, Caretaker] = {}
        self._dissolutions: set[asyncio.Task[None]] = set()
        shell.dissolve, shell.overhear = self._dissolve, self._overhear

    def services(self) -> list[Service]:
        health, *others = super().services()
        spec = self.spec
        return [
            health,
            self.limits,
            *([self.proxy] if self.proxy is not None else []),
            *([self._progress] if spec.run is not None else []),
            *others,
            Cleaner(self.store, spec.spool, self.shell),
            *([HookRunner(self.store, spec, self.shell)] if spec.hooks else []),
        ]

    def _forget_proxy(self) -> None:
        self.limits.forget(PROXY)

    def _forget_worker(self, name: str) -> None:
        worker = self.shell.machine.state.workers.get(name)
        for agent in worker.agents if worker is not None else ():
            self.limits.forget(agent)

    async def run(self) -> int:
        try:
            self._open_results()
        except ResultsFileError as error:
            return await self._end_at_once(error)
        return await super().run()

    def _open_results(self) -> None:
        """Open the results file and compare it with what the log says. Raises ResultsFileError."""
        if self.spec.run is None or self.spec.run.results is None:
            return
        self.recording.results = ResultsFile(self.spec.run.results)
        state = self.shell.machine.state
        if state.life:
            self.recording.compare(state.results_base_bytes, state.tasks)

    async def begin(self, listing: WorkerList) -> None:
        results = self.recording.results
        if self.proxy is not None:
            listing = self.proxy.claim(listing)
        await adopt(self.shell, plan_of(self.spec), listing, results.size_bytes if results is not None else 0)

    def _note_of_team(self, delivery: Delivery) -> None:
        worker = self.shell.machine.state.workers.get(delivery.sender)
        if worker is not None and worker.is_team:
            noted: TeamNoted = delivery.decode(TeamNoted)
            self.shell.notes.write(noted.event, team=delivery.sender, **noted.facts)

    # ------------------------------------------------------------------ teams that are given up

    def _dissolve(self, team: str, heirs: list[str]) -> None:
        shell = self.shell
        assert shell.control is not None

        def give(at: int, adopt: TeamAdopt) -> None:
            if heirs:
                message_id = f"adopt-{adopt.worker}-{adopt.incarnation}"
                shell.post(ev.Post(heirs[at % len(heirs)], adopt, message_id))

        def done(reason: str) -> None:
            shell.drain_worker(team)  # its last words come first
            shell.intake.facts.append(ev.TeamDissolved(shell.clock.now_s(), team, reason))
            self._caretakers.pop(team, None)
            shell.wake.set()

        caretaker = self._caretakers[team] = Caretaker(self.store, self.spec, team, shell.control, give, done)
        task = asyncio.get_running_loop().create_task(caretaker.run(), name=f"end of {team}")
        self._dissolutions.add(task)
        task.add_done_callback(self._dissolutions.discard)

    def _overhear(self, message: Any) -> bool:
        if self.proxy is not None and self.proxy.hear(message):
            return True
        return any(caretaker.hear(message) for caretaker in self._caretakers.values())

    def tell_status(self, *, with_agents: bool) -> FleetStatus:
        return msgspec.structs.replace(
            super().tell_status(with_agents=with_agents),
            limits=self.limits.rows(),
            held_back=self.shell.held_back,
            proxy=self.proxy.told() if self.proxy is not None else {},
            spent=budget.rows(self.shell.machine.state),
        )

    def answer_status(self, delivery: Delivery) -> None:
        if self._hybrid:
            self._hybrid.answer(delivery, self.tell_status(with_agents=False))
        else:
            super().answer_status(delivery)

    # ------------------------------------------------------------------ ending

    async def end(self, finish: ev.Finish) -> int:
        shell = self.shell
        while await shell.turn():  # final metrics, last words of drained agents
            pass
        await self._outputs_read()
        self.health.sweep()
        error = finish.error
        exit_status = finish.exit_status
        report = reports.build(
            shell, self.recording, self.health, self.collector, self.pinger, self.spec.started_unix_s
        )
        if self._hybrid:
            self._hybrid.complete(report)
        if self.proxy is not None:
            report["proxy"] = self.proxy.told()
        try:
            await self._close_results()
            if self.spec.run is not None and self.spec.run.report is not None:
                reports.write(self.spec.run.report, report)
        except ResultsFileError as failure:
            error, exit_status = error or failure.message, exit_status or 1
        ended = RunEnded(exit_status=exit_status, reason=finish.reason, report=report, error=error)
        shell.notes.write(
            "fleet.ended", reason=finish.reason, exit_status=exit_status, error=error, **farewell(shell.machine.state)
        )
        if self.spec.run is not None:
            self._progress.tell()
            await self._last_word(ended)
        if shell.may_snapshot:
            shell.log.write_snapshot(shell.machine.state)
        return await self._finished(exit_status)

    async def _close_results(self) -> None:
        shell, recording = self.shell, self.recording
        if recording.results is None:
            return
        base = shell.machine.state.results_base_bytes
        if base and not recording.unrecorded:
            # From here on every line of the file counts as this life's: the log must know before the file changes.
            shell.intake.facts.append(ev.ResultsRebased(shell.clock.now_s(), 0))
            await shell.commit()
            recording.results.drop_superseded()
        recording.results.sync()
        recording.results.close()

    async def _outputs_read(self) -> None:
        """Outputs come before the last word: wait for credit as long as somebody is there to read."""
        while self.recording.outputs.waiting:
            self.recording.outputs.retry()
            if self.recording.outputs.waiting:
                await asyncio.sleep(0.02)

    async def _last_word(self, ended: RunEnded) -> None:
        """Tell the operator how it ended and wait until it was read: after that the store may go away."""
        outputs = self.recording.outputs
        loop = asyncio.get_running_loop()
        while outputs.operator_is_there():
            try:
                receipt = self.shell.bus.post_struct(OPERATOR, ended)
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
        control = self.shell.control
        assert control is not None
        control.send(Finished(exit_status=exit_status))
        await control.flush(1.0)
        return exit_status

    async def _end_at_once(self, error: MusterError) -> int:
        """Nothing was started and nothing will be: say why, and end."""
        self.shell.notes.write("fleet.not_started", error=error.message)
        ended = RunEnded(exit_status=error.exit_status, reason="error", report={}, error=error.message)
        await self._last_word(ended)
        return await self._finished(error.exit_status)
