"""The demo's bad luck: workers are SIGKILLed while they hold a task, and it is made sure that they did hold one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.agent.status import StatusPage, read_status
from muster.bus.transports.lanes.inspect import view_lane
from muster.core.names import COORDINATOR
from muster.supervise.tree import children_of, start_time_of

#: Kills that turn out to have come too late do not count, and another one is tried; this often at most.
KILLS_MAX = 12
_LOOK_AGAIN_S = 0.02
#: Time for the coordinator to take in what a stopped worker had already said.
_SETTLE_S = 1.0


@dataclass
class Kill:
    """One worker that was killed, and the attempt that it held then."""

    agent: str
    pid: int
    incarnation: int
    task: int
    attempt: int


@dataclass(frozen=True)
class Scene:
    """Where kills happen: a running fleet, and the results file that it writes."""

    store: Path
    spawner_pid: int
    agents: list[str]
    results: Path
    #: Task number -> how much work it is.
    weights: Mapping[int, int]


class Killer(threading.Thread):
    """Kills one busy worker each time another share of the tasks is done. Start it once the fleet has been forked.

    A victim is stopped first. What it had said before that is then taken in by the coordinator; if its task is not recorded after
    that, the worker still holds it, and dies holding it. Otherwise it goes on, and another one is chosen.
    """

    def __init__(self, scene: Scene, shares: tuple[float, ...]) -> None:
        super().__init__(name="killer", daemon=True)
        self.kills: list[Kill] = []
        self.over = threading.Event()
        self._scene, self._shares = scene, shares
        self._read_to = 0
        self._recorded: dict[int, int] = {}

    def run(self) -> None:
        while not self.over.wait(_LOOK_AGAIN_S) and len(self.kills) < KILLS_MAX:
            self._read_results()
            wanted = sum(len(self._recorded) >= share * len(self._scene.weights) for share in self._shares)
            # A kill counts unless the very attempt was recorded after all.
            if sum(self._recorded.get(kill.task) != kill.attempt for kill in self.kills) < wanted:
                self._kill_one()

    def _read_results(self) -> None:
        """Note the tasks recorded since the last look, with the attempt that counted."""
        try:
            with self._scene.results.open("rb") as stream:
                stream.seek(self._read_to)
                *lines, rest = stream.read().split(b"\n")
                self._read_to = stream.tell() - len(rest)
        except FileNotFoundError:
            return
        for line in map(json.loads, lines):
            self._recorded[line["task"]] = line["attempt"]

    def _kill_one(self) -> None:
        victim = self._busy_agent()
        if victim is None:
            return
        agent, page = victim
        try:
            # Through the process descriptor: however late, a signal cannot reach another process that got the same number.
            fd = os.pidfd_open(page.pid)
        except ProcessLookupError:
            return
        try:
            is_ours = start_time_of(page.pid) == page.start_time and page.pid in children_of(self._scene.spawner_pid)
            if is_ours:
                self._stop_and_kill(fd, agent, page)
        except ProcessLookupError:  # gone by itself
            return
        finally:
            os.close(fd)

    def _stop_and_kill(self, fd: int, agent: str, page: StatusPage) -> None:
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        try:
            if self._holds_its_task(agent, page):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                self.kills.append(Kill(agent, page.pid, page.incarnation, page.task, page.attempt))
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)

    def _busy_agent(self) -> tuple[str, StatusPage] | None:
        """The agent with the heaviest task in hand; never one that was hit before, nor a task that was."""
        over = self._recorded.keys() | {kill.task for kill in self.kills}
        spared = {kill.agent for kill in self.kills}
        busy: list[tuple[int, str, StatusPage]] = []
        for agent in self._scene.agents:
            page = read_status(self._scene.store, agent) if agent not in spared else None
            if page is not None and page.running and page.task and page.task not in over:
                busy.append((self._scene.weights.get(page.task, 0), agent, page))
        _weight, agent, page = max(busy, key=lambda one: one[0], default=(0, "", None))
        return (agent, page) if page is not None else None

    def _holds_its_task(self, agent: str, page: StatusPage) -> bool:
        """Whether a stopped agent has yet to report the task that its page shows."""
        deadline = time.monotonic() + _SETTLE_S
        while (lane := view_lane(self._scene.store, agent, COORDINATOR, control=False)) is not None and lane.depth:
            if time.monotonic() > deadline or self.over.wait(_LOOK_AGAIN_S):
                return False
        self._read_results()
        return page.task not in self._recorded
