"""Whether the machine has room for more work: free memory, load, descriptors. Below a floor nothing new is assigned; what runs goes on.

A machine that swaps or kills at random loses more than a wait costs. A door that was shut opens only when there is clearly room again, so
that it does not flutter at the floor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from muster.coordinator.services import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.coordinator.shell import Shell
    from muster.core.spec import AdmitSpec

#: Pause between two looks, and while there is no work to be assigned.
LOOK_S, IDLE_LOOK_S = 1.0, 5.0
#: How much better than its floor a figure must be before a shut door opens.
CLEARLY = 1.25


class Room(NamedTuple):
    """What the machine has left. None: it does not say."""

    memory_bytes: int | None
    load_per_core: float | None
    fds: int | None


class Door(Loop):
    """A service of every coordinator that assigns tasks to agents."""

    def __init__(self, shell: Shell, admit: AdmitSpec, look: Callable[[], Room] | None = None) -> None:
        super().__init__("admission")
        self._shell, self._admit, self._look = shell, admit, look or room

    async def _run(self) -> None:
        shell = self._shell
        while True:
            why = verdict(self._look(), self._admit, was_shut=bool(shell.held_back))
            if bool(why) != bool(shell.held_back):
                shell.notes.write("admission.closed" if why else "admission.open", why=why or shell.held_back)
                shell.wake.set()
            shell.held_back = why
            await asyncio.sleep(LOOK_S if shell.machine.state.queued else IDLE_LOOK_S)


def verdict(left: Room, admit: AdmitSpec, *, was_shut: bool) -> str:
    """Why nothing new may begin, in one sentence; "" if it may."""
    factor = CLEARLY if was_shut else 1.0
    memory, load, fds = left
    if admit.memory_bytes and memory is not None and memory < admit.memory_bytes * factor:
        return f"{memory / 1e6:,.0f} MB of memory are free, and below {admit.memory_bytes / 1e6:,.0f} MB nothing new begins"
    if admit.load and load is not None and load * factor > admit.load:
        return f"the load is {load:.1f} per core, and above {admit.load:g} nothing new begins"
    if admit.fds and fds is not None and fds < admit.fds * factor:
        return f"{fds:,} file descriptors are free, and below {admit.fds:,} nothing new begins"
    return ""


def room() -> Room:
    """What is left on this machine, or within this process's memory control group where that is less."""
    free = [value for value in (_available(), _free_in_group()) if value is not None]
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return Room(min(free, default=None), load, _free_files())


def _available() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_in_group() -> int | None:
    for bound, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, usage = (_read(bound) or "").strip(), (_read(used) or "").strip()
        if limit.isdecimal() and usage.isdecimal() and int(limit) < 1 << 60:
            return max(0, int(limit) - int(usage))
    return None


def _free_files() -> int | None:
    """Of the whole system; a process's own bound is its kind's `fds`."""
    words = (_read("/proc/sys/fs/file-nr") or "").split()
    return max(0, int(words[2]) - int(words[0])) if len(words) == 3 else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(16_384)
    except (OSError, UnicodeDecodeError):
        return None
