"""`muster lock`: a command under a fleet's lock, as the agent whose command this is, else as a holder of its own.

An agent's command locks through its worker's socket. Everybody else takes one of the identities `_lock-1`, `_lock-2`, …, the first that no
living process has; the coordinator knows such a holder by its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from muster.agent.client import OwnerClient
from muster.agent.held import around
from muster.bus.bus import Bus
from muster.bus.lease import ENVIRONMENT, Lease
from muster.bus.store import add_agent, has_agent
from muster.core import limits
from muster.core.names import COORDINATOR, HOLDER
from muster.core.protocol import Done, LockListAsk
from muster.errors import FleetNotRunningError, IdentityBusyError, LockTableFullError, MusterError, error_of
from muster.fleet import asking, guarded, places
from muster.fleet.speak import speaker
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from pathlib import Path

#: The fencing token of the lock, for the command.
TOKEN = "MUSTER_LOCK_TOKEN"  # noqa: S105 -- no secret
#: How long the coordinator may take to list locks.
LIST_S = 5.0

OnWait = Callable[[dict[str, Any]], None]
OnHeld = Callable[[int], None]


class Order:
    """What is to be locked, how, and what is to run under it. `on_wait` is told who holds it; `on_held` that it was had, and the token."""

    def __init__(
        self, names: Sequence[str], command: Sequence[str], timeout_s: float | None, ttl_s: float, on_wait: OnWait
    ) -> None:
        self.names, self.command = list(names), list(command)
        self.timeout_s, self.ttl_s = timeout_s, ttl_s
        self.on_wait = on_wait
        self.on_held: OnHeld = lambda _token: None


def run_locked(order: Order, fleet: str | None, store: str | None) -> int:
    """Run a command under a lock; its exit status.

    Raises:
        LockError: The lock was not had, and nothing was run; or it was lost (`LockLostError`), and the command was killed.
        CommandNotFoundError, FleetNotRunningError, UsageError: Nothing was locked.
    """
    guarded.check_command(order.command)
    who = speaker(None, fleet, store)
    if who.socket is not None:
        return _through_owner(order, who.socket)
    found = _running(fleet, store)
    return asyncio.run(_as_holder(order, found.store))


def listed(fleet: str | None, store: str | None) -> dict[str, Any]:
    """What is held and waited for: {"locks": […], "total": n}. Raises MusterError."""
    who = speaker(None, fleet, store)
    if who.socket is None:
        done = asking.ask(_running(fleet, store), LockListAsk(), Done, LIST_S)
        return done.facts
    with OwnerClient(who.socket) as owner:
        facts: dict[str, Any] = owner.ask(COORDINATOR, {}, type="lock.list", timeout_s=LIST_S)["body"]["facts"]
        return facts


def _running(fleet: str | None, store: str | None) -> places.Fleet:
    found = places.chosen(fleet, store)
    if found.spawner_pid is None:
        raise FleetNotRunningError(f"the fleet {found.name!r} is not running, so nobody grants locks", fleet=found.name)
    return found


def _through_owner(order: Order, socket: str) -> int:
    with OwnerClient(socket) as owner:
        owner.on_event = lambda event: order.on_wait(event) if event["event"] == "lock.waiting" else None
        held = owner.lock(*order.names, timeout_s=order.timeout_s, ttl_s=order.ttl_s)
        order.on_held(held.token)

        async def run() -> int:
            loop = asyncio.get_running_loop()
            lost: asyncio.Future[MusterError] = loop.create_future()

            def news() -> None:
                fields = owner.lost(held.lock_id)
                if fields is not None:
                    loop.remove_reader(owner.fileno())
                    lost.set_result(error_of(fields))

            loop.add_reader(owner.fileno(), news)
            try:
                return await guarded.run(order.command, _environment(held.lock_id, held.token), lost)
            finally:
                loop.remove_reader(owner.fileno())

        status = asyncio.run(run())
        held.release()
        return status


async def _as_holder(order: Order, store: Path) -> int:
    async with await _holder(store) as bus:
        lease = await Lease.acquire(
            bus, order.names, timeout_s=order.timeout_s, ttl_s=order.ttl_s, within=around(), on_wait=order.on_wait
        )
        try:
            order.on_held(lease.token)
            lost: asyncio.Future[MusterError] = asyncio.get_running_loop().create_future()
            lease.on_lost.append(lost.set_result)
            return await guarded.run(order.command, _environment(lease.lock_id, lease.token), lost)
        finally:
            await lease.release()


async def _holder(store: Path) -> Bus:
    """The bus of a holder that nobody else is. Raises LockTableFullError if all are taken; what `Bus.open` raises."""
    master = load_master(store)
    for number in range(1, limits.LOCKS_MAX + 1):
        name = f"{HOLDER}{number}"
        if not has_agent(store, name):
            add_agent(store, name)
        try:
            return await Bus.open(store, name, Keyring.from_master(master, name))
        except IdentityBusyError:
            continue
    raise LockTableFullError(f"{limits.LOCKS_MAX:,} processes hold locks or wait for some; nothing was locked")


def _environment(lock_id: str, token: int) -> dict[str, str]:
    return {TOKEN: str(token), ENVIRONMENT: " ".join([*around(), lock_id])}
