"""Leases: locks of a whole fleet, as whoever holds one sees them. The coordinator grants them (`coordinator.locks`).

A lease is renewed by itself as long as its holder's loop turns. It is over when the coordinator says so, or when no renewal could be
*stored* for its whole time. One that is stored the coordinator reads before it gives the lock to anybody else. So a holder whose
coordinator is dead or stopped keeps its lease, and one that was itself stopped for too long knows that it has lost it before it asks (Gray
and Cheriton, "Leases", 1989: the holder's time begins when it sends, the grantor's when it receives).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from muster.core import limits
from muster.core.globs import normal
from muster.core.names import COORDINATOR
from muster.core.protocol import TYPE_OF, Done, LockAcquire, LockRelease, LockRenew
from muster.errors import (
    AskTimeoutError,
    BusClosedError,
    BusError,
    FleetNotRunningError,
    LockError,
    LockLostError,
    LockTimeoutError,
    MusterError,
    UnknownAgentError,
    UsageError,
    error_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import msgspec

    from muster.bus.bus import Bus

#: Ids of the locks that the commands of `muster lock` stand under, for those that they ask for in turn.
ENVIRONMENT = "MUSTER_LOCKS"
#: How long the coordinator may take to answer at once: it may be starting again, or stopped. And when nobody wants to wait.
ANSWER_S, ANSWER_AT_ONCE_S = 60.0, 5.0
#: Whoever waits asks again so often, in case an answer had no room.
ASK_AGAIN_S = 30.0
#: The coordinator's own word about the end of a wait is worth so much longer a wait; and how long a release waits to be heard.
_WORD_S, _RELEASE_S = 0.05, 1.0

#: Locks that cannot be let go of before the one that is asked for is had: those around it in this task.
_within: ContextVar[tuple[str, ...]] = ContextVar("muster_within", default=())


class Lease:
    """A lock that is held: by whoever has this object, until `release`, or until it is lost.

    `token`: greater than that of every lock granted before in this fleet. Let what is guarded refuse smaller ones than it has seen: then a
    holder that was stopped and does not know yet that its lease is over can do no harm.
    """

    def __init__(self, bus: Bus, names: Sequence[str], ttl_s: float) -> None:
        self.names = list(names)
        self.ttl_s = ttl_s
        self.lock_id = uuid.uuid4().hex
        self.token = 0
        #: Called once, in the loop, with the reason when the lease is lost.
        self.on_lost: list[Callable[[LockLostError], None]] = []
        self._bus = bus
        self._stored_s = 0.0
        self._lost: LockLostError | None = None
        self._is_over = False
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def acquire(
        cls,
        bus: Bus,
        names: Sequence[str],
        *,
        timeout_s: float | None = None,
        ttl_s: float = limits.LOCK_TTL_S,
        within: Sequence[str] = (),
        on_wait: Callable[[dict[str, Any]], None] | None = None,
    ) -> Lease:
        """See `Bus.lock`. `on_wait` is told who holds it whenever the coordinator says so, at first and every ASK_AGAIN_S."""
        lease = cls(bus, [normal(name) for name in names], ttl_s)
        try:
            await lease._stand_in_line(timeout_s, list(within), on_wait)
        except BaseException as error:
            # Unless it was refused, an ask may still be on its way: take it back.
            if not isinstance(error, LockError | UsageError) or isinstance(error, LockTimeoutError):
                lease.abandon()
            raise
        lease._renewing = asyncio.get_running_loop().create_task(lease._renew(), name=f"lease {lease.token}")
        return lease

    @property
    def is_held(self) -> bool:
        """Whether it is held still, as far as can be known here. False for good once it was."""
        if self._lost is None and not self._is_over and time.monotonic() - self._stored_s > self.ttl_s:
            self._lose("its holder was stopped, or the store full, for longer than the lease holds")
        return self._lost is None and not self._is_over

    @property
    def lost(self) -> LockLostError | None:
        """Why it was lost, if it was."""
        return self._lost

    def check(self) -> None:
        """Raise LockLostError unless it is held."""
        if not self.is_held:
            raise self._lost or LockLostError("the lock was released already", lock_id=self.lock_id)

    async def release(self) -> None:
        """Let go. When this returns the lock is free for others, or will be as soon as the coordinator reads it. Safe twice."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._is_over or self._lost is not None:
            return
        self._is_over = True
        with contextlib.suppress(BusError):
            await self._ask(LockRelease(lock_id=self.lock_id), _RELEASE_S)

    def abandon(self) -> None:
        """Let go without waiting to be heard. Safe twice."""
        if self._renewing is not None:
            self._renewing.cancel()
        if not self._is_over and self._lost is None:
            self._is_over = True
            with contextlib.suppress(MusterError):
                self._bus.post_struct(COORDINATOR, LockRelease(lock_id=self.lock_id), priority="control")

    async def _stand_in_line(
        self, timeout_s: float | None, within: list[str], on_wait: Callable[[dict[str, Any]], None] | None
    ) -> None:
        process = _this_process()
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        patient, is_first = False, True
        while True:
            asked_s = time.monotonic()
            left_s = None if ends_s is None else max(0.0, ends_s - asked_s)
            body = LockAcquire(
                lock_id=self.lock_id, names=self.names, ttl_s=self.ttl_s, wait_s=left_s, patient=patient, within=within,
                pid=process[0], start_time=process[1], namespace=process[2],
            )  # fmt: skip
            try:
                done = await self._ask(body, _answer_s(timeout_s, left_s, patient=patient))
            except AskTimeoutError:
                if not patient or (ends_s is not None and time.monotonic() >= ends_s):
                    raise self._too_late(timeout_s, patient=patient) from None
                patient, is_first = False, False
                continue
            _check(done)
            if done.facts["state"] == "waiting":
                if on_wait is not None:
                    on_wait(done.facts)
                patient = True
            elif is_first and not patient:
                self.token, self._stored_s = int(done.facts["token"]), asked_s
                return
            elif await self._confirm():
                return
            else:
                patient, is_first, self.lock_id = False, True, uuid.uuid4().hex

    async def _confirm(self) -> bool:
        """A lock that was waited for began to hold when its turn came, which may be long ago: renew it before anybody relies on it."""
        begun_s = time.monotonic()
        done = await self._ask(LockRenew(lock_id=self.lock_id), ANSWER_S)
        if done.ok:
            self.token, self._stored_s = int(done.facts["token"]), begun_s
        return done.ok

    def _too_late(self, timeout_s: float | None, *, patient: bool) -> LockTimeoutError:
        what = ", ".join(map(repr, self.names[:3]))
        if patient:
            return LockTimeoutError(f"{what} was not free within {timeout_s:.3g} s", names=self.names)
        return LockTimeoutError(
            f"no coordinator answered that could grant {what}; nothing was locked", names=self.names
        )

    async def _renew(self) -> None:
        period_s = self.ttl_s / 3
        pause_s = period_s
        while self._lost is None:
            await asyncio.sleep(pause_s)
            pause_s = period_s
            if not self.is_held:
                return
            begun_s = time.monotonic()
            try:
                done = await self._ask(LockRenew(lock_id=self.lock_id), period_s)
            except AskTimeoutError:  # stored, and read before anybody else is given it
                self._stored_s, pause_s = begun_s, 0.0
            except BusClosedError:
                self._lose("its holder left the bus")
            except BusError:
                pause_s = period_s / 8  # no room; `is_held` says when that was too long
            else:
                if done.ok:
                    self._stored_s = begun_s
                else:
                    self._lose(done.message)

    async def _ask(self, body: msgspec.Struct, timeout_s: float) -> Done:
        type_ = TYPE_OF[type(body)]
        try:
            reply = await self._bus.ask(COORDINATOR, body, type=type_, timeout_s=timeout_s, priority="control")
        except UnknownAgentError:
            raise FleetNotRunningError("locks are granted by a fleet's coordinator, and there is none here") from None
        done: Done = reply.decode(Done)
        return done

    def _lose(self, reason: str) -> None:
        if self._lost is None and not self._is_over:
            self._lost = LockLostError(reason, lock_id=self.lock_id, token=self.token)
            for call in self.on_lost:  # later: this may be their own question whether it is held
                asyncio.get_running_loop().call_soon(call, self._lost)


class Locked:
    """What `lock` returns: `async with` it, or `await` it and release the lease yourself."""

    def __init__(self, bus: Bus, names: Sequence[str], timeout_s: float | None, ttl_s: float) -> None:
        self._bus, self._names, self._timeout_s, self._ttl_s = bus, names, timeout_s, ttl_s
        self._lease: Lease | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False

    async def _acquire(self) -> Lease:
        around = [*_within.get(), *os.environ.get(ENVIRONMENT, "").split()]
        return await Lease.acquire(self._bus, self._names, timeout_s=self._timeout_s, ttl_s=self._ttl_s, within=around)

    def __await__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204 -- a generator of the event loop's own making
        return self._acquire().__await__()

    async def __aenter__(self) -> Lease:
        lease = self._lease = await self._acquire()
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        lease.on_lost.append(self._interrupt)
        _within.set((*_within.get(), lease.lock_id))
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        lease, task = self._lease, self._task
        assert lease is not None
        assert task is not None
        self._task = None  # nobody is interrupted any more
        _within.set(tuple(lock_id for lock_id in _within.get() if lock_id != lease.lock_id))
        held = lease.is_held
        await lease.release()
        if held or lease.lost is None:
            return
        # As asyncio.timeout does it: a cancellation of ours ends here, unless somebody else wants this task to end, too.
        ours = self._interrupted and task.uncancel() <= self._cancelling
        if kind is None or (ours and issubclass(kind, asyncio.CancelledError)):
            raise lease.lost from error

    def _interrupt(self, _reason: LockLostError) -> None:
        if self._task is not None:
            self._interrupted = True
            self._task.cancel()


def _answer_s(timeout_s: float | None, left_s: float | None, *, patient: bool) -> float:
    """How long to wait for the answer to one ask."""
    if left_s is not None and (patient or timeout_s):
        return min(ASK_AGAIN_S if patient else ANSWER_S, left_s + _WORD_S)
    return ASK_AGAIN_S if patient else ANSWER_AT_ONCE_S if timeout_s == 0 else ANSWER_S


def _check(done: Done) -> None:
    if not done.ok:
        raise error_of({**done.facts, "code": done.code, "message": done.message})


def _this_process() -> tuple[int, int, int]:
    """(pid, start time, PID namespace) by which the coordinator recognises this process's death; zeros where there is no /proc."""
    try:
        with open("/proc/self/stat", "rb", buffering=0) as file:
            text = file.read(1024)
        # The command's name stands in parentheses and may contain anything.
        start_time = int(text[text.rfind(b")") + 2 :].split()[19])
        return os.getpid(), start_time, os.stat("/proc/self/ns/pid").st_ino
    except (OSError, ValueError, IndexError):
        return 0, 0, 0
