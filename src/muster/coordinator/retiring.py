"""Leaving for good: agents and workers that the fleet has no more, because it was made smaller. Pure, like all of the machine.

An agent is forgotten once it holds nothing and has said its last word, or its worker is proven dead; its inbox and outbox stay on the
store, and so do the counts of its incarnations, which never repeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator.lives import DRAINED, Past
from muster.coordinator.state import Agent, State, Worker

if TYPE_CHECKING:
    from collections import deque


def forget_agent(state: State, agent: Agent) -> None:
    """Take an agent that holds nothing off the books."""
    assert not agent.held, f"{agent.name} still holds tasks"
    for lines in (state.idle, state.busy):
        _remove(lines[agent.kind], agent.name)
    state.workers[agent.worker].agents.remove(agent.name)
    del state.agents[agent.name]
    state.supervision.past_agents[agent.name] = Past(agent.done, agent.failed)


def forget_worker(state: State, worker: Worker) -> None:
    """Take a worker that is proven dead off the books, with its agents."""
    for name in list(worker.agents):
        forget_agent(state, state.agents[name])
    del state.workers[worker.name]
    state.supervision.past_workers[worker.name] = Past(worker.incarnation, worker.restarts)


def agent_left(state: State, agent: Agent) -> None:
    """An agent said its last word. One that is to go for good is forgotten now if its worker lives on with others."""
    worker = state.workers[agent.worker]
    if agent.is_retiring and agent.state == DRAINED and not agent.held and not is_retiring(state, worker):
        forget_agent(state, agent)


def forget_retired(state: State, worker: Worker) -> None:
    """A worker is proven dead and will be started again: without those of its agents that were to go."""
    if not is_retiring(state, worker):
        for name in [name for name in worker.agents if state.agents[name].is_retiring]:
            forget_agent(state, state.agents[name])


def is_retiring(state: State, worker: Worker) -> bool:
    """Whether a worker ends for good with its present incarnation."""
    return all(state.agents[name].is_retiring for name in worker.agents)


def _remove(line: deque[str], name: str) -> None:
    if name in line:
        line.remove(name)
