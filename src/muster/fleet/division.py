"""`[teams]` of fleet.toml and the same by flags: how a hybrid fleet is divided, checked."""

from __future__ import annotations

from muster.core import limits
from muster.core.names import COORDINATOR, TEAM, is_coordinator
from muster.core.spec import FleetSpec, TeamsSpec, roster, teams
from muster.errors import ConfigError

#: Agents of one team that its coordinator can serve.
AGENTS_PER_TEAM_MAX = 1000


def teams_spec(count: int | None, agents_per_team: int | None, place: str) -> TeamsSpec:
    """What somebody asked for: so many teams, so many agents in each, both or neither.

    Raises:
        ConfigError: A figure is out of range.
    """
    for key, value in (("count", count), ("agents_per_team", agents_per_team)):
        if value is not None and not 1 <= value <= AGENTS_PER_TEAM_MAX:
            raise ConfigError(f"{place} {key} must be between 1 and {AGENTS_PER_TEAM_MAX:,}", key=f"teams.{key}")
    if agents_per_team is None:
        agents_per_team = limits.AGENTS_PER_TEAM if count is None else AGENTS_PER_TEAM_MAX
    return TeamsSpec(agents_per_team=agents_per_team, count=count)


def check_teams(spec: FleetSpec, place: str) -> None:
    """Refuse a division that cannot be made, and names that belong to team coordinators.

    Raises:
        ConfigError: There is no room for all agents, or an agent is called like a team.
    """
    if spec.teams is None:
        return
    try:
        teams(spec)
    except ValueError as error:
        raise ConfigError(f"{place} {error}", key="teams") from None
    taken = next((agent for agent in roster(spec) if agent != COORDINATOR and is_coordinator(agent)), None)
    if taken is not None or any(kind.name == TEAM for kind in spec.agents):
        raise ConfigError(
            f"{place} the coordinators of teams are called {TEAM}-1, {TEAM}-2, …; call {taken or TEAM!r} something else",
            key="teams",
        )
