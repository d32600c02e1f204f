"""The fleet's API proxy, kept alive: a service of the root coordinator, beside the machine.

It decides nothing about tasks, so nothing of it is in the log: what a new coordinator has to know, the spawner tells. A proxy outlives its
coordinator and is found again; one that dies is started again, ever later, but never given up, because every attempt waits for it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import msgspec

from muster.core.names import PROXY
from muster.core.orders import ExitSeen, KillWorker, SpawnWorker, WorkerExited, WorkerList, WorkerStarted
from muster.limit.proxy import accounts, life

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from muster.coordinator.shell import Shell

#: The first restart comes at once, later ones wait so long, doubled each time; a proxy that lived for a while begins again.
DELAY_S, DELAY_MAX_S, STEADY_S = 0.1, 10.0, 30.0
#: At the end of the fleet, from SIGTERM until the spawner's own means.
END_S = 2.0


class ProxyKeeper:
    """Starts, restarts and ends the proxy; tells how it is. `lost`: hears of each death."""

    def __init__(self, store: Path, shell: Shell, lost: Callable[[], None]) -> None:
        self._store, self._shell, self._lost = store, shell, lost
        self._incarnation = self._deaths = 0
        self._born_s = self._delay_s = 0.0
        self._is_alive = self._is_ending = False
        self._timer: asyncio.TimerHandle | None = None

    def claim(self, listing: WorkerList) -> WorkerList:
        """Take the proxy out of the spawner's list: the rest is the machine's."""
        mine = [entry for entry in listing.alive if entry.worker == PROXY]
        self._incarnation = max([listing.last.get(PROXY, 0), *(entry.incarnation for entry in mine)])
        self._is_alive = bool(mine)
        gone = [entry for entry in listing.exited if entry.worker == PROXY]
        self._deaths += len(gone)
        for entry in gone:
            self._acknowledge(entry.incarnation)
        return msgspec.structs.replace(
            listing,
            alive=[entry for entry in listing.alive if entry.worker != PROXY],
            exited=[entry for entry in listing.exited if entry.worker != PROXY],
        )

    def start(self) -> None:
        """Start it, unless it lives."""
        if not self._is_alive:
            self._spawn()

    def hear(self, message: Any) -> bool:
        """Take a word of the spawner if it is about the proxy."""
        if not isinstance(message, WorkerStarted | WorkerExited) or message.worker != PROXY:
            return False
        if isinstance(message, WorkerExited) and not message.survivors:
            self._acknowledge(message.incarnation)
            if message.incarnation == self._incarnation:
                self._died(message)
        return True

    def _died(self, message: WorkerExited) -> None:
        self._is_alive = False
        self._lost()
        if self._is_ending:
            return
        self._deaths += 1
        now_s = time.monotonic()
        steady = now_s - self._born_s >= STEADY_S
        wait_s = 0.0 if steady else self._delay_s
        self._delay_s = DELAY_S if steady else min(DELAY_MAX_S, max(DELAY_S, 2 * self._delay_s))
        self._shell.notes.write("proxy.exited", signal=message.signal, exit_status=message.exit_status, again_s=wait_s)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._spawn)

    def _spawn(self) -> None:
        shell = self._shell
        assert shell.control is not None
        assert shell.grants is not None
        grants = shell.grants
        self._incarnation += 1
        self._is_alive, self._born_s = True, time.monotonic()
        incarnation = self._incarnation
        shell.control.send(
            SpawnWorker(worker=PROXY, incarnation=incarnation), lambda: grants.grant(PROXY, incarnation, [PROXY])
        )

    def _acknowledge(self, incarnation: int) -> None:
        if self._shell.control is not None:
            self._shell.control.send(ExitSeen(worker=PROXY, incarnation=incarnation))

    async def stop(self) -> None:
        """At the end of the fleet, when no attempt runs any more: its last figures are written when this returns. Else leave it alone."""
        self._is_ending = True
        if self._timer is not None:
            self._timer.cancel()
        control = self._shell.control
        if self._shell.finish is None or control is None or not self._is_alive:
            return
        control.send(KillWorker(worker=PROXY, incarnation=self._incarnation, signal=signal.SIGTERM))
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline and not control.is_lost:
            if (found := life.read(self._store)) is None or found.is_over():
                return
            await asyncio.sleep(0.005)

    def told(self) -> dict[str, Any]:
        """The proxy as status shows it."""
        found = life.read(self._store)
        is_up = found is not None and not found.is_over()
        return {
            "state": "ended" if self._is_ending else "up" if is_up else "starting" if self._is_alive else "down",
            "port": found.port if found is not None else None,
            "pid": found.pid if found is not None and is_up else None,
            "deaths": self._deaths,
            "agents": accounts.read(self._store),
        }
