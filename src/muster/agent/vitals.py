"""How a worker is, as it measures itself: memory, descriptors, the lag of its event loop; and the verdict it draws from that.

A worker measures itself, because a process that is not dumpable cannot be measured from outside.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

#: A beat that comes later than this means that something held the loop up. Generous: two cores may be shared by 50 workers.
LAG_DEGRADED_S = 1.0
LAG_UNHEALTHY_S = 10.0
#: Share of the descriptors that this process may open.
FDS_DEGRADED = 0.8
FDS_UNHEALTHY = 0.95
#: Messages to the coordinator that wait for room.
UNSENT_UNHEALTHY = 100

_ORDER = ("healthy", "degraded", "unhealthy")


@dataclass(frozen=True, slots=True)
class Vitals:
    """One measurement. `pss_bytes` is 0 where the system does not tell."""

    loop_lag_s: float
    fds: int
    fds_max: int
    unsent: int
    pss_bytes: int = 0

    def verdict(self) -> tuple[str, list[str]]:
        """`healthy`, `degraded` or `unhealthy`, and a sentence for everything that speaks against healthy."""
        worst = 0
        evidence: list[str] = []
        share = self.fds / self.fds_max if self.fds_max > 0 else 0.0
        for value, degraded, unhealthy, sentence in (
            (
                self.loop_lag_s,
                LAG_DEGRADED_S,
                LAG_UNHEALTHY_S,
                f"the event loop was held up for {self.loop_lag_s:.1f} s",
            ),
            (share, FDS_DEGRADED, FDS_UNHEALTHY, f"{self.fds} of {self.fds_max} file descriptors are open"),
            (self.unsent, 1, UNSENT_UNHEALTHY, f"{self.unsent} messages to the coordinator wait for room"),
        ):
            if value >= degraded:
                worst = max(worst, 2 if value >= unhealthy else 1)
                evidence.append(sentence)
        return _ORDER[worst], evidence


def pss_bytes() -> int:
    """This process's proportional memory, shared pages divided by their users; 0 where the system does not tell. Costs about 0.3 ms."""
    try:
        with open("/proc/self/smaps_rollup", "rb", buffering=0) as file:
            for line in file.read(4096).splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 0


def open_fds() -> int:
    """Descriptors this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the listing's own
    except OSError as error:
        # Not even one left to look: that is an answer, too.
        return fds_max() if error.errno == errno.EMFILE else 0


def fds_max() -> int:
    """How many descriptors this process may open; 0 for no bound."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft
