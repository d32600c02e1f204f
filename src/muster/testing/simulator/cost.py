"""The cost model: what fleets of up to 10,000 agents cost, flat and as a tree of three levels, and where the design bends first.

Measured, on this machine, when it is asked: what the real machine, log and lanes take for one step (see `measure`). Simulated on virtual
time: coordinators that take what waits in turns, share the processors, and pass one task after another down and up. Given: how long a
message is on its way between two processes. Agents and their commands cost nothing here, so what is shown is what muster itself allows.

The model is a closed network of queues with a bounded number of processors; the station that is busy all the time is where it bends.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from muster.coordinator.adoption import plan_of, team_plan_of
from muster.core.spec import AgentSpec, FleetSpec, TeamsSpec, teams
from muster.testing.simulator.measure import Costs, Machinery, costs, machinery
from muster.testing.simulator.timeline import Timeline

#: Agents of the fleets that are shown, and of one team.
AGENTS: Final = (50, 500, 1000, 2500, 5000, 10_000)
TEAM: Final = 50
#: From the store of a message to its reader's turn: half of the round trip of docs/performance.md (171 µs), less what both sides work.
ON_ITS_WAY_S: Final = 40e-6
#: Messages that a coordinator takes in one turn, and what a turn costs beside them: looking at bells, timers and the control socket.
BATCH: Final = 256
TURN_US: Final = 15.0
#: From a coordinator's death to the first line of the next one: reaping, the pause before it, and a fork (docs/performance.md).
REBORN_S: Final = 0.06
#: Facts behind the last snapshot when the root dies, at worst.
TAIL_FACTS: Final = 25_000
#: A line of the results file, in µs.
LINE_US: Final = 6.0


class Station:
    """A coordinator: messages wait, a turn takes up to BATCH of them, the next turn begins when a processor is free."""

    def __init__(self, net: Net, message_us: float, turn_us: float) -> None:
        self._net, self._message_us, self._turn_us = net, message_us, turn_us
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_busy = False
        self.busy_s = 0.0
        self.longest = 0

    def take(self, then: Callable[[], object]) -> None:
        """A message has arrived; `then` happens when its turn is over."""
        self._waiting.append(then)
        self.longest = max(self.longest, len(self._waiting))
        if not self._is_busy:
            self._is_busy = True
            self._net.claim(self._turn)

    def _turn(self) -> None:
        taken = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        took_s = (self._turn_us + len(taken) * self._message_us) * 1e-6
        self.busy_s += took_s
        self._net.timeline.later(took_s, self._over, taken)

    def _over(self, taken: list[Callable[[], object]]) -> None:
        self._net.release()
        for then in taken:
            then()
        if self._waiting:
            self._net.claim(self._turn)
        else:
            self._is_busy = False


class Net:
    """Stations that share so many processors."""

    def __init__(self, processors: int) -> None:
        self.timeline = Timeline()
        self._free = processors
        self._queue: deque[Callable[[], object]] = deque()

    def claim(self, call: Callable[[], object]) -> None:
        """Call when a processor is free."""
        if self._free:
            self._free -= 1
            call()
        else:
            self._queue.append(call)

    def release(self) -> None:
        """A processor is free."""
        if self._queue:
            self._queue.popleft()()
        else:
            self._free += 1


class Shape(msgspec.Struct):
    """A fleet of the table: what was measured of its coordinators."""

    agents: int
    teams: int
    root: Machinery
    team: Machinery | None


class Row(msgspec.Struct):
    """What the model says of a shape."""

    agents: int
    teams: int
    processors: int
    #: Every agent does one task: seconds until the last one is recorded.
    round_s: float
    tasks_per_s: float
    #: Shares of the round for which the root and the busiest team were at work.
    root_busy: float
    team_busy: float
    #: From the root's death to its first new assignment.
    recovery_s: float
    #: Log of root and teams, bytes for a task; memory of coordinators, bytes for an agent.
    log_bytes: float
    agent_bytes: float
    bends: str


def shape(agents: int, per_team: int | None) -> Shape:
    """Measure the coordinators of a fleet."""
    kind = AgentSpec(name="agent", count=agents, command=("true",))
    division = TeamsSpec(agents_per_team=per_team) if per_team else None
    spec = FleetSpec(name="model", store_id="0" * 32, agents=(kind,), teams=division)
    divided = teams(spec)
    root = machinery(plan_of(spec), per_team or 1)
    if not divided:
        return Shape(agents, 0, root, None)
    return Shape(agents, len(divided), root, machinery(team_plan_of(spec, divided["team-1"])))


def model(fleet: Shape, cost: Costs, processors: int) -> Row:
    """One round on virtual time, and a recovery in arithmetic."""
    net = Net(processors)
    turn_us = TURN_US + cost.append_us
    log_us = fleet.root.task_bytes / 1024 * cost.append_kb_us
    # A task is one message in and one out at the root, two of each at a team, one of each at an agent.
    root = Station(net, fleet.root.task_us + log_us + LINE_US + cost.receive_us + cost.send_us, turn_us)
    agent_s = (cost.receive_us + cost.send_us) * 1e-6
    left = fleet.agents
    ended_s = 0.0

    def recorded() -> None:
        nonlocal left, ended_s
        left -= 1
        ended_s = net.timeline.now_s

    later = net.timeline.later

    def at_agent(back: Callable[[], object]) -> None:
        def over() -> None:
            net.release()
            back()

        net.claim(lambda: later(agent_s, over))

    stations: list[Station] = []
    if fleet.team is None:
        for _ in range(fleet.agents):
            later(0.0, lambda: at_agent(lambda: later(ON_ITS_WAY_S, root.take, recorded)))
    else:
        team_log_us = fleet.team.task_bytes / 1024 * cost.append_kb_us
        half_us = (fleet.team.task_us + team_log_us) / 2 + cost.receive_us + cost.send_us
        stations = [Station(net, half_us, turn_us) for _ in range(fleet.teams)]
        for number in range(fleet.agents):
            _one_task(net, stations[number % fleet.teams], root, at_agent, recorded)
    while net.timeline.step():
        pass
    assert left == 0, "every task is recorded"
    return _row(fleet, cost, processors, (ended_s, root, stations))


def _one_task(
    net: Net,
    team: Station,
    root: Station,
    at_agent: Callable[[Callable[[], object]], None],
    recorded: Callable[[], object],
) -> None:
    later = net.timeline.later

    def up() -> None:
        later(ON_ITS_WAY_S, team.take, lambda: later(ON_ITS_WAY_S, root.take, recorded))

    later(0.0, team.take, lambda: later(ON_ITS_WAY_S, at_agent, up))


def _row(fleet: Shape, cost: Costs, processors: int, ran: tuple[float, Station, list[Station]]) -> Row:
    ended_s, root, stations = ran
    team_busy = max((station.busy_s for station in stations), default=0.0) / ended_s
    all_teams_s = sum(station.busy_s for station in stations)
    agents_s = fleet.agents * (cost.receive_us + cost.send_us) * 1e-6
    shares = {
        "the root's processor": root.busy_s / ended_s,
        "a team's processor": team_busy,
        "the machine's processors": (root.busy_s + all_teams_s + agents_s) / ended_s / processors,
    }
    bends = max(shares, key=shares.__getitem__)
    call_us = cost.send_us + cost.receive_us + fleet.root.answer_us
    recovery_s = (
        REBORN_S
        + fleet.root.load_ms * 1e-3
        + TAIL_FACTS * fleet.root.replay_us * 1e-6
        + fleet.root.below * call_us * 1e-6
        + fleet.root.below * (cost.receive_us + cost.send_us) * 1e-6 / processors
    )
    team = fleet.team
    return Row(
        agents=fleet.agents, teams=fleet.teams, processors=processors, round_s=ended_s, tasks_per_s=fleet.agents / ended_s,
        root_busy=root.busy_s / ended_s, team_busy=team_busy, recovery_s=recovery_s,
        log_bytes=fleet.root.task_bytes + (team.task_bytes if team is not None else 0.0),
        agent_bytes=(fleet.root.below_bytes * fleet.root.below / fleet.agents) + (team.below_bytes if team is not None else 0.0),
        bends=bends,
    )  # fmt: skip


def rows(agents: tuple[int, ...] = AGENTS) -> tuple[Costs, list[Row]]:
    """Measure and model: each fleet flat and, where there are several teams, as a tree, on this machine's processors and on 32."""
    cost = costs()
    found: list[Row] = []
    for count in agents:
        for per_team in (None, TEAM) if count > TEAM else (None,):
            fleet = shape(count, per_team)
            found += [model(fleet, cost, processors) for processors in sorted({os.cpu_count() or 1, 32})]
    return cost, found


def table(cost: Costs, found: list[Row]) -> str:
    """The figures as Markdown."""
    lines = [
        "| agents | teams | processors | a round | tasks/s | root busy | team busy | recovery | log per task | per agent | bends at |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row.agents:,} | {row.teams or 'flat'} | {row.processors} | {row.round_s:.3f} s | {row.tasks_per_s:,.0f} "
        f"| {row.root_busy:.0%} | {f'{row.team_busy:.0%}' if row.teams else '—'} | {row.recovery_s:.2f} s "
        f"| {row.log_bytes:.0f} B | {row.agent_bytes / 1024:.1f} KiB | {row.bends} |"
        for row in found
    ]
    measured = (
        f"Measured: send {cost.send_us:.1f} µs, receive and ack {cost.receive_us:.1f} µs, append {cost.append_us:.1f} µs "
        f"and {cost.append_kb_us:.1f} µs per KiB."
    )
    return "\n".join([measured, "", *lines])


def tell(*, as_json: bool) -> None:
    """Print the table, or the rows as JSON."""
    cost, found = rows()
    if as_json:
        print(json.dumps({"measured": msgspec.to_builtins(cost), "rows": msgspec.to_builtins(found)}))
    else:
        print(table(cost, found))
