"""The demo's bad luck: workers are SIGKILLed while they hold a task, and it is made sure that they did hold one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.agent.status import StatusPage, read_status
from muster.core.protocol import Progress
from muster.errors import MusterError
from muster.supervise.client import SpawnerClient
from muster.supervise.tree import start_time_of

#: A status page lags behind its agent by at most 50 ms: what it says twice, this far apart, was true in between.
PAGE_LAG_S = 0.06
#: A kill that hit an agent between two tasks does not count, and another one is tried; this often at most.
KILLS_MAX = 12
_LOOK_AGAIN_S = 0.02
_CONFIRM_S = 10.0


@dataclass
class Kill:
    """One worker that was killed, and the attempt that it held then."""

    agent: str
    pid: int
    incarnation: int
    task: int
    attempt: int
    #: The coordinator has given the task to somebody else.
    reassigned: bool = False


class Killer(threading.Thread):
    """Kills one busy worker each time another share of the tasks is done. Start it once the fleet has been forked."""

    def __init__(self, store: Path, agents: list[str], weights: Mapping[int, int], shares: tuple[float, ...]) -> None:
        """`weights`: how much work each task number is. The heavier a task, the surer is its agent still at it when the kill comes."""
        super().__init__(name="killer", daemon=True)
        self.kills: list[Kill] = []
        #: The newest figures of the run, put here by whoever gets them.
        self.progress: Progress | None = None
        self.over = threading.Event()
        self._store, self._agents, self._weights, self._shares = store, agents, weights, shares
        #: Tasks lighter than this are over too soon.
        self._heavy = sorted(weights.values())[len(weights) // 2] if weights else 0

    @property
    def hits(self) -> list[Kill]:
        """The kills that took a task from its agent."""
        return [kill for kill in self.kills if kill.reassigned]

    def run(self) -> None:
        for share in self._shares:
            while self._share_done() < share and not self.over.is_set():
                self.over.wait(_LOOK_AGAIN_S)
            hits = len(self.hits)
            while len(self.hits) == hits and len(self.kills) < KILLS_MAX and not self.over.is_set():
                self._kill_one()

    def _share_done(self) -> float:
        seen = self.progress
        return (seen.done + seen.failed) / seen.total if seen is not None and seen.total else 0.0

    def _kill_one(self) -> None:
        victim = self._busy_agent()
        if victim is None:
            self.over.wait(_LOOK_AGAIN_S)
            return
        agent, page = victim
        before = self.progress.reassigned if self.progress is not None else 0
        if not self._is_of_this_fleet(page):
            return
        try:
            # Through the process descriptor: however late, the signal cannot reach another process that got the same number.
            fd = os.pidfd_open(page.pid)
            try:
                if start_time_of(page.pid) != page.start_time or not _still_at_it(self._store, agent, page):
                    return
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)
        except OSError:  # gone by itself
            return
        kill = Kill(agent, page.pid, page.incarnation, page.task, page.attempt)
        self.kills.append(kill)
        deadline = time.monotonic() + _CONFIRM_S
        while time.monotonic() < deadline and not self.over.is_set():
            if self.progress is not None and self.progress.reassigned > before:
                kill.reassigned = True
                return
            self.over.wait(_LOOK_AGAIN_S)

    def _busy_agent(self) -> tuple[str, StatusPage] | None:
        """The agent with the heaviest task in hand, seen at it twice; never one that was hit before, nor a task that was."""
        spared, spared_tasks = {kill.agent for kill in self.kills}, {kill.task for kill in self.kills}
        busy = []
        for agent in self._agents:
            page = read_status(self._store, agent) if agent not in spared else None
            if page is None or not page.running or page.task in spared_tasks:
                continue
            if self._weights.get(page.task, 0) >= self._heavy:
                busy.append((self._weights[page.task], agent, page))
        for _weight, agent, page in sorted(busy, key=lambda one: -one[0])[:3]:
            time.sleep(PAGE_LAG_S)
            if _still_at_it(self._store, agent, page):
                return agent, page
        return None

    def _is_of_this_fleet(self, page: StatusPage) -> bool:
        """Whether the fleet's spawner says that it forked this very process."""
        try:
            with SpawnerClient.connect(self._store) as spawner:
                workers = spawner.ping()["workers"]
        except (MusterError, OSError, TimeoutError):
            return False
        return any(worker["pid"] == page.pid and worker["start_time"] == page.start_time for worker in workers)


def _still_at_it(store: Path, agent: str, page: StatusPage) -> bool:
    now = read_status(store, agent)
    return now is not None and (now.pid, now.task, now.attempt, now.running) == (
        page.pid,
        page.task,
        page.attempt,
        page.running,
    )
