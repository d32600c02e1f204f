"""How much a run does: all of it, or the smoke form of `--quick`, which shows that every case works and judges nothing."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

_quick = False


def be_quick() -> None:
    """From now on `effort` picks the small form. For the whole process; its forked children inherit it."""
    global _quick
    _quick = True


def is_quick() -> bool:
    return _quick


def effort(full: T, quick: T) -> T:
    """`full`, or `quick` in the smoke form. Call it when a block runs, not when a module is imported."""
    return quick if _quick else full
