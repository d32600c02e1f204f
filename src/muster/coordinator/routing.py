"""Which kinds of agents may do a task. A route is a kind and the tags that are wanted; every route in use has a line of its own.

Tasks of one route wait in one line, so what an assignment costs depends on the number of routes, which is bounded, and never on the
number of tasks.
"""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING

from muster.coordinator.tasks import ASSIGNED, QUEUED, Task
from muster.core import limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.coordinator.state import State


def route_of(kind: str, tags: Iterable[str]) -> str:
    """The name of a route: "KIND", "KIND#tag,tag" or "#tag,tag"; "" is open to everybody."""
    wanted = ",".join(sorted(set(tags)))
    return f"{kind}#{wanted}" if wanted else kind


def kinds_for(state: State, route: str) -> list[str]:
    """The kinds of this fleet that may do tasks of a route."""
    kind, _, tags = route.partition("#")
    wanted = set(tags.split(",")) if tags else set()
    return [name for name in state.kinds if kind in ("", name) and wanted.issubset(state.plan.tags.get(name, ()))]


def open_route(state: State, route: str) -> str:
    """Make a line for a route. Returns why that cannot be, or ""."""
    kinds = kinds_for(state, route)
    if not kinds:
        kind, _, tags = route.partition("#")
        if kind not in ("", *state.kinds):
            return f"no agent of kind {kind!r} is in this fleet"
        return f"no agent{f' of kind {kind!r}' if kind else ''} has the tags {tags}"
    if len(state.queues) >= limits.TASK_ROUTES_MAX and not _close_routes(state):
        return f"tasks wait on {limits.TASK_ROUTES_MAX} combinations of kind and tags already; more are refused"
    state.routes[route], state.queues[route] = kinds, []
    return ""


def _close_routes(state: State) -> bool:
    """Give up lines on which nothing waits and nothing can come back. Whether any was."""
    used = {task.route for task in state.tasks.values()}
    unused = [route for route in state.queues if route and route not in used]
    for route in unused:
        del state.queues[route], state.routes[route]
    return bool(unused)


def lay_routes(state: State) -> list[tuple[Task, str]]:
    """All lines anew, after the kinds have changed. Returns the tasks that nobody can do any more, with the reason."""
    state.routes, state.queues, state.queued = {"": list(state.kinds)}, {"": []}, 0
    lost = []
    for task in state.tasks.values():
        if task.route not in state.routes:
            why = open_route(state, task.route)
            if (
                why and task.state == ASSIGNED
            ):  # a team goes on with it; given back, it would wait for a kind that may come again
                state.routes[task.route], state.queues[task.route] = [], []
            elif why:
                lost.append((task, why))
                continue
        if task.state == QUEUED:
            heappush(state.queues[task.route], task.place)
            state.queued += 1
    return lost
