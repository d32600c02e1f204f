"""What a handler may ask for instead of the bare input: the task it works on."""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt, as a handler sees it when its parameter is annotated with `muster.Task`.

    `number` and `attempt` together are unique in the fleet's life: use them to make side effects repeatable. `socket` is the address
    of the agent's owner socket, for `muster.agent.client.OwnerClient(task.socket)` and for programs the handler starts.
    """

    number: int
    attempt: int
    input: Any
    agent: str
    socket: str


def wants_task(handler: Callable[[Any], Any]) -> bool:
    """Whether the handler's first parameter is annotated with `Task`."""
    with contextlib.suppress(Exception):  # annotations are foreign code, too
        name, annotation = _first_parameter(handler)
        if isinstance(annotation, str):
            annotation = typing.get_type_hints(handler).get(name)
        return annotation is Task
    return False


def _first_parameter(handler: Callable[[Any], Any]) -> tuple[str, Any]:
    """Its name and annotation. Raises what foreign code may raise, StopIteration when there is none."""
    # A bare function is read directly: for the same answer of `inspect` every worker copies 45 pages of the fork server.
    if isinstance(handler, types.FunctionType) and handler.__code__.co_argcount and not handler.__dict__:
        name = handler.__code__.co_varnames[0]
        return name, handler.__annotations__.get(name)
    first = next(iter(inspect.signature(handler).parameters.values()))
    return first.name, first.annotation
