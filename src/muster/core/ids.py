"""Message ids: UUID version 7 (RFC 9562), ordered by time and unique over forks, restarts and clock steps."""

from __future__ import annotations

import hashlib
import os
import time

_MASK_62 = (1 << 62) - 1


class _Generator:
    """One per process. Uniqueness between processes comes from 62 random bits, within one from (ms, counter) never going back."""

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        self._random = int.from_bytes(os.urandom(8), "big") & _MASK_62
        self._last_ms = 0
        self._counter = 0

    def next(self) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > self._last_ms:
            self._last_ms, self._counter = now_ms, 0
        else:  # same millisecond, or the clock stepped back: count on from the latest instant ever used
            self._counter += 1
            if self._counter > 0xFFF:
                self._last_ms, self._counter = self._last_ms + 1, 0
        value = (self._last_ms << 80) | (7 << 76) | (self._counter << 64) | (2 << 62) | self._random
        return value.to_bytes(16, "big")


_generator = _Generator()
# A forked child would repeat its parent's ids: it gets new random bits before it can make one.
os.register_at_fork(after_in_child=_generator.reseed)

new_id = _generator.next


def explicit_id(text: str) -> bytes:
    """The 16 bytes that stand for an id chosen by the caller; equal texts give equal ids."""
    return hashlib.sha256(text.encode()).digest()[:16]


def show_id(raw: bytes) -> str:
    """The canonical text of a 16-byte id."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
