"""Virtual time: one heap of moments, and processes that live, stand still and die on it.

Nothing here waits. A moment is run as soon as the one before it is over, so an hour of a fleet takes a second, and the order of moments is
decided by their time and then by the order in which they were asked for: equal seeds give equal histories.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

#: Where virtual time begins: an arbitrary instant of wall time.
START_S: Final = 1_800_000_000.0


class Killed(BaseException):
    """SIGKILL, met between two steps of a process. Nothing but the simulator may catch it."""


class Timer:
    """A moment that was asked for. `cancel` and it never comes."""

    __slots__ = ("_arguments", "_call")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._call: Callable[..., object] | None = call
        self._arguments = arguments

    def cancel(self) -> None:
        """Forget it. Safe at any time."""
        self._call = None

    def run(self) -> None:
        """What was asked for, unless it was cancelled."""
        if self._call is not None:
            self._call(*self._arguments)


class Timeline:
    """The heap. `now_s` is steady time; `wall_s` may be set forward and back by `jump_s`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.jump_s = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._asked = 0

    def steady_s(self) -> float:
        """As `time.monotonic`."""
        return self.now_s

    def wall_s(self) -> float:
        """As `time.time`."""
        return START_S + self.now_s + self.jump_s

    def later(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """Call `call` in `delay_s` seconds."""
        timer = Timer(call, arguments)
        self._asked += 1
        heappush(self._heap, (self.now_s + max(0.0, delay_s), self._asked, timer))
        return timer

    def step(self) -> bool:
        """Go to the next moment and run it; False if there is none."""
        if not self._heap:
            return False
        due_s, _, timer = heappop(self._heap)
        self.now_s = due_s
        self.steps += 1
        timer.run()
        return True

    @property
    def next_s(self) -> float | None:
        """When the next moment is."""
        return self._heap[0][0] if self._heap else None


class Process:
    """One simulated process: an event loop (as far as muster's agents need one) that can be killed and stopped.

    `strike` is called at every step that touches the world outside (a message, a file, a socket) and may raise `Killed`.
    """

    def __init__(self, timeline: Timeline, name: str, pid: int, strike: Callable[[Process, str], None]) -> None:
        self.timeline, self.name, self.pid = timeline, name, pid
        self.is_alive, self.is_stopped = True, False
        #: Called once, when it is gone: exit status, signal.
        self.on_exit: Callable[[int | None, int | None], None] = lambda _status, _signal: None
        self._strike = strike
        self._kept: deque[Timer] = deque()

    # ------------------------------------------------------------------ the loop that muster's code sees

    def time(self) -> float:
        """Steady time, as of an event loop."""
        return self.timeline.now_s

    def call_soon(self, call: Callable[..., object], *arguments: Any) -> Timer:
        """Call in the loop's next turn."""
        return self.call_later(0.0, call, *arguments)

    def call_later(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """Call in `delay_s`; later if the process is stopped then, never if it is dead. Until it is called it can be cancelled."""
        timer = Timer(call, arguments)
        self.timeline.later(delay_s, self._run, timer)
        return timer

    # ------------------------------------------------------------------ what happens to it

    def run(self, call: Callable[..., object], *arguments: Any) -> None:
        """Let the process do something now."""
        self._run(Timer(call, arguments))

    def _run(self, timer: Timer) -> None:
        if not self.is_alive:
            return
        if self.is_stopped:
            self._kept.append(timer)
            return
        try:
            timer.run()
        except Killed:
            self.kill()

    def io(self, what: str) -> None:
        """The process is about to touch the world, or just has: it may die here."""
        self._strike(self, what)

    def stop(self) -> None:
        """SIGSTOP: alive and silent."""
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT: everything that came meanwhile comes now."""
        if not self.is_stopped:
            return
        self.is_stopped = False
        kept, self._kept = self._kept, deque()
        for timer in kept:
            self.timeline.later(0.0, self._run, timer)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(None, 9)

    def exit(self, status: int) -> None:
        """It ended by itself."""
        self._end(status, None)

    def _end(self, status: int | None, signal: int | None) -> None:
        if self.is_alive:
            self.is_alive, self.is_stopped = False, False
            self._kept.clear()
            self.on_exit(status, signal)
