"""What a fuzz target is, and one execution of it with everything that is claimed of it."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muster.errors import MusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Processor time that one input may take: a thousand times what the slowest honest one does.
CPU_S_MAX = 10.0


class BrokenClaimError(AssertionError):
    """An input that a decoder does not stand. Says how to replay it."""


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes. It returns, or raises one of `allowed`; it leaves no descriptor open."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    allowed: tuple[type[Exception], ...] = (MusterError,)
    #: Deterministic mutations that `make test` tries.
    mutations: int = 1500

    def execute(self, data: bytes) -> None:
        """One input. Raises BrokenClaimError with the way to replay it."""
        before = len(os.listdir("/proc/self/fd"))
        try:
            with _cpu_bound():
                self.run(data)
        except self.allowed:
            pass
        except Exception as error:
            raise BrokenClaimError(f"{type(error).__name__}: {error}\n{self.replay(data)}") from error
        after = len(os.listdir("/proc/self/fd"))
        if after != before:
            raise BrokenClaimError(f"{after - before} descriptors stay open\n{self.replay(data)}")

    def replay(self, data: bytes) -> str:
        shown = base64.b64encode(data).decode()
        return f"replay: python -m tests.fuzz {self.name} --input {shown}"


class _TooSlowError(Exception):
    pass


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise _TooSlowError(f"more than {CPU_S_MAX:g} s of processor time")


@contextmanager
def _cpu_bound() -> Iterator[None]:
    """Processor time, not time on the wall: a busy machine breaks no claim."""
    before = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def holds(claim: object, what: str) -> None:
    """An assertion inside a target."""
    if not claim:
        raise BrokenClaimError(what)
