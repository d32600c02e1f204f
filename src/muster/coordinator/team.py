"""The coordinator of a team: the same machine and turns as the root's, with the root above it instead of an operator.

It ends when the root drains it, or when its spawner is gone. What it knows stands in a log of its own, so its next process goes on; its
agents never notice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from muster.coordinator.adoption import adopt, team_plan_of
from muster.coordinator.process import Coordinator
from muster.coordinator.services import Loop, Service
from muster.coordinator.upstream import TeamIntake, Upstream
from muster.core.names import COORDINATOR
from muster.core.protocol import Drained, MetricsSnapshot, TeamReport
from muster.core.spec import teams
from muster.errors import BusError
from muster.metrics.collector import Series

if TYPE_CHECKING:
    from pathlib import Path

    from muster.bus.delivery import Delivery
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
        self.incarnation = 0
        self._reporter = TeamReporter(self)

    def services(self) -> list[Service]:
        return [*super().services(), self._reporter]

    def take_metrics(self, delivery: Delivery) -> None:
        super().take_metrics(delivery)
        self._reporter.news.add(delivery.decode(MetricsSnapshot))

    def make_upstream(self, incarnation: int) -> Upstream:
        """The recorder of this process."""
        return Upstream(self.shell.bus, self.shell.machine.state, incarnation)

    async def begin(self, listing: WorkerList) -> None:
        await self.take_over(listing, [])

    async def take_over(self, listing: WorkerList, first: list[ev.AnyFact]) -> None:
        """Go on from the log, with these facts before all others."""
        shell, team = self.shell, teams(self.spec)[self.shell.bus.id]
        self.incarnation = listing.incarnation
        upstream = self.make_upstream(listing.incarnation)
        upstream.recover(self._records)
        shell.recorder = upstream
        shell.intake = TeamIntake(shell, upstream, team.kind)
        shell.intake.facts += first
        await adopt(shell, team_plan_of(self.spec, team), listing)

    async def end(self, finish: ev.Finish) -> int:
        shell = self.shell
        while await shell.turn():  # final metrics, last words of drained agents
            pass
        assert isinstance(shell.recorder, Upstream)
        self._reporter.tell()
        shell.recorder.say(Drained(incarnation=self.incarnation))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_WORD_S
        while shell.recorder.waiting and loop.time() < deadline:
            await asyncio.sleep(0.02)
            shell.recorder.retry()
        if shell.may_snapshot:
            shell.log.write_snapshot(shell.machine.state)
        return finish.exit_status if finish.reason == "error" else 0


class TeamReporter(Loop):
    """Tells the root now and then how the team is, with what its agents have counted; at the end once more."""

    def __init__(self, team: TeamCoordinator) -> None:
        super().__init__("team report")
        self._team = team
        #: What was counted since the last report.
        self.news = Series()
        self._last: object = None

    def tell(self) -> None:
        """Say it. Without room nothing is lost: the next report has it."""
        team, news = self._team, self.news
        histograms = {name: (one.count, one.sum, one.buckets) for name, one in news.histograms.items()}
        report = TeamReport(
            status=team.tell_status(with_agents=False),
            agents_seen=sum(
                agent.done + agent.failed > 0 or agent.state != "absent"
                for agent in team.shell.machine.state.agents.values()
            ),
            pss_bytes=list(team.health.pss_bytes.values()),
            metrics=MetricsSnapshot(incarnation=team.incarnation, counters=news.counters, histograms=histograms),
        )
        try:
            team.shell.bus.post_struct(COORDINATOR, report)
        except BusError:
            return
        self.news = Series()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._team.spec.metrics_interval_s)
            now = self._team.shell.machine.state.counters, bool(self.news.counters)
            if repr(now) != self._last:
                self._last = repr(now)
                self.tell()
