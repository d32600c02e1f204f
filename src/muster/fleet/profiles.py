"""Named sets of defaults: `flag > MUSTER_* environment > fleet.toml > profile > default`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """What a profile changes: the number of agents it admits, and defaults of keys of `[fleet]`."""

    agents_max: int
    defaults: dict[str, Any]


PROFILES: dict[str, Profile] = {
    "development": Profile(agents_max=10, defaults={"debug": True}),
    "staging": Profile(agents_max=100, defaults={}),
    "production": Profile(agents_max=500, defaults={}),
}
#: The roomiest one: a profile narrows on request, never by surprise.
DEFAULT = "production"
