"""Changes of a running fleet that take a while: ordered at once, then watched until they have happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from muster.core.protocol import FleetStatus, Restart, StatusAsk
from muster.errors import AskTimeoutError, BusError, FleetNotRunningError
from muster.fleet import asking

if TYPE_CHECKING:
    from muster.fleet.places import Fleet

#: Pause between two looks, and how long one answer may take.
LOOK_S, ANSWER_S = 0.25, 5.0


def restart(
    fleet: Fleet, names: list[str], *, grace_s: float | None, wait_s: float, show: Callable[[int, int], None]
) -> dict[str, Any]:
    """Have workers replaced and wait for it; `show` gets (replaced, of how many).

    Returns what was ordered (`workers`, `total`), whether all of it has happened (`is_done`), and who did not live (`quarantined`).

    Raises:
        FleetNotRunningError, UnknownAgentError, UsageError, AskTimeoutError: As `asking.order` says; nothing was changed.
    """
    facts = asking.order(fleet, Restart(names=names, grace_s=grace_s))
    workers = list(facts["workers"])
    quarantined: list[str] = []
    for told in _looks(fleet, wait_s):
        pending = {*told.get("away", ()), *told.get("to_recycle", ())} & set(workers)
        quarantined = [name for name in told.get("quarantined", ()) if name in workers and name not in pending]
        show(len(workers) - len(pending), len(workers))
        if not pending:
            return {**facts, "is_done": not quarantined, "quarantined": quarantined}
    return {**facts, "is_done": False, "quarantined": quarantined}


def _looks(fleet: Fleet, wait_s: float) -> Iterator[dict[str, Any]]:
    """What the coordinator tells of its workers, until `wait_s` is over. A coordinator that is being started anew is waited for."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            told = asking.ask(fleet, StatusAsk(agents=False), FleetStatus, min(ANSWER_S, wait_s))
        except AskTimeoutError:
            continue
        except BusError as error:  # somebody else is the operator for a moment
            if error.code != "bus.identity_busy":
                raise
        else:
            if told.state != "running":
                raise FleetNotRunningError(f"the fleet {fleet.name!r} is coming to its end", fleet=fleet.name)
            yield told.supervision
        time.sleep(LOOK_S)
