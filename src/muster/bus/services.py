"""What a bus asks of the fleet's coordinator, and whom it tells what."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from muster.bus.limiting import Limiting
from muster.bus.locking import Locking
from muster.bus.submitting import Submitting
from muster.core import limits
from muster.errors import MusterError

#: The counter in which an agent tells of messages that the guard against loops refused.
LOOPS_STOPPED = "muster_loops_stopped_total"
#: A loop is told at once; what is refused within this time after it is told with the next one.
_TELL_EVERY_S = 60.0


class Services(Limiting, Locking, Submitting):
    """`limit`, `lock` and `submit`."""

    _hops_max: int | None = None
    _loops = 0
    _loop_told_s: float | None = None

    @property
    def hops_max(self: Any) -> int:
        """Answers that a chain of messages may have, as the fleet declares it; looked up once, by the first answer."""
        if self._hops_max is None:
            from muster.bus.store import hops_max

            self._hops_max = limits.HOPS_MAX if self.store is None else hops_max(self.store)
        found: int = self._hops_max
        return found

    def on_loop(self: Any, recipient: str, hops: int) -> None:  # noqa: ARG002 -- for whoever puts its own here
        """A message of a chain that is too long, or comes too fast, was refused: tell the coordinator, if there is one.

        Whoever owns the bus may put its own here.
        """
        from muster.core.names import COORDINATOR
        from muster.core.protocol import MetricsSnapshot

        self._loops += 1
        now_s = time.monotonic()
        if self._loop_told_s is None or now_s >= self._loop_told_s + _TELL_EVERY_S:
            with contextlib.suppress(MusterError):
                self.post_struct(COORDINATOR, MetricsSnapshot(incarnation=0, counters={LOOPS_STOPPED: self._loops}))
                self._loops, self._loop_told_s = 0, now_s
