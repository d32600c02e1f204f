"""`--tasks FILE`: tasks of a run with wishes of their own, one JSON object per line.

    {"input": "a.py"}
    {"input": "b.py", "priority": 5, "after": [1], "delay": "10s", "timeout": "2m", "retries": 3, "backoff": "1s"}

`after` names tasks by their place in the input, and only such as stand before: so a list may be read while it is written.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muster.core import limits, wishes
from muster.core.protocol import TaskInput
from muster.errors import BodyTooLargeError, ConfigError, InputFileError
from muster.fleet.durations import parse_duration

Duration = str | int | float


class TaskLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line."""

    input: Any
    priority: int = 0
    delay: Duration = 0
    after: list[int] = []
    timeout: Duration | None = None
    retries: int | None = None
    backoff: Duration | None = None


_decoder = msgspec.json.Decoder(TaskLine)


def parse(text: bytes, number: int, where: str) -> TaskInput:
    """The task of a line; `number` is its place among all tasks, `where` names file and line.

    Raises:
        InputFileError: It is no such object, or wishes for what cannot be.
        BodyTooLargeError: It does not fit into a message.
    """
    if len(text) > limits.BODY_BYTES_MAX - 1024:
        raise BodyTooLargeError(f"{where}: a task of {len(text):,} bytes does not fit into a message")
    try:
        line = _decoder.decode(text)
        task = _task_of(line, number)
        wishes.check(task)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        said = str(error)[:200].replace("Object contains", "it has the").replace("Object missing", "it lacks the")
        raise InputFileError(f"{where}: not a task: {said}", path=where) from None
    except ConfigError as error:
        raise InputFileError(f"{where}: {error.message}", path=where) from None
    return task


def _task_of(line: TaskLine, number: int) -> TaskInput:
    for other in line.after:
        if not 0 < other < number:
            raise ConfigError(
                f"task {number} can only come after tasks that stand before it, not after {other}", key="after"
            )
    if len(line.after) > limits.TASK_AFTER_MAX:
        raise ConfigError(
            f"{len(line.after):,} tasks to come after; {limits.TASK_AFTER_MAX:,} is the most", key="after"
        )
    return TaskInput(
        number,
        line.input,
        priority=line.priority,
        delay_s=parse_duration(line.delay, "delay"),
        after=line.after,
        timeout_s=None if line.timeout is None else parse_duration(line.timeout, "timeout"),
        attempts_max=None if line.retries is None else line.retries + 1,
        backoff_s=None if line.backoff is None else parse_duration(line.backoff, "backoff"),
    )
