"""Child processes of a measurement: forked, started together through a gate, and never left behind."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import uvloop

from benchmarks.harness import MeasureError, MissingContenderError
from muster.supervise.tree import set_parent_death_signal

#: Longest life of a child, and longest wait for its result.
LIFE_S = 60
#: The same in blocks with hundreds of processes.
LARGE_LIFE_S = 120


def run_loop(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    """Run a coroutine function on uvloop, as workers do."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(call(*arguments, **options))  # type: ignore[arg-type]


def _is_readable(fd: int, deadline: float) -> bool:
    """Wait until `fd` can be read, or `deadline`. By poll: with hundreds of children descriptors outgrow what select can take."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class Gate:
    """Lets several processes begin at one moment: each says that it is ready and waits; `open` lets all of them go."""

    def __init__(self) -> None:
        self._ready_out, self._ready_in = os.pipe()
        self._go_out, self._go_in = os.pipe()

    def wait(self) -> None:
        """In a child: I am ready; wait for the others."""
        os.write(self._ready_in, b".")
        os.close(self._go_in)
        os.read(self._go_out, 1)

    def open(self, expected: int, timeout_s: float = LIFE_S) -> None:
        """In the parent: wait until `expected` children are ready, then let them go. Raises MeasureError."""
        deadline = time.monotonic() + timeout_s
        while expected > 0:
            if not _is_readable(self._ready_out, deadline):
                raise MeasureError(f"{expected} processes were not ready within {timeout_s:g} s")
            expected -= len(os.read(self._ready_out, expected))
        self._close("_go_in")

    def close(self) -> None:
        for name in ("_ready_out", "_ready_in", "_go_out", "_go_in"):
            self._close(name)

    def _close(self, name: str) -> None:
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)


class Child:
    """A forked process that runs one function and sends back what it returned."""

    def __init__(self, call: Callable[[], Any], life_s: int = LIFE_S) -> None:
        self._life_s = life_s
        self._out, write_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._out)
            _run(call, write_fd, life_s)
        os.close(write_fd)
        self._reaped = False

    def result(self) -> Any:
        """What the function returned. Raises MeasureError with the child's traceback if it failed or outlived its time."""
        deadline, raw = time.monotonic() + self._life_s, b""
        while True:
            if not _is_readable(self._out, deadline):
                raise MeasureError(f"a process had no result within {self._life_s:g} s")
            part = os.read(self._out, 1 << 20)
            if not part:
                break
            raw += part
        self.end()
        if not raw:
            raise MeasureError("a process died without a result")
        kind, value = pickle.loads(raw)  # written by our own child
        if kind == "missing":
            raise MissingContenderError(value)
        if kind == "error":
            raise MeasureError(value)
        return value

    def end(self) -> None:
        """Kill it if it still runs, and reap it. Safe twice."""
        if self._reaped:
            return
        self._reaped = True
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        os.waitpid(self.pid, 0)
        os.close(self._out)


def _run(call: Callable[[], Any], write_fd: int, life_s: int) -> None:
    status = 1
    try:
        set_parent_death_signal(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(life_s)
        try:
            answer = ("ok", call())
        except MissingContenderError as error:
            answer = ("missing", str(error))
        except BaseException:
            answer = ("error", traceback.format_exc())
        with os.fdopen(write_fd, "wb") as stream:
            stream.write(pickle.dumps(answer))
        status = 0
    finally:
        os._exit(status)


class Crew:
    """The children of one block. `with Crew() as crew:` leaves none of them behind, whatever happened."""

    def __init__(self, life_s: int = LIFE_S) -> None:
        self.gate = Gate()
        self.children: list[Child] = []
        self._life_s = life_s

    def add(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Child:
        """Fork a process that makes this call; its result is what the call returns."""
        child = Child(functools.partial(call, *arguments, **options), self._life_s)
        self.children.append(child)
        return child

    def go(self) -> None:
        """Let every child that waits at the gate begin."""
        self.gate.open(len(self.children), self._life_s)

    def results(self) -> list[Any]:
        return [child.result() for child in self.children]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children:
            child.end()
        self.gate.close()
