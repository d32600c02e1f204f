"""Sees when a worker's own process has outgrown what its kind is to have (`max_rss`), and tells the machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from muster.coordinator.events import WorkerOutgrown
from muster.coordinator.lives import ALIVE
from muster.coordinator.services import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from muster.agent.status import StatusPage
    from muster.coordinator.shell import Shell
    from muster.coordinator.state import State
    from muster.health.monitor import HealthMonitor

#: Pause between two looks at what the health monitor has read; workers measure themselves no more often.
LOOK_S = 5.0


class SizeWatch(Loop):
    """A service of every coordinator that has a kind with such a bound."""

    def __init__(self, shell: Shell, health: HealthMonitor) -> None:
        super().__init__("sizes")
        self._shell, self._health = shell, health

    async def _run(self) -> None:
        shell = self._shell
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = shell.clock.now_s()
            facts = list(outgrown(shell.machine.state, self._health.pages, now_s))
            if facts:
                shell.intake.facts += facts
                shell.wake.set()


def outgrown(state: State, pages: Mapping[str, StatusPage], now_s: float) -> Iterator[WorkerOutgrown]:
    """Every worker that is too large by its agents' pages, and nobody has said so yet."""
    for worker in state.workers.values():
        bound = worker.child.max_rss_bytes
        if not bound or worker.state != ALIVE or worker.leaving or worker.name in state.supervision.waiting:
            continue
        # A process's memory is shared out among the pages of its agents.
        own = [page for name in worker.agents if (page := pages.get(name)) is not None]
        rss_bytes = sum(page.pss_bytes for page in own if page.incarnation == worker.incarnation)
        if rss_bytes > bound:
            yield WorkerOutgrown(now_s, worker.name, worker.incarnation, rss_bytes)
