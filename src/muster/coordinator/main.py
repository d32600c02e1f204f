"""The coordinator process: take the identity, replay the log, coordinate until the end.

spec ─▶ bus ─▶ log (snapshot + replay) ─▶ the coordinator of the fleet (`root`) or of a team (`team`)
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from muster.bus.bus import Bus
from muster.bus.store import read_spec
from muster.coordinator.control import ControlSocket
from muster.coordinator.log import EventLog
from muster.coordinator.notes import Notes
from muster.coordinator.process import LOST_STATUS
from muster.coordinator.root import Root
from muster.coordinator.shell import Shell
from muster.coordinator.team import TeamCoordinator
from muster.coordinator.upstream import TeamNotes
from muster.core import limits
from muster.core.names import COORDINATOR
from muster.errors import CoordinatorRunningError, IdentityBusyError, MusterError
from muster.security.keys import Keyring, load_master
from muster.supervise.platform import allow_descriptors, since

_run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
with contextlib.suppress(ImportError):
    # Here and not later: the fork server imports this module once for every coordinator that may be started.
    import uvloop

    _run = uvloop.run

#: Wait for the identity of a coordinator that has just died: its locks go with it.
IDENTITY_WAIT_S = 5.0
#: Descriptors that a coordinator of a large fleet uses: lanes in both directions with up to four each, bells of agents, its own files.
_FDS_MAX = 9 * limits.OPEN_LANES_MAX + 256


def main(store: Path, control_fd: int, name: str = COORDINATOR) -> int:
    """Coordinate the fleet at `store` until it ends, as `name`; `control_fd` is the SEQPACKET socket to the spawner.

    Returns the fleet's exit status after `Finished` was sent; else 1 (the spawner is gone, or the store cannot be used), and a new
    coordinator may go on from the log. Never raises.
    """
    allow_descriptors(_FDS_MAX)
    try:
        return _run(_coordinate(store, control_fd, name))
    except MusterError as error:
        print(f"muster: coordinator: {error.message}", file=sys.stderr)
    except Exception:
        traceback.print_exc()  # a bug: the spawner starts the next coordinator, and the log of this one says why
    return LOST_STATUS


async def _coordinate(store: Path, control_fd: int, name: str = COORDINATOR) -> int:
    spec = read_spec(store)
    keyring = Keyring.from_master(load_master(store), name)
    try:
        bus = await Bus.open(store, name, keyring, wait_s=IDENTITY_WAIT_S)
    except IdentityBusyError as error:
        raise _second(spec.name, name, error) from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(bus.close)
        is_root = name == COORDINATOR
        log = EventLog(store / ("coordinator" if is_root else f"coordinator-{name}"))
        stack.callback(log.close)
        notes = Notes(store) if is_root else TeamNotes(bus)
        stack.callback(notes.close)
        machine, records = log.recover()
        shell = Shell(bus, machine, log, notes)
        shell.control = ControlSocket(control_fd, shell.wake.set)
        stack.callback(shell.control.close)
        return await (Root if is_root else TeamCoordinator)(store, spec, shell, records).run()


def _second(fleet: str, name: str, error: IdentityBusyError) -> CoordinatorRunningError:
    what = f"the fleet {fleet!r}" if name == COORDINATOR else f"{name} of the fleet {fleet!r}"
    pid = error.facts.get("pid")
    holder = since(pid if isinstance(pid, int) else None)
    return CoordinatorRunningError(
        f"{what} is coordinated by {holder}; a second coordinator was not started", fleet=fleet, agent=name, pid=pid
    )


__all__ = ["main"]
