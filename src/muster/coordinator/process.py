"""A coordinator's life in its process, whatever it coordinates: adopt the living, start the services, turn after turn, end in order.

ListWorkers ─▶ adopt ─▶ services ─▶ turns … ─▶ services in reverse ─▶ `end`
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

from muster.bus.services import LOOPS_STOPPED
from muster.coordinator.admission import Door
from muster.coordinator.grants import Grants
from muster.coordinator.locks.watch import HolderWatch
from muster.coordinator.resizing import Resizer
from muster.coordinator.services import Pinger, Service
from muster.coordinator.sizes import SizeWatch
from muster.coordinator.status import StatusTeller, expected
from muster.core.orders import ListWorkers, ToCoordinator, WorkerList
from muster.core.protocol import TYPE_OF, FleetStatus, HealthChanged, MetricsSnapshot, StatusAsk
from muster.errors import BusError
from muster.health.monitor import HealthMonitor
from muster.metrics.collector import Collector

if TYPE_CHECKING:
    from pathlib import Path

    from muster.bus.delivery import Delivery
    from muster.coordinator import events as ev
    from muster.coordinator.shell import Shell
    from muster.core.spec import FleetSpec
    from muster.health.check import Judgement

#: Wait for the spawner's list of workers. A dead spawner is seen by the end of its socket; one that forks hundreds of workers for others on
#: a busy machine is only late.
LIST_WAIT_S = 60.0
#: Exit status of a coordinator that ends because its spawner is gone, or because it could not begin: who started it decides what follows.
LOST_STATUS = 1


class Coordinator:
    """What the root and the coordinators of teams have in common."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell) -> None:
        self.store, self.spec, self.shell = store, spec, shell
        shell.grants = Grants(store, spec, shell.bus.id)
        shell.resize = Resizer(store, shell).carry_out
        state = shell.machine.state
        self.collector = Collector()
        self.health = HealthMonitor(
            store, lambda: expected(state), lambda: state.held > 0 or state.queued > 0, self._tell_health
        )
        self.pinger = Pinger(shell, shell.bus, spec.metrics_interval_s) if spec.metrics else None
        self.status = StatusTeller(spec, state, shell.bus, self.health)
        shell.on_message = {
            "metrics.snapshot": self.take_metrics,
            "health.changed": self._take_health,
            "fleet.status": self.answer_status,
        }

    def services(self) -> list[Service]:
        """Started in this order, stopped in reverse."""
        is_bounded = any(kind.child.max_rss_bytes for kind in self.spec.agents)
        return [
            self.health,
            HolderWatch(self.shell),
            Door(self.shell, self.spec.admit),
            *([self.pinger] if self.pinger is not None else []),
            *([SizeWatch(self.shell, self.health)] if is_bounded else []),
        ]

    async def end(self, finish: ev.Finish) -> int:
        """The machine is done: last words, and the exit status."""
        raise NotImplementedError

    async def run(self) -> int:
        """From adoption to the end."""
        listing = await self._ask_spawner()
        if listing is None:
            return LOST_STATUS
        await self.begin(listing)
        gc.collect()
        gc.freeze()  # what was replayed stays: no collection has to walk it again
        gc.set_threshold(50_000, 20, 50)
        services = self.services()
        for service in services:
            service.start()
        try:
            await self.shell.run()
        finally:
            for service in reversed(services):
                await service.stop()
        if self.shell.finish is None:
            self.shell.notes.write("spawner.lost")
            return LOST_STATUS
        return await self.end(self.shell.finish)

    async def begin(self, listing: WorkerList) -> None:
        """Take over what the spawner says there is."""
        raise NotImplementedError

    async def _ask_spawner(self) -> WorkerList | None:
        control = self.shell.control
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
            self.shell.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.shell.wake.wait(), 0.5)
        self.shell.notes.write("spawner.silent", lost=control.is_lost)
        return None

    # ------------------------------------------------------------------ messages that are no facts

    def take_metrics(self, delivery: Delivery) -> None:
        """An agent says what it has counted."""
        snapshot: MetricsSnapshot = delivery.decode(MetricsSnapshot)
        self.collector.add(delivery.sender, snapshot)
        stopped = snapshot.counters.get(LOOPS_STOPPED)
        if stopped:
            self.shell.notes.write("loop.stopped", agent=delivery.sender, messages=int(stopped))

    def _take_health(self, delivery: Delivery) -> None:
        change: HealthChanged = delivery.decode(HealthChanged)
        self.health.hear(delivery.sender, change)

    def _tell_health(self, agent: str, judgement: Judgement) -> None:
        if judgement.verdict in ("degraded", "unhealthy"):
            self.shell.notes.write(
                "health.changed", agent=agent, verdict=judgement.verdict, evidence=list(judgement.evidence)
            )

    def answer_status(self, delivery: Delivery) -> None:
        """Say how it is to whoever asks."""
        ask: StatusAsk = delivery.decode(StatusAsk)
        with contextlib.suppress(BusError):  # the asker has no room for a reply: it will ask again
            delivery.reply(self.tell_status(with_agents=ask.agents), type=TYPE_OF[FleetStatus])

    def tell_status(self, *, with_agents: bool) -> FleetStatus:
        """What is coordinated from here, as it is now."""
        rtt_ms = self.pinger.rtt_ms() if self.pinger is not None else {}
        told = self.status.tell(self.shell.clock.now_s(), rtt_ms, with_agents=with_agents)
        if self.pinger is not None:
            told.counters.update(agents_answered=len(self.pinger.answered), pings_lost=self.pinger.lost)
        return told
