"""`muster.Agent`: a standing program of one's own as an agent of a fleet, without a worker.

agent = muster.Agent("reviewer")

@agent.on("review")
async def review(files: list[str]) -> dict[str, int]:
return {"findings": len(files)}        # the answer, if it was asked

agent.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import signal
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.envelope import around
from muster.bus.store import add_agent, open_store
from muster.core import limits
from muster.core.message import EXTRA_REPLY_TO
from muster.core.names import agent_id
from muster.errors import BodyEncodingError, UsageError
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.bus.grant import Limited
    from muster.bus.lease import Locked

Handler = TypeVar("Handler", bound="Callable[[Any], Any]")

#: The handler for every type that has none of its own.
ANY = "*"


class Agent:
    """Receives, calls the handler of the message's type, acks when it returns, gives the message back when it raises.

    A handler takes one argument: the body, decoded to its annotation if it has one, or the `Delivery` if it is annotated so. Sync handlers
    run in threads. A value that is returned to an ask is its reply. A message that was given back too often, or that no handler
    is for, becomes a dead letter with its reason.
    """

    def __init__(self, name: str | None = None, *, store: str | os.PathLike[str] | None = None, slots: int = 1) -> None:
        """Name the agent and the store of its fleet; by default MUSTER_AGENT and MUSTER_STORE. `slots`: messages handled at once.

        Raises:
            InvalidNameError: The name cannot be an agent's.
            UsageError: No name, no store, or fewer than one slot.
        """
        self.id = agent_id(name if name is not None else _setting("MUSTER_AGENT", "a name"))
        self._store = store
        self._slots = slots
        if slots < 1:
            raise UsageError(f"an agent needs at least one slot, not {slots}")
        self._handlers: dict[str, tuple[Callable[[Any], Any], Any]] = {}
        self._stopping: asyncio.Event | None = None
        self._bus: Bus | None = None

    def on(self, type: str) -> Callable[[Handler], Handler]:
        """Make a function the handler of messages of `type`; "*" for every type without a handler of its own.

        Raises:
            UsageError: The type has a handler already.
        """

        def register(handler: Handler) -> Handler:
            if type in self._handlers:
                raise UsageError(f"messages of type {type!r} have a handler already")
            self._handlers[type] = (handler, _wanted(handler))
            return handler

        return register

    @property
    def bus(self) -> Bus:
        """The agent's bus, for async handlers that send. Raises UsageError while the agent does not run."""
        if self._bus is None:
            raise UsageError(f"{self.id} is not running")
        return self._bus

    def limit(self, name: str, *, requests: int = 1, timeout_s: float | None = None, **amounts: int) -> Limited:
        """Credit of a limit of the whole fleet: `async with agent.limit("anthropic", tokens=1200) as grant:`. See `Bus.limit`.

        A handler that is refused by the resource says so (`grant.refused(retry_after_s=30)`) and raises RateLimitedError: its task is
        tried again when the limit is over, and charged to nobody.
        """
        return self.bus.limit(name, requests=requests, timeout_s=timeout_s, **amounts)

    def lock(self, *names: str, timeout_s: float | None = None, ttl_s: float = limits.LOCK_TTL_S) -> Locked:
        """A lease on names and file globs, for async handlers: `async with agent.lock("src/api/**") as lease:`. See `Bus.lock`."""
        return self.bus.lock(*names, timeout_s=timeout_s, ttl_s=ttl_s)

    def run(self) -> None:
        """Join and work until SIGTERM, SIGINT or `stop`; what is being handled is finished, nothing more is taken.

        Raises:
            FleetNotRunningError: There is no store there.
            IdentityBusyError: Another process is this agent.
            UsageError: No store was named.
        """
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(self._run_until_signalled())

    async def _run_until_signalled(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()

    def stop(self) -> None:
        """Let `run` or `serve` end. Call it in the agent's loop."""
        if self._stopping is not None:
            self._stopping.set()

    async def serve(self) -> None:
        """Do what `run` does, in a loop that is running already and without touching signals."""
        store = open_store(Path(self._store if self._store is not None else _setting("MUSTER_STORE", "a store")))
        add_agent(store, self.id)
        self._stopping = asyncio.Event()
        async with await Bus.open(store, self.id, Keyring.from_master(load_master(store), self.id)) as bus:
            self._bus = bus
            try:
                with ThreadPoolExecutor(self._slots, thread_name_prefix=self.id) as threads:
                    await self._work(bus, threads)
            finally:
                self._bus = None

    async def _work(self, bus: Bus, threads: ThreadPoolExecutor) -> None:
        assert self._stopping is not None
        stopping = asyncio.ensure_future(self._stopping.wait())
        handling: set[asyncio.Future[Any]] = set()
        try:
            while not stopping.done():
                if len(handling) >= self._slots:
                    _, handling = await asyncio.wait({*handling, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    handling.discard(stopping)
                    continue
                receiving = asyncio.ensure_future(bus.receive())
                await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    receiving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    delivery = await receiving
                    if delivery is not None and stopping.done():
                        delivery.release()
                    elif delivery is not None:
                        handling.add(asyncio.ensure_future(self._handle(delivery, threads)))
        finally:
            stopping.cancel()
            if handling:
                await asyncio.wait(handling)

    async def _handle(self, delivery: Delivery, threads: ThreadPoolExecutor) -> None:
        found = self._handlers.get(delivery.type) or self._handlers.get(ANY)
        if found is None:
            delivery.dead_letter(f"{self.id} has no handler for messages of type {delivery.type!r}")
            return
        handler, wanted = found
        try:
            argument = delivery if wanted is Delivery else delivery.decode(wanted)
        except BodyEncodingError as error:
            delivery.dead_letter(error.message)
            return
        # The delivery decides what an exception means (it is given back, or dead); the agent goes on with the next one.
        with contextlib.suppress(Exception):
            async with delivery:
                around.set(delivery.message)  # this task's own: what the handler sends is because of it
                if inspect.iscoroutinefunction(handler):
                    value = await handler(argument)
                else:
                    run = contextvars.copy_context().run
                    value = await asyncio.get_running_loop().run_in_executor(threads, run, handler, argument)
                if value is not None and EXTRA_REPLY_TO in delivery.message.extras and delivery.is_open:
                    delivery.reply(value)


def _setting(name: str, what: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UsageError(f"muster.Agent needs {what}: pass it, or set {name}")
    return value


def _wanted(handler: Callable[[Any], Any]) -> Any:
    """What the handler's only parameter is annotated with."""
    parameters = list(inspect.signature(handler).parameters.values())
    if not parameters:
        raise UsageError(
            f"the handler {getattr(handler, '__name__', handler)!r} takes no argument; it gets the message's body"
        )
    with contextlib.suppress(Exception):  # annotations are foreign code: one that cannot be resolved is none
        return typing.get_type_hints(handler).get(parameters[0].name, Any)
    return Any


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
