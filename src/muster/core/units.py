"""Units that people and vendors write after numbers."""

from __future__ import annotations

#: Seconds in each unit of a duration.
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
