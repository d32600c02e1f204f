"""What a task may wish for, checked the same way wherever it comes from: a message, a line of a file, a command line."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from muster.core import limits
from muster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.core.protocol import TaskInput

_TAG = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)


def check(task: TaskInput) -> None:
    """Raises ConfigError, whose `key` names the wish, if a task wishes for what cannot be."""
    most = limits.TASK_PRIORITY_MAX
    if not -most <= task.priority <= most:
        raise ConfigError(f"priority {task.priority} is not between -{most} and {most}", key="priority")
    _seconds("delay", task.delay_s)
    if task.timeout_s is not None:
        _seconds("timeout", task.timeout_s, may_be_none=False)
    if task.backoff_s is not None:
        _seconds("backoff", task.backoff_s)
    if task.attempts_max is not None and not 1 <= task.attempts_max <= limits.TASK_ATTEMPTS_MAX:
        raise ConfigError(
            f"retries must be between 0 and {limits.TASK_ATTEMPTS_MAX - 1:,}, not {task.attempts_max - 1:,}",
            key="retries",
        )
    check_tags(task.tags)


def check_tags(tags: Iterable[str]) -> None:
    """Raises ConfigError unless these are a few tags of 1 to 64 of the characters a-z A-Z 0-9 _ -."""
    count = 0
    for tag in tags:
        count += 1
        if _TAG.fullmatch(tag) is None:
            raise ConfigError(f"tag {tag!r:.80} is not 1 to 64 of the characters a-z A-Z 0-9 _ -", key="tags")
    if count > limits.TASK_TAGS_MAX:
        raise ConfigError(f"{count} tags; {limits.TASK_TAGS_MAX} is the most", key="tags")


def _seconds(what: str, value: float, *, may_be_none: bool = True) -> None:
    if not math.isfinite(value) or not 0 <= value <= limits.TASK_DELAY_S_MAX or (value == 0 and not may_be_none):
        raise ConfigError(f"a {what} of {value:g} s is not possible", key=what)
