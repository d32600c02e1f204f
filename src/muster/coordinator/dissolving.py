"""Workers that change their team, and the end of a team that was given up. Pure, like all of the machine."""

from __future__ import annotations

from muster.coordinator import state as st
from muster.coordinator.events import (
    Effect,
    Handlers,
    Noted,
    TeamDissolved,
    WorkersAdopted,
)
from muster.coordinator.lifecycle import free, spawn
from muster.coordinator.state import Agent, State, Worker
from muster.core.spec import ChildSpec


def _dissolved(state: State, fact: TeamDissolved, out: list[Effect]) -> None:
    if state.dissolving.pop(fact.team, None) is None:
        return
    agent = state.agents[fact.team]
    held, agent.held = agent.held, {}
    state.held -= len(held)
    for number in held:  # it never came to the team, or the team's log is lost and all of its workers are proven dead
        task = state.tasks[number]
        free(state, task, f"attempt {task.attempt} on {fact.team}: {fact.reason}" if fact.reason else None, out)
    out.append(Noted("team.dissolved", {"team": fact.team}))


def _adopted(state: State, fact: WorkersAdopted, out: list[Effect]) -> None:
    for entry, last in fact.workers:
        if entry.worker in state.workers:
            continue
        worker = Worker(entry.worker, [agent for agent, _ in entry.agents], entry.restart)
        worker.incarnation, worker.child = last, entry.child or ChildSpec()
        state.workers[entry.worker] = worker
        for name, kind in entry.agents:
            state.agents[name] = Agent(name, kind, entry.worker)
        if state.phase == st.RUNNING:
            spawn(state, worker, out)
        else:
            worker.move("retired")


HANDLERS: Handlers = {TeamDissolved: _dissolved, WorkersAdopted: _adopted}
