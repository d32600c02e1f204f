"""What a bus asks of the fleet's coordinator."""

from __future__ import annotations

from muster.bus.limiting import Limiting
from muster.bus.locking import Locking
from muster.bus.submitting import Submitting


class Services(Limiting, Locking, Submitting):
    """`limit`, `lock` and `submit`."""
