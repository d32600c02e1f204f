"""Calls a Python function per attempt: `module:function`, sync or async.

A handler never runs on the worker's own event loop: each slot has a thread with a loop of its own, so a handler that blocks holds up
nobody else, heartbeats go on and its time limit holds. A thread cannot be killed, though. A handler that is still there after its time
limit (or a cancellation) and its grace is reported, and then the whole worker process is given up and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import queue
import sys
import threading
import traceback
import typing
from typing import TYPE_CHECKING, Any

import msgspec

from muster.agent.attempt import Ended, Ending, result_of
from muster.agent.bounds import time_bound
from muster.agent.output import Capture
from muster.agent.remains import Marks
from muster.agent.task import Task, wants_task
from muster.core import limits
from muster.errors import BodyEncodingError, BodyTooLargeError, HandlerNotFoundError, MusterError, RateLimitedError
from muster.supervise.tree import descendants_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.agent.attempt import AgentSetting, Attempt
    from muster.agent.bounds import MemoryWatch
    from muster.agent.remains import Remains
    from muster.errors import AttemptLimitError

#: A value's share of a result message; the rest is for bounded outputs and the frame.
VALUE_BYTES_MAX = limits.BODY_BYTES_MAX - 3 * limits.OUTPUT_INLINE_BYTES_MAX
TRACEBACK_CHARS_MAX = 8 << 10
MESSAGE_CHARS_MAX = 2 << 10
_CLEAR_AGAIN_S = 0.02


def load_handler(reference: str, cwd: str | None = None) -> Callable[[Any], Any]:
    """The function that `package.module:function` names; `cwd` is searched first.

    Raises:
        HandlerNotFoundError: The module cannot be imported, has no such name, or it cannot be called. Whatever importing it printed,
            started or changed stays.
    """
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        raise HandlerNotFoundError(
            f"a handler is written package.module:function, not {reference!r:.200}", handler=reference
        )
    folder = os.path.abspath(cwd or ".")
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except BaseException as error:  # importing runs foreign code: it may raise anything, SystemExit too
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name):
            reason = f"there is no module {error.name}"
        else:
            reason = f"{type(error).__name__}: {error}"
        raise HandlerNotFoundError(
            f"the handler {reference} cannot be loaded: {reason:.500}", handler=reference
        ) from None
    if not callable(found):
        raise HandlerNotFoundError(f"the handler {reference} is not a function", handler=reference)
    return typing.cast("Callable[[Any], Any]", found)


class _Slot(threading.Thread):
    """One thread with one event loop, working on one attempt at a time."""

    def __init__(self, number: int, enter: Callable[[], None]) -> None:
        # A daemon: a handler that never returns must not keep the process from ending.
        super().__init__(name=f"handler-{number}", daemon=True)
        self.work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        #: Made when the first awaitable comes: sync handlers do not pay for it.
        self.loop: asyncio.AbstractEventLoop | None = None
        self.current: asyncio.Task[Any] | None = None
        self.is_cancelled = False
        self._enter = enter

    def run(self) -> None:
        self._enter()
        while (work := self.work.get()) is not None:
            work()
        if self.loop is not None:
            self.loop.close()

    def call(self, handler: Callable[[Any], Any], argument: Any) -> Any:
        """The handler's value; an awaitable is awaited on this thread's loop."""
        value = handler(argument)
        if not inspect.isawaitable(value):
            return value
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        self.current = self.loop.create_task(_await(value))
        if self.is_cancelled:
            self.current.cancel()
        try:
            return self.loop.run_until_complete(self.current)
        finally:
            self.current = None
            self._cancel_leftovers(self.loop)

    def _cancel_leftovers(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tasks that an async handler started and left behind end with it: they must not run into the next attempt."""
        leftovers = asyncio.all_tasks(loop)
        for task in leftovers:
            task.cancel()
        if leftovers:
            loop.run_until_complete(asyncio.wait(leftovers, timeout=1.0))

    def cancel(self) -> None:
        """Cancel the awaitable that is or will be awaited. Called from the worker's loop; does nothing to a sync handler."""
        self.is_cancelled = True
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._cancel_current)

    def _cancel_current(self) -> None:
        if self.current is not None and self.is_cancelled:
            self.current.cancel()


async def _await(value: typing.Awaitable[Any]) -> Any:
    return await value


class HandlerExecutor:
    """Works on attempts of one agent by calling its kind's handler."""

    def __init__(
        self,
        setting: AgentSetting,
        remains: Remains,
        memory: MemoryWatch,
        *,
        give_up: Callable[[], None],
        captures: bool = False,
    ) -> None:
        """`give_up` ends the worker process; called after the result of a handler that cannot be ended was reported.

        With `captures` what is written to file descriptors 1 and 2 while a handler runs is its task's output. That is only true if
        nothing else runs in this process: one agent, one slot.
        """
        self.setting = setting
        self.remains = remains
        self.memory = memory
        self.loop: asyncio.AbstractEventLoop = setting.loop
        self._give_up = give_up
        self._idle: list[_Slot] = []
        self._slots = 0
        self._running: dict[tuple[int, int], _Call] = {}
        self._captures = (Capture(setting.fleet.spool), Capture(setting.fleet.spool)) if captures else None
        self._handler: Callable[[Any], Any] | None = None
        self._error: HandlerNotFoundError | None = None
        try:
            self._handler = load_handler(setting.kind.handler or "", setting.kind.cwd)
        except (
            HandlerNotFoundError
        ) as error:  # every task gets to hear it; a worker that died of it would only be restarted
            self._error = error
        self._wants_task = self._handler is not None and wants_task(self._handler)

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """See `Executor`."""
        attempt.begin()
        if self._handler is None:
            assert self._error is not None
            ended(attempt, result_of(attempt, Ending("failed", error=self._error.as_dict())))
            return
        if not self._idle:
            slot = _Slot(self._slots, self.setting.enter_thread)
            self._slots += 1
            slot.start()
            self._idle.append(slot)
        call = self._running[attempt.key] = _Call(self, attempt, ended, self._idle.pop())
        argument = attempt.input
        if self._wants_task:
            argument = Task(attempt.number, attempt.attempt, attempt.input, self.setting.agent, self.setting.socket)
        call.begin(self._handler, argument)

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """See `Executor`."""
        call = self._running.get(attempt.key)
        if call is not None:
            call.stop(grace_s)

    def close(self) -> None:
        """See `Executor`."""
        for slot in self._idle:
            slot.work.put(None)
        for capture in self._captures or ():
            capture.close()

    # ------------------------------------------------------------------ used by _Call

    @property
    def captures(self) -> tuple[Capture, Capture] | None:
        return self._captures

    def finish(self, call: _Call) -> None:
        del self._running[call.attempt.key]
        if not call.is_stuck:
            self._idle.append(call.slot)

    def give_up(self) -> None:
        self._give_up()


class _Call:
    """One attempt from its start to its report."""

    def __init__(self, owner: HandlerExecutor, attempt: Attempt, ended: Ended, slot: _Slot) -> None:
        self.owner = owner
        self.attempt = attempt
        self.slot = slot
        self.is_stuck = False
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None
        self._kept: tuple[int, int] | None = None

    def begin(self, handler: Callable[[Any], Any], argument: Any) -> None:
        owner = self.owner
        owner.remains.handlers += 1
        if owner.captures is not None:
            self._redirect(owner.captures)
        self.slot.is_cancelled = False
        self.slot.work.put(lambda: self._work(handler, argument))
        bounds = owner.setting.kind.bounds
        if (bound := time_bound(self.attempt, bounds)) is not None:
            self._timer = owner.loop.call_later(bound.after_s, self._timed_out, bound.error)
        if bounds.rss_bytes is not None:
            owner.memory.watch(self.attempt.key, bounds.rss_bytes, self._processes, self._grew)

    def _work(self, handler: Callable[[Any], Any], argument: Any) -> None:
        """In the slot's thread."""
        try:
            ending = Ending("done", value=encode_value(self.slot.call(handler, argument)))
        except RateLimitedError as error:  # a limit was met: nobody's failure
            ending = Ending("limited", error=error.as_dict(), resets_in_s=error.retry_after_s)
        except MusterError as error:
            ending = Ending("failed", error=error.as_dict())
        except (
            BaseException
        ) as error:  # SystemExit and KeyboardInterrupt as well: a handler may end itself, not the worker
            ending = Ending("failed", error=describe(error))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the worker is ending
            self.owner.loop.call_soon_threadsafe(self._returned, ending)

    def _returned(self, ending: Ending) -> None:
        if self.is_stuck:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.owner.remains.handlers -= 1
        self.owner.memory.forget(self.attempt.key)
        self._restore()
        if self.attempt.breach is not None:
            ending = Ending("failed", error=self.attempt.breach.as_dict())
        elif self.attempt.stop:
            ending = Ending(self.attempt.stop, error=ending.error)
        self._clear(ending)

    def _clear(self, ending: Ending) -> None:
        """Report when no process is left that the handler started."""
        attempt = self.attempt
        remains = self.owner.remains
        if not remains.is_clear() and not remains.clear(
            Marks.of(-1, self.owner.setting.agent, attempt.number, attempt.attempt)
        ):
            self.owner.loop.call_later(_CLEAR_AGAIN_S, self._clear, ending)
            return
        if self.owner.captures is not None:
            name = f"{attempt.number}.{attempt.attempt}"
            out, err = self.owner.captures
            ending.outputs = (out.take(f"{name}.out"), err.take(f"{name}.err"))
        self.owner.finish(self)
        self._ended(attempt, result_of(attempt, ending))

    # ------------------------------------------------------------------ stopping

    def _timed_out(self, breach: AttemptLimitError | None) -> None:
        self.attempt.stop, self.attempt.breach = "timeout", breach
        self.stop(self.owner.setting.kind.kill_grace_s)

    def stop(self, grace_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.slot.cancel()
        self._timer = self.owner.loop.call_later(grace_s, self._stuck)

    def _stuck(self) -> None:
        """The thread cannot be ended; its process can. The report is stored first, so that the attempt is not tried again as lost."""
        self.is_stuck = True
        if self._timer is not None:
            self._timer.cancel()
        self._restore()
        self.owner.remains.kill_all()
        self.owner.finish(self)
        # From here to the end of the process the handler should get no more turns: the next switch of threads is far away.
        sys.setswitchinterval(10.0)
        if (breach := self.attempt.breach) is not None:
            ending = Ending("failed", error=breach.as_dict())
        else:
            reason = "the handler did not end in time, so its worker was replaced"
            error = {"type": "TimeoutError", "message": reason, "traceback": ""}
            ending = Ending(self.attempt.stop or "timeout", error=error)
        self._ended(self.attempt, result_of(self.attempt, ending))
        self.owner.give_up()

    def _processes(self) -> list[int]:
        """The handler's memory is this process's, and that of what it started."""
        return [os.getpid(), *descendants_of(os.getpid())]

    def _grew(self, breach: AttemptLimitError) -> None:
        """Memory that a thread holds is given back by the end of its process only."""
        if not self.is_stuck:
            self.attempt.breach = breach
            self._stuck()

    # ------------------------------------------------------------------ output

    def _redirect(self, captures: tuple[Capture, Capture]) -> None:
        self._kept = (os.dup(1), os.dup(2))
        for fd, capture in zip((1, 2), captures, strict=True):
            os.dup2(capture.fd, fd)

    def _restore(self) -> None:
        if self._kept is not None:
            for fd, kept in zip((1, 2), self._kept, strict=True):
                os.dup2(kept, fd)
                os.close(kept)
            self._kept = None


def encode_value(value: Any) -> msgspec.Raw | None:
    """A handler's value, encoded once: the result message carries these bytes.

    Raises:
        BodyEncodingError: The value is of a type that msgpack does not know.
        BodyTooLargeError: It is too large for a result message.
    """
    if value is None:
        return None
    try:
        raw = msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError) as error:
        raise BodyEncodingError(f"the handler returned a {type(value).__name__} that cannot be sent: {error}") from None
    if len(raw) > VALUE_BYTES_MAX:
        raise BodyTooLargeError(
            f"the handler returned {len(raw):,} bytes, more than the {VALUE_BYTES_MAX:,} of a result; write a file and return its path",
            body_bytes=len(raw),
        )
    return msgspec.Raw(raw)


def describe(error: BaseException) -> dict[str, Any]:
    """A handler's exception as the result shows it, bounded; frames of muster and the event loop are left out."""
    frames = error.__traceback__
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith((__name__, "asyncio.")):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
        message = str(error)
    except BaseException:  # a __str__ that raises
        text, message = "", "(an exception that cannot be shown)"
    if len(text) > TRACEBACK_CHARS_MAX:
        text = "…" + text[-TRACEBACK_CHARS_MAX:]
    return {"type": type(error).__name__, "message": message[:MESSAGE_CHARS_MAX], "traceback": text}
