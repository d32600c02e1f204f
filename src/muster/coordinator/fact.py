"""What every fact of the log has. The facts themselves: `events`."""

from __future__ import annotations

import msgspec


class Fact(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened. `at_s`: seconds on the coordinator's clock, which never runs backwards within a log."""

    at_s: float
