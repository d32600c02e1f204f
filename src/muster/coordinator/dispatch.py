"""Who gets which task: higher priorities first, then by number, in constant time per task however many agents there are.

Agents with a free slot wait in `idle`, agents that could take one more to keep at hand in `busy`, one line per kind; entries are checked
when they are taken, not removed when they go stale. Prefetching hides the way to the coordinator and back, but a task that waits behind
a long one while another agent is idle loses more than that; so it is done only when no agent is idle, more tasks wait than there are
agents, attempts are short, and not behind one that has turned out to be long.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from muster.coordinator import budget
from muster.coordinator.events import Effect, Post
from muster.coordinator.lives import AGENT_MOVES
from muster.coordinator.state import ABSENT, READY, RUNNING, Agent, State
from muster.coordinator.tasks import NUMBER_MASK, PAST_MAX, Task
from muster.core.protocol import Assign

if TYPE_CHECKING:
    from collections import deque

#: Mean time of an attempt above which nothing is prefetched: the way to the coordinator takes milliseconds.
PREFETCH_ATTEMPT_S_MAX = 0.2


def enqueue(state: State, task: Task) -> None:
    """Put a task that has just become `queued` in its line; priority and number decide its place, so a returned one is first again."""
    heappush(state.queues[task.route], task.place if task.priority else task.number)
    state.queued += 1


def offer(state: State, agent: Agent) -> None:
    """Note that an agent may have room."""
    held, slots = len(agent.held), agent.slots
    if held < slots:
        if not agent.in_idle:
            agent.in_idle = True
            state.idle[agent.kind].append(agent.name)
    elif not agent.in_busy and held < 2 * slots and held < slots + state.plan.prefetch:
        agent.in_busy = True
        state.busy[agent.kind].append(agent.name)


def set_agent_state(state: State, agent: Agent, new: str) -> None:
    """Change an agent's state and the count of the ready ones. Raises ValueError for a move that is not in `lives.AGENT_TRANSITIONS`."""
    if agent.state != new and (agent.state, new) not in AGENT_MOVES:
        raise ValueError(f"{agent.name} cannot go from {agent.state} to {new}")
    state.ready += (new == READY) - (agent.state == READY)
    agent.state = new
    if new == ABSENT:
        agent.confirmed = True


def release(state: State, agent: Agent, number: int) -> None:
    """An agent holds `number` no more."""
    del agent.held[number]
    state.held -= 1
    offer(state, agent)


def dispatch(state: State, out: list[Effect]) -> None:
    """Assign what can be assigned now."""
    if (
        not state.queued
        or state.phase != RUNNING
        or not state.admission_open
        or state.is_paused
        or budget.is_over(state)
    ):
        return
    _assign_from(state, state.idle, 0, out)
    mean_s = state.attempt_mean_s
    if (
        state.plan.prefetch
        and state.queued >= len(state.agents)
        and mean_s is not None
        and mean_s <= PREFETCH_ATTEMPT_S_MAX
    ):
        _assign_from(state, state.busy, state.plan.prefetch, out)


def assignment(task: Task) -> Post:
    """The message that gives `task` to the agent it is assigned to. Its id makes sending it again harmless."""
    body = Assign(
        number=task.number,
        attempt=task.attempt,
        incarnation=task.incarnation,
        input=task.input,
        timeout_s=task.timeout_s,
        session=task.session,
        hops=task.hops,
    )
    return Post(task.agent, body, f"assign-{task.number}-{task.attempt}-{task.incarnation}")


def _assign_from(state: State, lines: dict[str, deque[str]], extra: int, out: list[Effect]) -> None:
    # Near the end the last tasks are left to whoever is idle first, or ready first: an agent that is still starting counts, too.
    keep = len(state.agents) if extra else 0
    paused = {*state.kinds_paused, *budget.kinds_over(state)}
    while state.queued > keep or (state.queued and not extra):
        taken = _next(state, lines, extra, paused)
        if taken is None:
            return
        queue, agent = taken
        line = lines[agent.kind]
        line.popleft()
        if extra:
            agent.in_busy = False
        else:
            agent.in_idle = False
        task = state.tasks[heappop(queue) & NUMBER_MASK]
        state.queued -= 1
        task.move("assigned")
        if task.agent:
            task.past = (*task.past, (task.attempt, task.agent))[-PAST_MAX:]
        task.attempt += 1
        task.agent = agent.name
        worker = state.workers[agent.worker]
        # What a team holds outlives its coordinator's process.
        task.incarnation = 0 if worker.is_team else worker.incarnation
        task.assigned_s = state.now_s
        agent.held[task.number] = task.attempt
        state.held += 1
        offer(state, agent)
        out.append(assignment(task))


def _next(state: State, lines: dict[str, deque[str]], extra: int, paused: set[str]) -> tuple[list[int], Agent] | None:
    """The first of the waiting tasks that some agent has room for, as its queue, and that agent; but none of the kinds in `paused`."""
    best: tuple[list[int], Agent] | None = None
    routes = state.routes
    for route, queue in state.queues.items():
        if queue and (best is None or queue[0] < best[0][0]):
            for candidate in routes[route]:
                if candidate in paused:
                    continue
                agent = _first_with_room(state, lines[candidate], extra)
                if agent is not None:
                    best = (queue, agent)
                    break
    return best


def _first_with_room(state: State, line: deque[str], extra: int) -> Agent | None:
    while line:
        agent = state.agents[line[0]]
        slots = agent.slots
        if (
            agent.state == READY
            and agent.confirmed
            and len(agent.held) < slots + extra
            and (len(agent.held) < 2 * slots or not extra)
            and not (extra and _is_slow(state, agent))
            and not budget.agent_over(state, agent)
        ):
            return agent
        line.popleft()
        if extra:
            agent.in_busy = False
        else:
            agent.in_idle = False
    return None


def _is_slow(state: State, agent: Agent) -> bool:
    """Whether the agent has worked on its oldest task for so long that nothing should wait behind it."""
    oldest = next(iter(agent.held), None)
    return oldest is not None and state.now_s - state.tasks[oldest].assigned_s > PREFETCH_ATTEMPT_S_MAX
