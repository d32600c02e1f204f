"""Names of agents, groups and fleets: checked once, safe in a path ever after."""

from __future__ import annotations

import re
from typing import NewType

from muster.errors import InvalidNameError

AgentId = NewType("AgentId", str)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)

COORDINATOR = AgentId("coordinator")
OPERATOR = AgentId("operator")
#: Who asks the coordinator for its status while the operator is busy.
OBSERVER = AgentId("observer")
#: The process between the agents' clients and their APIs, in fleets that have one.
PROXY = AgentId("proxy")
#: Processes outside the fleet that hold locks are this with a number; they have no inbox that anybody reads.
HOLDER = "_lock-"
#: The identities of every fleet beside its agents.
COMPANIONS = (COORDINATOR, OPERATOR, OBSERVER)

#: What the names of team coordinators begin with: team-1, team-2, …
TEAM = "team"
_TEAM_NAME = re.compile(TEAM + r"-[1-9][0-9]{0,4}", re.ASCII)

#: Names that only muster's own processes may join as; people and workers get InvalidNameError for them.
RESERVED: frozenset[str] = frozenset({"coordinator", "spawner", "muster", "new", "tmp", "all", "workers"})


def _checked(text: object, what: str) -> str:
    # fullmatch, not match with "$": "$" also matches before a final newline, and "abc\n" must be refused.
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise InvalidNameError(
            f"{what} {text!r:.90} is not 1 to 64 of the characters a-z A-Z 0-9 _ -", name=str(text)[:80]
        )
    if text.startswith("-"):
        raise InvalidNameError(f"{what} {text!r} starts with '-', so it would be read as an option", name=text)
    return text


def is_coordinator(name: str) -> bool:
    """Whether `name` is the root coordinator's or can be a team coordinator's: what such a one has assigned is never evicted."""
    return name == COORDINATOR or _TEAM_NAME.fullmatch(name) is not None


def agent_id(text: object, *, allow_reserved: bool = False) -> AgentId:
    """`text` as an agent id.

    Raises:
        InvalidNameError: It is not `[a-zA-Z0-9_-]{1,64}` as a whole, starts with "-", or is reserved.
    """
    name = _checked(text, "agent id")
    if not allow_reserved and name in RESERVED:
        raise InvalidNameError(f"agent id {name!r} is reserved for muster itself", name=name)
    return AgentId(name)


def fleet_name(text: object) -> str:
    """`text` as a fleet name; the same alphabet as agent ids. Raises InvalidNameError."""
    return _checked(text, "fleet name")


def group_name(text: str) -> str:
    """The name behind "@" of a group such as "@workers". Raises InvalidNameError."""
    return _checked(text[1:], "group")


def limit_name(text: object) -> str:
    """`text` as the name of a limit; the same alphabet as agent ids. Raises InvalidNameError."""
    return _checked(text, "limit")
