"""Named sets of defaults: `flag > MUSTER_* environment > fleet.toml > profile > default`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """What a profile changes: the number of agents it admits, and defaults of keys of `[fleet]`."""

    agents_max: int
    defaults: dict[str, Any]
    #: `max_age` of kinds of agents that say nothing: leaks of months never get old.
    max_age: str | None = None


PROFILES: dict[str, Profile] = {
    "development": Profile(agents_max=10, defaults={"debug": True}),
    "staging": Profile(agents_max=100, defaults={}, max_age="4h"),
    "production": Profile(agents_max=500, defaults={}, max_age="4h"),
}
#: The roomiest one: a profile narrows on request, never by surprise.
DEFAULT = "production"
