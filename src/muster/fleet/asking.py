"""Asks of a person to a fleet's coordinator: as the operator, or as the observer while a run or another verb is the operator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from muster.bus.bus import Bus
from muster.bus.store import add_agent, has_agent
from muster.core.names import COORDINATOR, OBSERVER, OPERATOR
from muster.core.protocol import TYPE_OF, Done
from muster.errors import FleetNotRunningError, IdentityBusyError, error_of
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    import msgspec

    from muster.fleet.places import Fleet

T = TypeVar("T")

#: How long the coordinator may take to carry out an order: it may be starting again, and replaying its log.
ORDER_S = 15.0


def order(fleet: Fleet, body: msgspec.Struct, *, timeout_s: float = ORDER_S) -> dict[str, Any]:
    """Have the coordinator of a running fleet change something; what its answer says of it (`Done.facts`).

    Raises:
        FleetNotRunningError: Nobody is there to carry it out; nothing was sent.
        AskTimeoutError: No answer in time; the order is stored and may still be carried out. Giving it again is harmless.
        MusterError: The coordinator refused it, of the class that its code names; nothing was changed.
    """
    if fleet.spawner_pid is None:
        raise FleetNotRunningError(f"the fleet {fleet.name!r} is not running", fleet=fleet.name)
    return ask(fleet, body, Done, timeout_s).facts


def ask(fleet: Fleet, body: msgspec.Struct, reply: type[T], timeout_s: float) -> T:
    """Ask the coordinator, and return its reply as a struct of `reply`'s type.

    Raises:
        MusterError: The coordinator refused it, of the class that its code names. Else what `Bus.open` and `Bus.ask` raise.
    """
    try:
        return asyncio.run(_ask_as(fleet, OPERATOR, body, reply, timeout_s))
    except IdentityBusyError:
        if not has_agent(fleet.store, OBSERVER):
            add_agent(fleet.store, OBSERVER)
        return asyncio.run(_ask_as(fleet, OBSERVER, body, reply, timeout_s))


async def _ask_as(fleet: Fleet, name: str, body: msgspec.Struct, reply: type[T], timeout_s: float) -> T:
    keyring = Keyring.from_master(load_master(fleet.store), name)
    async with await Bus.open(fleet.store, name, keyring, wait_s=2.0 if name == OBSERVER else 0.0) as bus:
        message = await bus.ask(COORDINATOR, body, type=TYPE_OF[type(body)], timeout_s=timeout_s)
        if message.type == TYPE_OF[Done]:
            done = message.decode(Done)
            if not done.ok:
                raise error_of({**done.facts, "code": done.code, "message": done.message})
        return message.decode(reply)
