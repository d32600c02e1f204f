"""Rounds: one process asks many, a process each, and waits for every answer; flat with 10 to 750 of them, and as a tree of teams.

Beside it the same round over socket pairs: msgpack with a length in front, blocking agents, an epoll loop in whoever asks. Nothing is
stored, signed or acked there, and whoever dies takes its messages along: it is the floor, not a peer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError, percentile
from benchmarks.processes import LARGE_LIFE_S, Crew, Gate, run_loop
from benchmarks.setting import fleet_store
from benchmarks.socket_star import Star, Tree
from muster import join
from muster.bus.bus import Bus

BODY = bytes(range(256))
TEAMS, TEAM_AGENTS = 7, 50
_WARM_UP = 3
_WAIT_S = 25.0


class Work(msgspec.Struct):
    """What a round sends to each agent, and gets back from it."""

    number: int
    input: bytes


class TeamAnswer(msgspec.Struct):
    """What the coordinator of a team sends up: how many of its agents answered, and what."""

    number: int
    answers: list[Work]


def rounds_of(agents: int) -> int:
    """How many rounds are timed: enough for a percentile with 50 agents, enough for a median with 750."""
    return effort(120 if agents <= 50 else 20 if agents <= 400 else 12, 3)


def _figures(taken_s: list[float], agents: int) -> Figures:
    """Percentiles of the round, and what one of its messages (there and back: two for each agent) costs."""
    p50_s = percentile(taken_s, 0.50)
    return {"p50_ms": p50_s * 1e3, "p99_ms": percentile(taken_s, 0.99) * 1e3, "each_us": p50_s / agents / 2 * 1e6}


def timed(count: int, one: Callable[[int], None]) -> list[float]:
    """Seconds of `count` rounds after the warm-up."""
    taken = []
    for number in range(_WARM_UP + count):
        began = time.perf_counter()
        one(number)
        if number >= _WARM_UP:
            taken.append(time.perf_counter() - began)
    return taken


async def _timed(count: int, one: Callable[[int], Any]) -> list[float]:
    taken = []
    for number in range(_WARM_UP + count):
        began = time.perf_counter()
        await one(number)
        if number >= _WARM_UP:
            taken.append(time.perf_counter() - began)
    return taken


# ---------------------------------------------------------------------------- muster


async def _ask_by_messages(bus: Bus, agents: list[str], work: Work, as_type: Any) -> list[Any]:
    """Send to all, then take an answer of each; the answers in the order in which they came."""
    for agent in agents:
        await bus.send(agent, work)
    heard: dict[str, Any] = {}
    while len(heard) < len(agents):
        delivery = await bus.receive(timeout_s=_WAIT_S)
        if delivery is None:
            raise MeasureError(f"{len(agents) - len(heard)} answers of round {work.number} did not come")
        answer = delivery.decode(as_type)
        if answer.number != work.number or delivery.sender in heard:
            raise MeasureError(f"{delivery.sender} answered round {answer.number} in round {work.number}")
        heard[delivery.sender] = answer
        delivery.ack()
    return list(heard.values())


async def _answer(store: Path, names: tuple[str, str], gate: Gate, count: int, *, by_ask: bool = False) -> None:
    agent, hub = names
    async with join(agent, store=store) as bus:
        gate.wait()
        for _ in range(_WARM_UP + count):
            delivery = await bus.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"{agent} was not asked")
            work = delivery.decode(Work)
            receipt = delivery.reply(work) if by_ask else await bus.send(hub, work)
            delivery.ack()
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _hub(store: Path, agents: list[str], gate: Gate, count: int, *, by_ask: bool) -> list[float]:
    async with join("hub", store=store) as hub:

        async def by_messages(number: int) -> None:
            work = Work(number, BODY)
            if any(answer != work for answer in await _ask_by_messages(hub, agents, work, Work)):
                raise MeasureError("an answer is not what was sent")

        async def by_asks(number: int) -> None:
            work = Work(number, BODY)
            answers = await asyncio.gather(*(hub.ask(agent, work, timeout_s=_WAIT_S) for agent in agents))
            if [(answer.sender, answer.decode(Work)) for answer in answers] != [(agent, work) for agent in agents]:
                raise MeasureError("an answer is not what was asked for")

        gate.wait()
        return await _timed(count, by_asks if by_ask else by_messages)


def _muster_star(agents: int, *, by_ask: bool = False) -> Figures:
    ids, count = [f"w-{number}" for number in range(agents)], rounds_of(agents)
    with fleet_store(["hub", *ids]) as store, Crew(LARGE_LIFE_S) as crew:
        gate = crew.gate
        hub = crew.add(run_loop, _hub, store, ids, gate, count, by_ask=by_ask)
        for agent in ids:
            crew.add(run_loop, _answer, store, (agent, "hub"), gate, count, by_ask=by_ask)
        crew.go()
        taken: list[float] = hub.result()
        for child in crew.children[1:]:
            child.result()
    return _figures(taken, agents)


async def _lead(store: Path, lead: str, team: list[str], gate: Gate, count: int) -> None:
    """Between the root and a team: each round of the root is a round of the team."""
    async with join(lead, store=store) as bus:
        gate.wait()
        for _ in range(_WARM_UP + count):
            delivery = await bus.receive(timeout_s=_WAIT_S)
            if delivery is None:
                raise MeasureError(f"{lead} was not asked")
            work = delivery.decode(Work)
            answers = await _ask_by_messages(bus, team, work, Work)
            receipt = await bus.send("root", TeamAnswer(work.number, answers))
            delivery.ack()
        await receipt.wait_acked(timeout_s=_WAIT_S)


async def _root(store: Path, leads: list[str], gate: Gate, team_agents: int, count: int) -> list[float]:
    async with join("root", store=store) as root:

        async def one(number: int) -> None:
            work = Work(number, BODY)
            answers = await _ask_by_messages(root, leads, work, TeamAnswer)
            check_teams(answers, work, team_agents)

        gate.wait()
        return await _timed(count, one)


def check_teams(answers: list[TeamAnswer], work: Work, team_agents: int) -> None:
    """Every agent of every team answered with what was sent. Raises MeasureError."""
    for answer in answers:
        if len(answer.answers) != team_agents or any(one != work for one in answer.answers):
            raise MeasureError(f"{len(answer.answers)} of {team_agents} agents of a team answered")


def _teams() -> dict[str, list[str]]:
    return {
        f"lead-{team}": [f"w-{team}-{number}" for number in range(effort(TEAM_AGENTS, 5))]
        for team in range(effort(TEAMS, 2))
    }


def _muster_tree() -> Figures:
    teams = _teams()
    agents = sum(map(len, teams.values()))
    count, size = rounds_of(agents), agents // len(teams)
    everybody = ["root", *teams, *(agent for team in teams.values() for agent in team)]
    with fleet_store(everybody) as store, Crew(LARGE_LIFE_S) as crew:
        gate = crew.gate
        root = crew.add(run_loop, _root, store, list(teams), gate, size, count)
        for lead, team in teams.items():
            crew.add(run_loop, _lead, store, lead, team, gate, count)
            for agent in team:
                crew.add(run_loop, _answer, store, (agent, lead), gate, count)
        crew.go()
        taken: list[float] = root.result()
        for child in crew.children[1:]:
            child.result()
    return _figures(taken, agents)


# ---------------------------------------------------------------------------- socket pairs


def _socket_star(agents: int) -> Figures:
    count = rounds_of(agents)
    with Star(agents, Work, _WARM_UP + count) as star:

        def one(number: int) -> None:
            work = Work(number, BODY)
            if star.ask_all(work) != [work] * agents:
                raise MeasureError("an answer is not what was sent")

        taken = star.run(lambda: timed(count, one))
    return _figures(taken, agents)


def _socket_tree() -> Figures:
    teams = _teams()
    agents = sum(map(len, teams.values()))
    count, size = rounds_of(agents), agents // len(teams)
    with Tree((len(teams), size), (Work, TeamAnswer), _WARM_UP + count) as tree:

        def one(number: int) -> None:
            work = Work(number, BODY)
            check_teams(tree.ask_all(work), work, size)

        taken = tree.run(lambda: timed(count, one))
    return _figures(taken, agents)


#: Fleets whose cost per message is compared.
COST_AGENTS = (10, 50, 200, 750)


def _star_case() -> Case:
    agents = 50
    return Case(
        "round50",
        f"one process sends to {agents} and waits for every answer",
        [
            Contender("muster", lambda: _muster_star(effort(agents, 10))),
            Contender("socketpair star", lambda: _socket_star(effort(agents, 10))),
            Contender("muster ask", lambda: _muster_star(effort(agents, 10), by_ask=True)),
        ],
        [
            Goal("p50_ms", "muster", "socketpair star", "<=", 3.0),
            Goal("p99_ms", "muster", "socketpair star"),
            Goal("p50_ms", "muster ask", "socketpair star", "<=", 3.0, label="ask"),
            Goal("p99_ms", "muster ask", "socketpair star", label="ask"),
        ],
        rounds=3,
    )


def _tree_case() -> Case:
    return Case(
        "round358",
        f"a hybrid fleet: a root asks {TEAMS} coordinators, each asks {TEAM_AGENTS} agents, all answers go up",
        [Contender("muster", _muster_tree), Contender("socketpair tree", _socket_tree)],
        [Goal("p50_ms", "muster", "socketpair tree", "<=", 4.0), Goal("p99_ms", "muster", "socketpair tree")],
        rounds=2,
    )


def _cost_case() -> Case:
    """The star with ever more agents: a round of the most, and what one message of it costs beside one with the fewest."""
    least, most = COST_AGENTS[0], COST_AGENTS[-1]
    floor = f"socketpair star, {most}"

    def contender(agents: int) -> Contender:
        return Contender(f"{agents} agents", lambda: _muster_star(effort(agents, min(agents, 20))))

    return Case(
        "round750",
        f"rounds over {least} to {most} agents, one process each, and what one message of them costs",
        [*(contender(agents) for agents in COST_AGENTS), Contender(floor, lambda: _socket_star(effort(most, 20)))],
        [
            Goal("p50_ms", f"{most} agents", floor),
            Goal("p99_ms", f"{most} agents", floor),
            *(
                Goal(
                    "each_us",
                    f"{agents} agents",
                    f"{least} agents",
                    "<=",
                    1.5 if agents == most else None,
                    label=f"of {agents}",
                )
                for agents in COST_AGENTS[1:]
            ),
        ],
        rounds=2,
    )


def cases() -> list[Case]:
    return [_star_case(), _tree_case(), _cost_case()]
