"""Changes of a running fleet that take a while: ordered at once, then watched until they have happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from muster.bus.store import add_agent, read_spec
from muster.coordinator.supervising import unknown
from muster.core import limits
from muster.core.protocol import FleetStatus, Restart, Scale, StatusAsk
from muster.core.spec import teams, workers
from muster.errors import AskTimeoutError, BusError, FleetNotRunningError
from muster.fleet import asking

if TYPE_CHECKING:
    from muster.core.protocol import AgentStatus
    from muster.fleet.places import Fleet

#: Pause between two looks, and how long one answer may take.
LOOK_S, ANSWER_S = 0.25, 5.0
#: States of an agent that has not joined.
_UNREADY = ("starting", "dead", "quarantined", "stopped", "absent")


def restart(
    fleet: Fleet, names: list[str], *, grace_s: float | None, wait_s: float, show: Callable[[int, int], None]
) -> dict[str, Any]:
    """Have workers replaced and wait for it; `show` gets (replaced, of how many).

    Returns the `workers` that were meant, whether all of them are replaced (`is_done`), and those that did not live (`quarantined`).

    Raises:
        FleetNotRunningError, UnknownAgentError, UsageError, AskTimeoutError: As `asking.order` says; nothing was changed.
    """
    known = _known_names(fleet)
    for name in names:
        if name not in known:
            raise unknown(name, known)
    before = _incarnations(asking.ask(fleet, StatusAsk(), FleetStatus, wait_s), names, known)
    asking.order(fleet, Restart(names=names, grace_s=grace_s))
    quarantined: list[str] = []
    for status in _looks(fleet, wait_s):
        told = status.supervision
        pending = {*told.get("away", ()), *told.get("to_recycle", ())} & before.keys()
        quarantined = [name for name in told.get("quarantined", ()) if name in before and name not in pending]
        show(len(before) - len(pending), len(before))
        if pending:
            continue
        # Nobody waits and nobody is away: all have been replaced, or the order has not come to a team yet.
        now = _incarnations(asking.ask(fleet, StatusAsk(), FleetStatus, ANSWER_S), names, known)
        if quarantined or all(now.get(name, incarnation) > incarnation for name, incarnation in before.items()):
            return {"workers": list(before), "is_done": not quarantined, "quarantined": quarantined}
    return {"workers": list(before), "is_done": False, "quarantined": quarantined}


def _known_names(fleet: Fleet) -> dict[str, str]:
    """Kinds, agents, workers and teams of a fleet, as `spec.json` has them -> the kind."""
    spec = read_spec(fleet.store)
    known = {agent: kind.name for kind in spec.agents for agent in (kind.name, *kind.agent_ids())}
    known |= {worker: "" for worker in workers(spec) if worker not in known}
    return known | {name: team.kind.name for name, team in teams(spec).items()}


def _incarnations(told: FleetStatus, names: list[str], known: dict[str, str]) -> dict[str, int]:
    """Worker -> its incarnation now, of the workers that `names` mean."""
    return {
        row.worker: row.incarnation
        for row in told.agents
        if (names or row.state != "stopped")
        and (not names or not {row.agent, row.worker, row.team, known.get(row.agent, row.agent)}.isdisjoint(names))
    }


def scale(fleet: Fleet, counts: dict[str, int], *, wait_s: float) -> dict[str, Any]:
    """Have so many agents of these kinds, and wait until the new ones are ready and the others have ended.

    Returns the counts `before` and `after`, and whether all of it has happened (`is_done`).

    Raises:
        RosterFullError: The store has no room for so many identities; nothing was changed.
        FleetNotRunningError, UnknownAgentError, UsageError, AskTimeoutError: As `asking.order` says; nothing was changed.
    """
    _make_room(fleet, counts)
    facts = asking.order(fleet, Scale(counts=counts))
    for told in _looks(fleet, wait_s, with_agents=True):
        there = Counter(kind_name(agent, counts) for agent in told.agents if agent.state not in _UNREADY)
        if not told.supervision.get("retiring") and all(there[kind] >= count for kind, count in counts.items()):
            return {**facts, "is_done": True}
    return {**facts, "is_done": False}


def kind_name(agent: AgentStatus, kinds: Iterable[str]) -> str:
    """Which of `kinds` an agent belongs to, by its id; "" for none."""
    base, dash, number = agent.agent.rpartition("-")
    if agent.agent in kinds:
        return agent.agent
    return base if dash and number.isdecimal() and base in kinds else ""


def _make_room(fleet: Fleet, counts: dict[str, int]) -> None:
    """Put the identities on the roster before anything is changed: here it shows whether there is room for them."""
    for kind in read_spec(fleet.store).agents:
        count = counts.get(kind.name, 0)
        if count > kind.count and (kind.command or kind.handler) and count <= limits.AGENTS_PER_KIND_MAX:
            for agent in kind.resized(count).agent_ids()[kind.count :]:
                add_agent(fleet.store, agent)


def _looks(fleet: Fleet, wait_s: float, *, with_agents: bool = False) -> Iterator[FleetStatus]:
    """What the coordinator tells of its workers, until `wait_s` is over. A coordinator that is being started anew is waited for."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            told = asking.ask(fleet, StatusAsk(agents=with_agents), FleetStatus, min(ANSWER_S, wait_s))
        except AskTimeoutError:
            continue
        except BusError as error:  # somebody else is the operator for a moment
            if error.code != "bus.identity_busy":
                raise
        else:
            if told.state != "running":
                raise FleetNotRunningError(f"the fleet {fleet.name!r} is coming to its end", fleet=fleet.name)
            yield told
        time.sleep(LOOK_S)
