"""Groups: "@all", "@workers", and of the fleet's spec "@KIND" and, in a hybrid fleet, "@team-1"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.core.names import COORDINATOR, HOLDER, OPERATOR, group_name
from muster.errors import BusError, UnknownAgentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from muster.bus.bus import Bus
    from muster.bus.delivery import Receipt
    from muster.core.spec import FleetSpec, Team


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
    spec, divided = _of_spec(store)
    if name == "all":
        chosen = [agent for agent in everybody if agent not in divided]
    elif spec is not None:
        chosen = [agent for kind in spec.agents if name in ("workers", kind.name) for agent in kind.agent_ids()]
        if not chosen and name in divided:
            chosen = divided[name].agents()
    else:
        chosen = [agent for agent in everybody if agent not in (COORDINATOR, OPERATOR)] if name == "workers" else []
    if not chosen:
        raise UnknownAgentError(f"there is no group {group!r} in this fleet", agent=group)
    return [agent for agent in chosen if agent != me]


def _of_spec(store: Path | None) -> tuple[FleetSpec | None, dict[str, Team]]:
    if store is None or not (store / "spec.json").exists():
        return None, {}
    from muster.bus.store import read_spec
    from muster.core.spec import teams

    spec = read_spec(store)
    return spec, teams(spec)
