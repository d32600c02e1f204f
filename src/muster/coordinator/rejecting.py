"""What becomes of results that are not believed: a stale one is acked and its sender told, a forged one is kept as a dead letter."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from muster.coordinator.outputs import forget_files
from muster.core.protocol import ResultRefused
from muster.errors import ForgedResultError, MusterError

if TYPE_CHECKING:
    from muster.bus.bus import Bus
    from muster.coordinator.events import Rejected
    from muster.coordinator.intake import ResultsOfTurn


def reject(bus: Bus, rejected: Rejected, results: ResultsOfTurn) -> None:
    """Deal with the delivery of a result that the machine refused, and take it out of the turn's `results`."""
    number, attempt, agent = rejected.number, rejected.attempt, rejected.agent
    found = results.pop((number, attempt, agent), None)
    if found is None:
        return  # refused before a crash, and dealt with then
    result, delivery = found
    if rejected.code == ForgedResultError.code:
        # Files that it names stay: whose they are is as doubtful as the rest of it.
        delivery.dead_letter(f"{rejected.code}: {rejected.message}")
        return
    forget_files(result)
    with contextlib.suppress(MusterError):  # no room: it stays counted, and the sender can do nothing about it anyway
        bus.post_struct(
            agent, ResultRefused(number=number, attempt=attempt, code=rejected.code, message=rejected.message)
        )
    delivery.ack()
