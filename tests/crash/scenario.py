"""A scenario: a small piece of what processes do on a store, how its store came about, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .life import Act, Note


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes the store. `act` is the life that meets the fault, between its two marks. `mend` is a later life with nothing in
    its way, which takes the store up as any process would and leaves it settled. `judge` complains about the notes of all of them.

    `is_brief` scenarios are in the short form as well, `is_deep` ones are also killed while they are mended.
    """

    name: str
    prepare: Act
    act: Act
    mend: Act
    judge: Callable[[list[Note]], list[str]]
    is_brief: bool = False
    is_deep: bool = False
