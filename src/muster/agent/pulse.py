"""The one timer of a worker: heartbeats of its agents' status pages, and with them metrics, health and reaping.

Every second while anything runs; backing off to every ten while nothing does. Metrics ride along when their interval has passed and
something has changed, so an idle worker sends nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.agent.vitals import Vitals, fds_max, open_fds, pss_bytes
from muster.core import limits
from muster.core.protocol import HealthChanged, MetricsSnapshot

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from muster.agent.remains import Remains
    from muster.agent.runner import Runner
    from muster.core.spec import FleetSpec

#: Fields of BusStats that become counters.
_COUNTED = (
    "sent",
    "received",
    "acked",
    "nacked",
    "dead",
    "expired",
    "evicted",
    "refused_full",
    "bad_frames",
    "unreadable",
    "gaps",
    "rerings",
    "sweeps_found",
)


class Pulse:
    """Beats for all agents of one worker."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fleet: FleetSpec, runners: list[Runner], remains: Remains
    ) -> None:
        self._loop = loop
        self._fleet = fleet
        self._runners = runners
        self._remains = remains
        # Nothing has begun yet: hundreds of workers that start at once have better things to do than a second look at themselves.
        self._interval_s = limits.HEARTBEAT_IDLE_S
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        #: The depth of an inbox is read from files of its senders: not with every beat.
        self._depth_due_s = 0.0
        self._metrics_due_s = loop.time() + fleet.metrics_interval_s
        self._counted: dict[str, tuple[int, ...]] = {runner.setting.agent: (0,) * len(_COUNTED) for runner in runners}
        self._verdicts: dict[str, str] = {runner.setting.agent: "healthy" for runner in runners}
        self._pss_bytes = 0
        # Not with the first beat, which is part of the start.
        self._memory_due_s = loop.time() + limits.HEARTBEAT_BUSY_S
        #: A bad verdict is told only when two beats in a row differ from the known one: a single late beat is no news.
        self._doubted: set[str] = set()
        #: Called with each beat.
        self.on_beat: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to beat: at once, so that the page is alive."""
        self._due_s = self._loop.time()
        self._beat()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def activity(self) -> None:
        """An agent got busy or idle: beat every second from now on."""
        if self._interval_s > limits.HEARTBEAT_BUSY_S and self._timer is not None:
            self._timer.cancel()
            self._interval_s = limits.HEARTBEAT_BUSY_S
            self._schedule()

    def _schedule(self) -> None:
        self._due_s = self._loop.time() + self._interval_s
        self._timer = self._loop.call_later(self._interval_s, self._beat)

    def _beat(self) -> None:
        now = self._loop.time()
        is_busy = any(runner.is_busy for runner in self._runners)
        self._interval_s = limits.HEARTBEAT_BUSY_S if is_busy else min(self._interval_s * 2, limits.HEARTBEAT_IDLE_S)
        try:
            self.on_beat()
            self._measure(now, is_busy=is_busy)
        except OSError:
            pass  # no descriptor left to look with: the verdict says so, and the next beat looks again
        finally:
            self._schedule()

    def _measure(self, now: float, *, is_busy: bool) -> None:
        lag_s = max(0.0, now - self._due_s)
        fds = open_fds()
        if now >= self._memory_due_s and (is_busy or not self._pss_bytes):  # an idle process does not grow
            self._memory_due_s = now + self._fleet.metrics_interval_s
            self._pss_bytes = pss_bytes()
        living = [runner for runner in self._runners if not runner.bus.closed]
        for runner in living:
            vitals = Vitals(lag_s, fds, fds_max(), len(runner.outbox), self._pss_bytes)
            self._judge(runner, vitals)
            self._publish(runner, vitals, with_depth=now >= self._depth_due_s)
        if now >= self._depth_due_s:
            self._depth_due_s = now + limits.HEARTBEAT_IDLE_S
        if now >= self._metrics_due_s:
            self._metrics_due_s = now + self._fleet.metrics_interval_s
            self._send_metrics(living, lag_s, fds)
        if is_busy:
            self._remains.reap()

    def _publish(self, runner: Runner, vitals: Vitals, *, with_depth: bool) -> None:
        page = runner.page
        page.beat()
        # What belongs to the process is shared out: a page speaks for one agent.
        hosted = max(1, len(self._runners))
        page.set("pss_bytes", vitals.pss_bytes // hosted)
        page.set("fds", vitals.fds // hosted)
        page.set("loop_lag_us", int(vitals.loop_lag_s * 1e6))
        if with_depth:
            page.set("inbox_depth", runner.bus.depth())

    def _judge(self, runner: Runner, vitals: Vitals) -> None:
        agent = runner.setting.agent
        verdict, evidence = vitals.verdict()
        if verdict == self._verdicts[agent]:
            self._doubted.discard(agent)
            return
        if verdict != "healthy" and agent not in self._doubted:
            self._doubted.add(agent)
            return
        self._doubted.discard(agent)
        self._verdicts[agent] = verdict
        runner.page.verdict(verdict)
        runner.outbox.post(
            HealthChanged(incarnation=runner.setting.incarnation, verdict=verdict, evidence=evidence)  # type: ignore[arg-type]
        )

    # ------------------------------------------------------------------ metrics

    def _send_metrics(self, runners: list[Runner], lag_s: float, fds: int) -> None:
        for at, runner in enumerate(runners):
            if at == 0:  # what belongs to the process is told once
                if self._pss_bytes:
                    runner.registry.gauge("muster_worker_pss_bytes", self._pss_bytes)
                runner.registry.gauge("muster_worker_open_fds", fds)
                runner.registry.gauge("muster_worker_loop_lag_seconds", round(lag_s, 3))
            self._send(runner)

    def _send(self, runner: Runner) -> None:
        if not self._fleet.metrics:
            return
        agent, registry = runner.setting.agent, runner.registry
        counted = tuple(getattr(runner.bus.stats, name) for name in _COUNTED)
        for name, now, before in zip(_COUNTED, counted, self._counted[agent], strict=True):
            if now > before:
                registry.count(f"muster_messages_{name}_total", now - before)
        self._counted[agent] = counted
        delta = registry.delta()
        # Gauges alone are not worth a message: they always flicker.
        if not delta.get("counters") and not delta.get("histograms"):
            registry.restore(delta)
            return
        if runner.metrics_sent(MetricsSnapshot(incarnation=runner.setting.incarnation, **delta)):
            # Sending this counted as sent: without this line every snapshot would be a reason for the next one.
            self._counted[agent] = (counted[0] + 1, *counted[1:])
        else:
            registry.restore(delta)

    def last_words(self, runner: Runner) -> None:
        """The final snapshot of an agent that is about to leave."""
        if not self._pss_bytes:  # a short life
            self._pss_bytes = pss_bytes()
            runner.registry.gauge("muster_worker_pss_bytes", self._pss_bytes)
        runner.page.set("pss_bytes", self._pss_bytes // max(1, len(self._runners)))
        self._send(runner)
