"""A task with wishes as a message: what `muster send coordinator INPUT --type task --priority 5 …` stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from muster.core import limits, wishes
from muster.core.names import COORDINATOR
from muster.core.protocol import TaskInput
from muster.core.requests import TaskRequest
from muster.errors import ConfigError
from muster.fleet.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping


def request(to: str, type_: str, body: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a `task.request`. `wanted`: priority, delay, after, tags, timeout, retries as a person writes them.

    Raises:
        ConfigError: This is no task, or it wishes for what cannot be; nothing was sent.
    """
    kind, at, rest = type_.partition("@")
    if to != COORDINATOR or kind != "task" or (at and not rest):
        first = min(wanted)
        raise ConfigError(f"--{first} is for tasks: messages of type task or task@KIND to the coordinator", key=first)
    retries, timeout, delay = wanted.get("retries"), wanted.get("timeout"), wanted.get("delay")
    task = TaskInput(
        1,
        body,
        rest,
        timeout_s=None if timeout is None else parse_duration(timeout, "--timeout"),
        priority=wanted.get("priority", 0),
        delay_s=0.0 if delay is None else parse_duration(delay, "--delay"),
        after=list(wanted.get("after", ())),
        tags=list(wanted.get("tags", ())),
        attempts_max=None if retries is None else retries + 1,
    )
    wishes.check(task)
    if len(task.after) > limits.TASK_AFTER_MAX:
        raise ConfigError(f"--after: {limits.TASK_AFTER_MAX:,} tasks are the most", key="after")
    made = TaskRequest(
        input=body,
        kind=task.kind,
        priority=task.priority,
        delay_s=task.delay_s,
        after=task.after,
        tags=task.tags,
        timeout_s=task.timeout_s,
        retries=retries,
    )
    told: dict[str, Any] = msgspec.to_builtins(made, builtin_types=(bytes,))
    return told
