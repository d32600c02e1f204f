"""What the coordinator answers when asked how the fleet is: derived from its state, the status pages and the lanes at that moment."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from muster.coordinator import state as st
from muster.coordinator.lifecycle import evidence_of
from muster.coordinator.pausing import paused
from muster.coordinator.supervising import supervision_of
from muster.coordinator.tasks import BLOCKED, DELAYED
from muster.core.protocol import AgentStatus, FleetStatus
from muster.health.monitor import Expected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from muster.agent.status import StatusPage
    from muster.bus.bus import Bus
    from muster.coordinator.state import Agent, State, Worker
    from muster.core.spec import FleetSpec
    from muster.health.monitor import HealthMonitor

#: Agents up to which their inboxes' depths are read from the lanes for each answer.
EXACT_DEPTHS_MAX = 64


def expected(state: State) -> Iterator[Expected]:
    """Everybody of the plan, as far as it is known by proof."""
    for agent in state.agents.values():
        worker = state.workers[agent.worker]
        if worker.is_team:
            continue  # it has no page; its agents are watched by the team itself
        yield Expected(
            agent.name,
            worker.incarnation,
            is_alive=worker.state in (st.STARTING, st.ALIVE),
            has_joined=agent.state != st.ABSENT,
            is_given_up=worker.state == st.QUARANTINED,
        )


def state_of(agent: Agent, worker: Worker, page: StatusPage | None, *, is_suspect: bool) -> str:
    """The agent's place in the lifecycle."""
    if worker.state == st.QUARANTINED:
        return "quarantined"
    if worker.state == st.GONE or agent.state == st.DRAINED:
        return "stopped"
    if worker.state in (st.ABSENT, st.PAUSED, st.DYING):
        return "dead"
    if agent.state == st.ABSENT:
        return "starting"
    if is_suspect:
        return "suspect"
    if agent.state == st.DRAINING:
        return "draining"
    if page is not None and page.state in ("waiting", "limited"):
        return page.state
    return "busy" if agent.held else "ready"


def task_counts(state: State) -> dict[str, int]:
    """Tasks by state. They add up to all that were ever submitted."""
    counters = state.counters
    waiting: Counter[str] = Counter()
    if (
        len(state.tasks) != state.queued + state.held
    ):  # else nobody waits for anything else, and there is no need to look
        waiting.update(task.state for task in state.tasks.values())
    return {
        "submitted": counters.submitted,
        "queued": state.queued,
        "delayed": waiting[DELAYED],
        "blocked": waiting[BLOCKED],
        "running": state.held,
        "done": counters.done,
        "failed": counters.failed,
        "dead": counters.dead,
        "cancelled": counters.cancelled,
    }


class StatusTeller:
    """Answers `fleet.status`."""

    def __init__(self, spec: FleetSpec, state: State, bus: Bus, health: HealthMonitor) -> None:
        self._spec, self._state, self._bus, self._health = spec, state, bus, health

    def tell(self, now_s: float, rtt_ms: dict[str, float], *, with_agents: bool) -> FleetStatus:
        """The fleet as it is now."""
        state = self._state
        self._health.sweep()
        counters = state.counters
        return FleetStatus(
            fleet=self._spec.name,
            store_id=self._spec.store_id,
            state=state.phase,
            verdict=self._health.team().verdict,
            coordinator_pid=os.getpid(),
            coordinator_restarts=counters.coordinator_restarts,
            uptime_s=max(0.0, now_s - state.started_s),
            tasks=task_counts(state),
            counters={
                "attempts_failed": counters.attempts_failed,
                "worker_deaths": counters.worker_deaths,
                "reassigned": counters.reassigned,
                "handed_back": counters.handed_back,
                "stale_refused": counters.stale_refused,
                "forged_refused": counters.forged_refused,
                "retried": counters.retried,
                "restarts": counters.restarts,
            },
            latency_ms={"task": latency_ms(state), "message_rtt": rtt_ms},
            agents=[
                self._agent(agent)
                for agent in state.agents.values()
                if with_agents and not state.workers[agent.worker].is_team
            ],
            supervision=supervision_of(state, now_s),
            paused=paused(state),
        )

    def _agent(self, agent: Agent) -> AgentStatus:
        worker = self._state.workers[agent.worker]
        page = self._health.pages.get(agent.name)
        judgement = self._health.judgements.get(agent.name)
        return AgentStatus(
            agent=agent.name,
            worker=worker.name,
            pid=worker.pid or None if worker.state in st.LIVE else None,
            state=state_of(agent, worker, page, is_suspect=judgement is not None and judgement.is_suspect),
            verdict=judgement.verdict if judgement is not None else "unknown",
            incarnation=worker.incarnation,
            restarts=worker.restarts,
            task=next(iter(agent.held), None),
            done=agent.done,
            failed=agent.failed,
            inbox_depth=self._depth(agent.name, page),
            heartbeat_age_s=page.heartbeat_age_s() if page is not None else None,
            pss_bytes=self._health.pss_bytes.get(agent.name),
            evidence=evidence_of(worker, self._state.now_s)
            or (list(judgement.evidence) if judgement is not None else []),
        )

    def _depth(self, agent: str, page: StatusPage | None) -> int:
        # Exact by reading every sender's lane; in a large fleet that is each agent times each agent, and the agent's own word,
        # at most ten seconds old, has to do.
        if page is not None and len(self._state.agents) > EXACT_DEPTHS_MAX:
            return page.inbox_depth
        return self._bus.depth(agent)


def latency_ms(state: State) -> dict[str, float]:
    """p50 and p99 of the time from assignment to recorded end; empty while nothing has ended."""
    found = {"p50": state.latency.quantile_s(0.5), "p99": state.latency.quantile_s(0.99)}
    return {name: round(value * 1000, 3) for name, value in found.items() if value is not None}
