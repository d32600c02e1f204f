"""What the root tells about the teams below it: asked of them when somebody asks it, and from their last reports at the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import msgspec

from muster.agent.status import read_status
from muster.coordinator import state as st
from muster.coordinator import teams
from muster.coordinator.supervising import merged
from muster.core import spec as specs
from muster.core.protocol import TYPE_OF, AgentStatus, FleetStatus, StatusAsk, TeamReport, TeamStatus
from muster.errors import BusError, MusterError
from muster.health.check import Judgement, judge_team

if TYPE_CHECKING:
    from pathlib import Path

    from muster.agent.status import StatusPage
    from muster.bus.delivery import Delivery
    from muster.coordinator.shell import Shell
    from muster.coordinator.state import Worker
    from muster.core.spec import FleetSpec
    from muster.health.check import Verdict
    from muster.metrics.collector import Collector

#: How long a team may take to say how it is, within the time that the root's own asker has.
ANSWER_S = 1.5
#: Figures of the report that are sums over the teams: about workers the teams alone know.
_SUMS = ("restarts", "worker_deaths", "stale_refused", "pings_lost")


class Hybrid:
    """The teams as the root sees them."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell, collector: Collector) -> None:
        self._store, self._shell, self._collector = store, shell, collector
        self._teams = specs.teams(spec)
        self._reports: dict[str, TeamReport] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._teams)

    def take_report(self, delivery: Delivery) -> None:
        """A team says how it is, as it does now and then and at its end."""
        if delivery.sender in self._teams:
            report: TeamReport = delivery.decode(TeamReport)
            self._reports[delivery.sender] = report
            self._collector.add(delivery.sender, report.metrics)

    # ------------------------------------------------------------------ status

    def answer(self, delivery: Delivery, own: FleetStatus) -> None:
        """Reply with the status of the whole fleet, once the teams have said theirs. `own`: what the root itself knows."""
        task = asyncio.get_running_loop().create_task(self._answer(delivery, own), name="status of teams")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, delivery: Delivery, own: FleetStatus) -> None:
        with_agents = bool(delivery.decode(StatusAsk).agents)
        told = await asyncio.gather(*(self._ask(name, with_agents) for name in self._teams))
        with contextlib.suppress(MusterError):  # the asker has no room for a reply: it will ask again
            delivery.reply(self._merged(own, dict(zip(self._teams, told, strict=True))), type=TYPE_OF[FleetStatus])

    async def _ask(self, team: str, with_agents: bool) -> FleetStatus | None:
        worker = self._shell.machine.state.workers.get(team)
        if worker is None or worker.state not in (st.STARTING, st.ALIVE):
            return None
        with contextlib.suppress(BusError):
            ask = StatusAsk(agents=with_agents)
            reply = await self._shell.bus.ask(team, ask, type=TYPE_OF[StatusAsk], timeout_s=ANSWER_S)
            status: FleetStatus = reply.decode(FleetStatus)
            return status
        return None

    def _merged(self, own: FleetStatus, told: dict[str, FleetStatus | None]) -> FleetStatus:
        agents: list[AgentStatus] = []
        rows: list[TeamStatus] = []
        verdicts: list[str] = []
        counters = dict(own.counters)
        counters["team_restarts"] = counters.pop("restarts", 0)
        counters["team_deaths"] = counters.pop("worker_deaths", 0)
        heard = {agent.agent for status in told.values() if status is not None for agent in status.agents}
        for name, status in told.items():
            if status is None:  # those that went to another team are heard of there
                mine = [agent for agent in self._from_pages(name) if agent.agent not in heard]
            else:
                mine = [_of_team(agent, name) for agent in status.agents]
            agents += mine
            rows.append(self._row(name, status))
            verdicts += [agent.verdict for agent in mine] or ([rows[-1].verdict] if rows[-1].agents else [])
            for key, value in (status.counters if status is not None else {}).items():
                if key in _SUMS or key == "agents_answered":
                    counters[key] = counters.get(key, 0) + value
        return msgspec.structs.replace(
            own,
            verdict=judge_team(Judgement(cast("Verdict", verdict)) for verdict in verdicts).verdict,
            counters=counters,
            agents=agents if any(agents) else own.agents,
            supervision=merged(
                [own.supervision, *(status.supervision for status in told.values() if status is not None)]
            ),
            teams=rows,
        )

    def _row(self, name: str, status: FleetStatus | None) -> TeamStatus:
        state, team = self._shell.machine.state, self._teams[name]
        worker = state.workers[name]
        agent = state.agents[name]
        is_alive = worker.state in (st.STARTING, st.ALIVE)
        silent = ["its coordinator does not answer"] if status is None and is_alive else []
        return TeamStatus(
            team=name,
            kind=team.kind.name,
            pid=worker.pid or None if worker.state in st.LIVE else None,
            state=_state_of(worker, agent.state),
            verdict=status.verdict if status is not None else "unhealthy" if not is_alive else "unknown",
            incarnation=worker.incarnation,
            restarts=worker.restarts,
            agents=worker.size,
            ready=teams.ready_in(worker, agent),
            holding=len(agent.held),
            done=agent.done,
            failed=agent.failed,
            evidence=[*silent, *([f"its coordinator {worker.last_exit}"] if worker.last_exit and not is_alive else [])],
        )

    def _from_pages(self, team: str) -> list[AgentStatus]:
        """The agents of a team that does not answer, as their own pages tell."""
        found = []
        for worker, hosted in self._teams[team].workers.items():
            for agent in hosted:
                page = read_status(self._store, agent)
                if page is not None:
                    found.append(_by_page(team, worker, agent, page))
        return found

    # ------------------------------------------------------------------ the end

    def complete(self, report: dict[str, Any]) -> None:
        """Make a report of the root one of the whole fleet, by what the teams have said last."""
        state = self._shell.machine.state
        last = [self._reports[name] for name in self._teams if name in self._reports]
        report["team_restarts"], report["teams"] = report["restarts"], len(self._teams)
        report["agents"] = teams.agents_of(state)
        report["ready_agents"] = min(report["agents"], sum(told.agents_seen for told in last))
        for key in _SUMS:
            base = report[key] if key in ("stale_refused", "pings_lost") else 0
            report[key] = int(base + sum(told.status.counters.get(key, 0) for told in last))
        pss = [value for told in last for value in told.pss_bytes]
        report["pss_mb_per_agent"] = round(sum(pss) / len(pss) / 1e6, 3) if pss else None


def _of_team(agent: AgentStatus, team: str) -> AgentStatus:
    return msgspec.structs.replace(agent, team=team)


def _state_of(worker: Worker, agent_state: str) -> str:
    if worker.state == st.QUARANTINED:
        return "given up"
    if worker.state in (st.STARTING, st.ALIVE):
        return "starting" if agent_state == st.ABSENT else agent_state
    return "stopped" if worker.state == st.GONE else "dead"


def _by_page(team: str, worker: str, agent: str, page: StatusPage) -> AgentStatus:
    return AgentStatus(
        agent=agent,
        worker=worker,
        pid=page.pid,
        state=page.state,
        verdict="unknown",
        incarnation=page.incarnation,
        restarts=max(0, page.incarnation - 1),
        task=page.task or None,
        done=page.done,
        failed=page.failed,
        inbox_depth=page.inbox_depth,
        heartbeat_age_s=page.heartbeat_age_s(),
        pss_bytes=page.pss_bytes or None,
        evidence=["by its own page: its team's coordinator does not answer"],
        team=team,
    )
