"""The last attempt of each task that a team has given back to the root: four bytes a number, so that none is ever forgotten."""

from __future__ import annotations

from array import array

_TYPE = "I"


class Tokens:
    """number -> attempt; 0 for a number that was never given back."""

    __slots__ = ("_attempts",)

    def __init__(self, data: bytes = b"") -> None:
        self._attempts = array(_TYPE)
        self._attempts.frombytes(data)

    def get(self, number: int) -> int:
        """The last attempt of `number` that was given back."""
        return self._attempts[number] if 0 <= number < len(self._attempts) else 0

    def set(self, number: int, attempt: int) -> None:
        """Note an attempt, growing by doubling."""
        have = len(self._attempts)
        if number >= have:
            self._attempts.frombytes(bytes(self._attempts.itemsize * (max(number + 1, 2 * have, 256) - have)))
        self._attempts[number] = attempt

    def to_bytes(self) -> bytes:
        """What `Tokens` makes the same of."""
        return self._attempts.tobytes()
