"""What a bus asks of the fleet's coordinator, and whom it tells what."""

from __future__ import annotations

from muster.bus.limiting import Limiting
from muster.bus.locking import Locking
from muster.bus.submitting import Submitting


class Services(Limiting, Locking, Submitting):
    """`limit`, `lock` and `submit`."""

    def on_loop(self, recipient: str, hops: int) -> None:
        """A message of a chain that is too long, or comes too fast, was refused. Whoever owns the bus may put its own here."""
