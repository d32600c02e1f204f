"""A storm from beginning to end: the crew works on a new store while it is killed, then all must drain, then the history is checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, load_master
from muster.testing.history import Report, check_history
from muster.testing.journal import Journal, create_history, number_of

from . import plants
from .board import DRAIN, STOP, Board
from .crew import AGENTS, FLOW, ROLES, World
from .nemesis import Nemesis

STOP_S = 15.0
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What a storm is to reach: it ends when both goals are met, or when its time is over."""

    directory: Path
    seed: str
    seconds: float
    kills: int = 0  # of each role
    messages: int = 0
    kills_per_s: float = 40.0
    drain_s: float = 30.0
    plant: str = ""


@dataclass
class Outcome:
    """What became of it."""

    plan: Plan
    storm_s: float = 0.0
    drain_s: float = 0.0
    check_s: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def ok(self) -> bool:
        return not self.failures and self.report.ok

    @property
    def kills_all(self) -> int:
        return sum(self.kills.values())

    @property
    def share_in_operation(self) -> float:
        """Share of the kills that hit a process with a send or a verdict in progress, as its journal shows."""
        return sum(self.report.deaths_in_operation.values()) / max(1, self.kills_all)


def run_storm(plan: Plan, *, tell: Callable[[str], None] = lambda _line: None) -> Outcome:
    """See the module's docstring. Call it in a process without threads; it forks."""
    store = create_store(plan.directory / "store")
    for agent in AGENTS:
        add_agent(store, agent)
    errors = plan.directory / "errors"
    errors.mkdir()
    world = World(store, create_history(plan.directory / "history", AGENTS), Board(), plan.seed)
    outcome = Outcome(plan)
    with plants.planted(plan.plant):
        nemesis = Nemesis(world, plan.kills_per_s, errors)
        try:
            _rage(plan, world, nemesis, outcome, tell)
            _drain(plan, world, nemesis, outcome)
        finally:
            nemesis.kill_all()
    outcome.kills = {role: nemesis.kills[role] for role in ROLES}
    outcome.failures += nemesis.failures
    _note_letters(world, nemesis.incarnations + 1)
    tell("checking the history")
    begun = time.monotonic()
    outcome.report = check_history(world.history)
    outcome.check_s = time.monotonic() - begun
    return outcome


def _rage(plan: Plan, world: World, nemesis: Nemesis, outcome: Outcome, tell: Callable[[str], None]) -> None:
    begun = time.monotonic()
    told = [begun, 0.0]
    slots = len(nemesis.members)

    def reached() -> bool:
        now, finished = time.monotonic(), world.board.finished(slots)
        if now - told[0] >= PROGRESS_S:
            rate = (finished - told[1]) / (now - told[0])
            tell(
                f"{now - begun:5.0f} s  {finished:10,} finished  {rate:8,.0f}/s  {sum(nemesis.kills.values()):7,} kills"
            )
            told[:] = [now, finished]
        least = min(nemesis.kills[role] for role in ROLES)
        is_goal = plan.kills or plan.messages
        return bool(nemesis.failures) or bool(is_goal and least >= plan.kills and finished >= plan.messages)

    nemesis.spawn_all()
    nemesis.begin()
    nemesis.run(reached, plan.seconds)
    nemesis.end()
    outcome.storm_s = time.monotonic() - begun


def _drain(plan: Plan, world: World, nemesis: Nemesis, outcome: Outcome) -> None:
    """Liveness with faults off: nobody makes new messages, and everything that was accepted is finalised."""
    begun = time.monotonic()
    world.board.phase = DRAIN
    keyring = Keyring.from_master(load_master(world.store), AGENTS[0])
    looker = Bus(LanesTransport(world.store, AGENTS[0], keyring, consume=False, send=False))

    def is_quiet() -> bool:
        return all(world.board.quiet(member.slot) == nemesis.living(member.slot) != 0 for member in nemesis.members)

    def is_drained() -> bool:
        return all(looker.depth(agent) == 0 for agent in FLOW)

    if not nemesis.run(lambda: is_quiet() and is_drained(), plan.drain_s):
        left = {agent: depth for agent in FLOW if (depth := looker.depth(agent))}
        outcome.failures.append(f"not drained within {plan.drain_s:g} s: {left}, everybody quiet: {is_quiet()}")
    looker.transport.close()
    outcome.drain_s = time.monotonic() - begun
    world.board.phase = STOP
    outcome.failures += nemesis.stop_all(STOP_S)


def _note_letters(world: World, incarnation: int) -> None:
    """The dead letters that stand in the store at the end, as the auditor's journal."""
    auditor = Journal(world.history, incarnation, "auditor")
    for agent in AGENTS:
        for facts in list_letters(f"{world.store}/agents/{agent}/inbox"):
            name = Path(str(facts["path"])).name
            body = Path(str(facts["path"])).read_bytes().partition(b"\n")[2]
            lane = auditor.lane(agent, str(facts["sender"]), control=".control." in name)
            auditor.letter(lane, int(str(facts["seq"])), number_of(body), UUID(str(facts["id"])).bytes)
    auditor.close()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
