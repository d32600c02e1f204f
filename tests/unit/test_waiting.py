"""`eventually` waits for what becomes true, and names what does not."""

from __future__ import annotations

import pytest

from muster.testing import eventually, eventually_async


def test_returns_the_true_value_as_soon_as_it_is_there() -> None:
    answers = iter([0, None, "", "there"])
    assert eventually(lambda: next(answers)) == "there"


def test_names_what_did_not_happen_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"not within 0 s: the moon rises \(last value: \[\]\)"):
        eventually(list, timeout_s=0, what="the moon rises")


def test_looks_once_more_after_the_deadline() -> None:
    looks: list[int] = []

    def second_look() -> bool:
        looks.append(1)
        return len(looks) == 2

    assert eventually(second_look, timeout_s=0.001)


def test_what_the_predicate_raises_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


async def test_async_accepts_functions_and_coroutine_functions() -> None:
    answers = iter([False, True])

    async def slow() -> bool:
        return next(answers)

    assert await eventually_async(lambda: 7) == 7
    assert await eventually_async(slow) is True
    with pytest.raises(AssertionError, match="never"):
        await eventually_async(lambda: False, timeout_s=0, what="never")
