"""Named sets of defaults: `flag > MUSTER_* environment > fleet.toml > profile > default`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """What a profile changes: the number of agents it admits, and defaults of keys of `[fleet]`."""

    agents_max: int
    defaults: dict[str, Any]
    #: What the fleet may hold in memory, and so what one attempt of it may.
    memory_bytes: int = 50_000_000_000
    #: `max_age` of kinds of agents that say nothing: leaks of months never get old.
    max_age: str | None = None


PROFILES: dict[str, Profile] = {
    "development": Profile(agents_max=10, defaults={"debug": True}, memory_bytes=2_000_000_000),
    "staging": Profile(agents_max=100, defaults={}, memory_bytes=10_000_000_000, max_age="4h"),
    "production": Profile(agents_max=500, defaults={}, max_age="4h"),
}
#: The roomiest one: a profile narrows on request, never by surprise.
DEFAULT = "production"
