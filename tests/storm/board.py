"""What the storm and its crew share: one page of words, each written by one side only."""

from __future__ import annotations

import mmap

STORM, DRAIN, STOP = 0, 1, 2
_FIRST_SLOT, _SLOT_WORDS = 8, 2


class Board:
    """An anonymous shared page, made before the first fork: the phase is the storm's, each member has words of its own."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, 4096)).cast("Q")

    @property
    def phase(self) -> int:
        return self._words[0]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._words[0] = phase

    def count_finished(self, slot: int) -> None:
        """One more message is finalised. Only the living incarnation of the member counts here."""
        self._words[_FIRST_SLOT + slot * _SLOT_WORDS] += 1

    def finished(self, slots: int) -> int:
        return sum(self._words[_FIRST_SLOT + slot * _SLOT_WORDS] for slot in range(slots))

    def say_quiet(self, slot: int, incarnation: int) -> None:
        """This incarnation has seen the end of the storm and makes no more messages of its own."""
        self._words[_FIRST_SLOT + slot * _SLOT_WORDS + 1] = incarnation

    def quiet(self, slot: int) -> int:
        return self._words[_FIRST_SLOT + slot * _SLOT_WORDS + 1]
