"""Watches the status pages of a fleet: sweeps, judges, tells changes. Slow when nothing happens, patient after a sleep of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muster.agent.status import StatusPage, boottime_ms, read_status
from muster.core import limits
from muster.health.check import Bounds, Judgement, Observation, judge, judge_team

if TYPE_CHECKING:
    from pathlib import Path

    from muster.core.protocol import HealthChanged

#: Pause between sweeps while the fleet works, and while it idles.
BUSY_SWEEP_S, IDLE_SWEEP_S = 2.0, 10.0
#: Extra time between two sweeps that shows that this process or the machine stood still, and how long ages then mean nothing.
JUMP_S = 5.0
GRACE_AFTER_JUMP_S = 2 * limits.HEARTBEAT_IDLE_S


@dataclass(frozen=True, slots=True)
class Expected:
    """What the coordinator knows of an agent by proof."""

    agent: str
    incarnation: int
    is_alive: bool
    has_joined: bool
    is_given_up: bool


class HealthMonitor:
    """A service of the coordinator. `expected` says who should be there, `is_busy` whether to look often, `tell` takes changes."""

    def __init__(
        self,
        store: Path,
        expected: Callable[[], Iterable[Expected]],
        is_busy: Callable[[], bool],
        tell: Callable[[str, Judgement], None],
        bounds: Bounds | None = None,
    ) -> None:
        self._store = store
        self._expected, self._is_busy, self._tell = expected, is_busy, tell
        self._bounds = bounds or Bounds()
        self._own: dict[str, HealthChanged] = {}
        self._task: asyncio.Task[None] | None = None
        self._last_sweep_s: float | None = None
        self._grace_until_s = 0.0
        self.judgements: dict[str, Judgement] = {}
        self.pages: dict[str, StatusPage] = {}
        #: The last memory figure of each agent; kept when it is gone, for the report.
        self.pss_bytes: dict[str, int] = {}

    def start(self) -> None:
        """Begin to sweep."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="health monitor")

    async def stop(self) -> None:
        """Stop sweeping."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def hear(self, agent: str, change: HealthChanged) -> None:
        """An agent changed its verdict on itself. Believed until its next incarnation."""
        self._own[agent] = change

    def team(self) -> Judgement:
        """The verdict on all."""
        return judge_team(self.judgements.values())

    def sweep(self, now_s: float | None = None) -> None:
        """Look at everybody once. `now_s`: seconds since boot, sleep included."""
        now_s = boottime_ms() / 1000 if now_s is None else now_s
        self._notice_jump(now_s)
        in_grace = now_s < self._grace_until_s
        there = {expected.agent: expected for expected in self._expected()}
        for agent in self.judgements.keys() - there.keys():  # the fleet has it no more
            del self.judgements[agent]
        for expected in there.values():
            page = read_status(self._store, expected.agent)
            if page is not None and page.incarnation == expected.incarnation:
                self.pages[expected.agent] = page
                if page.pss_bytes:
                    self.pss_bytes[expected.agent] = page.pss_bytes
            else:
                self.pages.pop(expected.agent, None)
                page = None
            judgement = judge(self._observe(expected, page, now_s, in_grace), self._bounds)
            before = self.judgements.get(expected.agent)
            self.judgements[expected.agent] = judgement
            if (before.verdict if before else "unknown") != judgement.verdict:
                self._tell(expected.agent, judgement)

    def _notice_jump(self, now_s: float) -> None:
        """After a sleep all heartbeats are old at once: that is no illness of anybody. Wait for fresh ones."""
        last_s, self._last_sweep_s = self._last_sweep_s, now_s
        if last_s is not None and now_s - last_s > IDLE_SWEEP_S + JUMP_S:
            self._grace_until_s = now_s + GRACE_AFTER_JUMP_S

    def _observe(self, expected: Expected, page: StatusPage | None, now_s: float, in_grace: bool) -> Observation:
        own = self._own.get(expected.agent)
        if own is not None and own.incarnation != expected.incarnation:
            own = None
        said = own.verdict if own is not None else "unknown"
        evidence = tuple(own.evidence) if own is not None else ()
        if page is None:
            return Observation(
                expected.is_alive,
                expected.is_given_up,
                expected.has_joined,
                in_grace=in_grace,
                own_verdict=said,
                own_evidence=evidence,
            )
        return Observation(
            is_alive=expected.is_alive,
            is_given_up=expected.is_given_up,
            has_joined=expected.has_joined,
            heartbeat_age_s=max(0.0, now_s - page.heartbeat_ms / 1000),
            in_grace=in_grace,
            loop_lag_s=page.loop_lag_us / 1e6,
            inbox_depth=page.inbox_depth,
            fds=page.fds,
            memory_bytes=page.pss_bytes,
            running=page.running,
            progress_age_s=max(0.0, now_s - page.progress_ms / 1000) if page.progress_ms else None,
            own_verdict=said if own is not None else page.verdict,
            own_evidence=evidence,
        )

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            self.sweep()
            spent = time.monotonic() - started
            # A sweep of many pages on a slow machine must not become the load that it looks for: at most 2 % of a core.
            await asyncio.sleep(max(BUSY_SWEEP_S if self._is_busy() else IDLE_SWEEP_S, 50 * spent))
