"""Groups: "@all", "@workers", and "@KIND" of the fleet's spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.core.names import COORDINATOR, HOLDER, OPERATOR, group_name
from muster.errors import BusError, UnknownAgentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from muster.bus.bus import Bus
    from muster.bus.delivery import Receipt


async def publish(bus: Bus, group: str, body: object, envelope: Mapping[str, Any]) -> list[Receipt]:
    """See Bus.publish."""
    receipts, failed, first_error = [], [], None
    for agent in bus.members(group):
        try:
            receipts.append(await bus.send(agent, body, **envelope))
        except BusError as error:
            failed.append(agent)
            first_error = first_error or error
    if first_error is not None:
        first_error.facts["failed"] = ",".join(failed)
        raise first_error
    return receipts


def members(group: str, everybody: list[str], store: Path | None, me: str) -> list[str]:
    """The agents of `group` but `me`. Raises UnknownAgentError (no such group), InvalidNameError."""
    if not group.startswith("@"):
        raise UnknownAgentError(f"a group begins with '@', as in '@workers'; {group!r} does not", agent=group)
    name = group_name(group)
    everybody = [agent for agent in everybody if not agent.startswith(HOLDER)]
    chosen: list[str] = []
    if name == "all":
        chosen = everybody
    elif store is not None and (store / "spec.json").exists():
        from muster.bus.store import read_spec

        chosen = [
            agent for kind in read_spec(store).agents if name in ("workers", kind.name) for agent in kind.agent_ids()
        ]
    elif name == "workers":
        chosen = [agent for agent in everybody if agent not in (COORDINATOR, OPERATOR)]
    if not chosen:
        raise UnknownAgentError(f"there is no group {group!r} in this fleet", agent=group)
    return [agent for agent in chosen if agent != me]
