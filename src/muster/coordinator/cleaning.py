"""What a fleet leaves behind while it runs, and takes away itself once an hour: nobody has to write a hook for it.

Only what nobody can need any more goes: outputs of attempts whose results are fenced (a newer attempt of the task is on its way), sockets
of agents that the fleet has no more, and temporary files of processes that died while they wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING

from muster.coordinator.services import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from muster.coordinator.shell import Shell
    from muster.coordinator.state import State

EVERY_S = 3600.0
#: A younger file may belong to somebody who is writing it just now.
AGE_S_MIN = 600.0


class Cleaner(Loop):
    """A service of the root coordinator."""

    def __init__(self, store: Path, spool: str | None, shell: Shell) -> None:
        super().__init__("clean-up")
        self._store, self._spool, self._shell = store, spool, shell

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            removed = clean(self._store, self._spool, self._shell.machine.state, time.time())
            if removed:
                self._shell.notes.write("store.cleaned", removed=removed)


def clean(store: Path, spool: str | None, state: State, now_unix_s: float) -> dict[str, int]:
    """Remove what nobody can need any more; how many files of each sort. Never raises."""
    found = {
        "outputs": () if spool is None else _fenced_outputs(spool, state),
        "sockets": _sockets_of_nobody(store, state),
        "temporary": _temporary(store),
    }
    removed = {sort: sum(_remove(path, now_unix_s) for path in paths) for sort, paths in found.items()}
    return {sort: count for sort, count in removed.items() if count}


def _names(directory: str | Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _fenced_outputs(spool: str, state: State) -> Iterator[str]:
    """`<number>.<attempt>.out` and `.err` of attempts that are over in favour of a newer one."""
    for name in _names(spool):
        parts = name.split(".")
        if len(parts) == 3 and parts[0].isdecimal() and parts[1].isdecimal():
            task = state.tasks.get(int(parts[0]))
            if task is not None and int(parts[1]) < task.attempt:
                yield os.path.join(spool, name)


def _sockets_of_nobody(store: Path, state: State) -> Iterator[str]:
    """An agent that is starting again uses its address again; one that has gone for good does not."""
    gone = state.supervision.past_agents
    for name in _names(store / "sockets"):
        if name in gone:
            yield str(store / "sockets" / name)


def _temporary(store: Path) -> Iterator[str]:
    for directory in (store, store / "keys", store / "coordinator"):
        for name in _names(directory):
            if name.startswith("tmp-") or name.endswith(".tmp"):
                yield str(directory / name)


def _remove(path: str, now_unix_s: float) -> bool:
    with contextlib.suppress(OSError):
        if now_unix_s - os.lstat(path).st_mtime >= AGE_S_MIN:
            os.unlink(path)
            return True
    return False
