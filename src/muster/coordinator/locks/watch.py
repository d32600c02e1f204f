"""Proofs of death for locks: processes of their own that hold or want one are watched by pidfd. What the fleet forked the spawner tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from muster.coordinator.events import HoldersGone, WatchHolder
from muster.coordinator.locks.facts import is_watched
from muster.supervise.tree import is_gone

if TYPE_CHECKING:
    from muster.coordinator.shell import Shell

#: Pause between looks at processes that no descriptor stands for: there was none left, or the system has no pidfds.
LOOK_AGAIN_S = 0.5
#: Processes that may be watched and hold nothing any more, before they are sorted out.
_IDLE_MAX = 64


class HolderWatch:
    """A service of the coordinator; a new one begins with all that the log says is held."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handles: dict[tuple[int, int], int] = {}
        self._looked_at: set[tuple[int, int]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._namespace = namespace()
        shell.watch_holder = self.watch

    def start(self) -> None:
        """Watch everybody who holds or wants something."""
        self._loop = asyncio.get_running_loop()
        state = self._shell.machine.state
        for lock in state.locks.locks.values():
            if is_watched(state, lock):
                self.watch(WatchHolder(lock.pid, lock.start_time, lock.namespace))

    async def stop(self) -> None:
        """Watch nobody."""
        for process in list(self._handles):
            self._let_go(process)
        self._looked_at.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None

    def watch(self, holder: WatchHolder) -> None:
        """Tell when this process has ended. Of one that counts its processes apart (a container) nothing can be proven."""
        process = holder.pid, holder.start_time
        if self._loop is None or holder.namespace != self._namespace or process in self._handles:
            return
        if len(self._handles) >= _IDLE_MAX:
            self._sort_out()
        handle = -1
        with contextlib.suppress(OSError, AttributeError):
            handle = os.pidfd_open(holder.pid)
        if is_gone(*process):
            if handle >= 0:
                os.close(handle)
            self._tell(process)
        elif handle >= 0:
            self._handles[process] = handle
            self._loop.add_reader(handle, self._ended, process)
        else:
            self._looked_at.add(process)
            self._look_again()

    def _ended(self, process: tuple[int, int]) -> None:
        self._let_go(process)
        self._tell(process)

    def _let_go(self, process: tuple[int, int]) -> None:
        assert self._loop is not None
        handle = self._handles.pop(process)
        self._loop.remove_reader(handle)
        os.close(handle)

    def _tell(self, process: tuple[int, int]) -> None:
        self._shell.intake.facts.append(HoldersGone(self._shell.clock.now_s(), [process]))
        self._shell.wake.set()

    def _sort_out(self) -> None:
        wanted = {(lock.pid, lock.start_time) for lock in self._shell.machine.state.locks.locks.values()}
        for process in [process for process in self._handles if process not in wanted]:
            self._let_go(process)

    def _look_again(self) -> None:
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(LOOK_AGAIN_S, self._look)

    def _look(self) -> None:
        self._timer = None
        wanted = {(lock.pid, lock.start_time) for lock in self._shell.machine.state.locks.locks.values()}
        self._looked_at &= wanted
        for process in sorted(self._looked_at):
            if is_gone(*process):
                self._looked_at.discard(process)
                self._tell(process)
        if self._looked_at:
            self._look_again()


def namespace() -> int:
    """What the numbers of this process's processes belong to: its PID namespace, 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
