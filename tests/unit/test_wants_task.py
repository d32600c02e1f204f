"""Which handlers get the task instead of its bare input: those whose first parameter is annotated with it, however they are written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from muster.agent.task import Task, wants_task


def asks(task: Task) -> str:
    return task.agent


async def asks_async(task: Task, verbose: bool = False) -> str:
    return task.agent if verbose else ""


def asks_by_position_only(task: Task, /) -> str:
    return task.agent


def asks_by_keyword(*, task: Task) -> str:
    return task.agent


def takes_input(value: int) -> int:
    return value


def takes_input_first(value: int, task: Task | None = None) -> Any:
    return value if task is None else task


def takes_two(value: int, task: Task) -> Any:
    return value, task


def is_bare(value):
    return value


def takes_nothing() -> None:
    """Called with an argument it will fail, which is its own affair."""


def takes_any(*values: Task) -> int:
    return len(values)


def names_what_is_not_there(value: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Its annotation cannot be resolved."""


class Desk:
    """Handlers that are methods."""

    def asks(self, task: Task) -> str:
        return task.agent

    def takes_input(self, value: int) -> int:
        return value


@functools.wraps(asks)
def wraps_one_that_asks(*arguments: Any) -> Any:
    return asks(*arguments)


@functools.wraps(takes_input)
def wraps_one_that_does_not(task: Task) -> Any:
    return task


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", type(handler).__name__)


@pytest.mark.parametrize(
    "handler",
    [asks, asks_async, asks_by_position_only, asks_by_keyword, takes_any, wraps_one_that_asks, Desk().asks],
    ids=_name,
)
def test_handler_annotated_with_task_gets_it(handler: Callable[..., Any]) -> None:
    assert wants_task(handler)


@pytest.mark.parametrize(
    "handler",
    [
        takes_input, takes_input_first, takes_two, is_bare, takes_nothing, names_what_is_not_there,
        wraps_one_that_does_not, Desk().takes_input, print,
    ],
    ids=_name,
)  # fmt: skip
def test_every_other_handler_gets_the_input(handler: Callable[..., Any]) -> None:
    assert not wants_task(handler)
