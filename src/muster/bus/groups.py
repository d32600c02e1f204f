"""Groups: "@all", "@workers", and "@KIND" of the fleet's spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.core.names import COORDINATOR, OPERATOR, group_name
from muster.errors import UnknownAgentError

if TYPE_CHECKING:
    from pathlib import Path


def members(group: str, everybody: list[str], store: Path | None, me: str) -> list[str]:
    """The agents of `group` but `me`. Raises UnknownAgentError (no such group), InvalidNameError."""
    if not group.startswith("@"):
        raise UnknownAgentError(f"a group begins with '@', as in '@workers'; {group!r} does not", agent=group)
    name = group_name(group)
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
