"""The coordinator of a team: the same machine and turns as the root's, with the root above it instead of an operator.

It ends when the root drains it, or when its spawner is gone. What it knows stands in a log of its own, so its next process goes on; its
agents never notice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from muster.coordinator.adoption import adopt, team_plan_of
from muster.coordinator.process import Coordinator
from muster.coordinator.upstream import TeamIntake, Upstream
from muster.core.protocol import Drained
from muster.core.spec import teams

if TYPE_CHECKING:
    from pathlib import Path

    from muster.coordinator import events as ev
    from muster.coordinator.shell import Shell
    from muster.core.orders import WorkerList
    from muster.core.spec import FleetSpec

#: Wait for room for the last words at the root.
LAST_WORD_S = 5.0


class TeamCoordinator(Coordinator):
    """The coordinator of one team."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell, records: list[ev.Record]) -> None:
        """`records`: what the replay of the log has decided."""
        super().__init__(store, spec, shell)
        self._records = records
        self._incarnation = 0

    async def begin(self, listing: WorkerList) -> None:
        shell = self.shell
        self._incarnation = listing.incarnation
        upstream = Upstream(shell.bus, shell.machine.state, listing.incarnation)
        upstream.recover(self._records)
        shell.recorder = upstream
        shell.intake = TeamIntake(shell, upstream)
        await adopt(shell, team_plan_of(self.spec, teams(self.spec)[shell.bus.id]), listing)

    async def end(self, finish: ev.Finish) -> int:
        shell = self.shell
        while await shell.turn():  # final metrics, last words of drained agents
            pass
        assert isinstance(shell.recorder, Upstream)
        shell.recorder.say(Drained(incarnation=self._incarnation))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_WORD_S
        while shell.recorder.waiting and loop.time() < deadline:
            await asyncio.sleep(0.02)
            shell.recorder.retry()
        if shell.may_snapshot:
            shell.log.write_snapshot(shell.machine.state)
        return finish.exit_status if finish.reason == "error" else 0
