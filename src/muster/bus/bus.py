"""One identity on a fleet's bus: send, ask, publish, receive. The waiting is here; storing and reading are the transport's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from muster.bus import groups
from muster.bus.delivery import Delivery, Receipt
from muster.bus.envelope import outgoing, put_caused
from muster.bus.group_commit import GroupCommit
from muster.bus.services import Services
from muster.bus.upkeep import Upkeep
from muster.bus.waiting import LOOK_AGAIN_S, Waiters, set_done, wait_for_room
from muster.core import limits
from muster.core.guard import EchoGuard
from muster.core.message import EXTRA_CAUSATION, EXTRA_CORRELATION, EXTRA_REPLY_TO, Message
from muster.errors import AskTimeoutError, BusClosedError, BusError, InboxFullError, OutboxFullError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from pathlib import Path

    from muster.bus.transport import BusStats, Inbound, Transport
    from muster.security.keys import Keyring

#: Immediate receives in a row before other tasks of the loop get a turn.
_TURN = 64


class Bus(Services):
    """An identity's side of the bus. Make one with `muster.join` or `Bus.open`; use it in the loop that opened it."""

    def __init__(self, transport: Transport, *, store: Path | None = None) -> None:
        self.transport = transport
        self.id = transport.agent
        self.store = store
        self.closed = False
        self.stats: BusStats = transport.stats
        self.guard = EchoGuard()
        self._put, self._take, self._transport_ack = transport.put, transport.take, transport.ack
        self._durable = transport.capabilities.durable
        self._in_hand: set[Inbound] = set()
        self._local: deque[Inbound] = deque()  # given back, or control messages met while pumping replies
        self._asks: dict[str, asyncio.Future[Message | None]] = {}
        self._receivers, self._ack_waiters = Waiters(), Waiters()
        self._awaited: dict[tuple[str, bool], list[int]] = {}  # numbers whose verdict is awaited, per lane
        self._in_row, self._told = 0, False
        self._wakers: list[Callable[[], None]] = []
        self._fileno = transport.fileno()
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # without a running loop only the synchronous calls work
            self._loop = asyncio.get_running_loop()
        self._upkeep = Upkeep(transport, self._loop, self._sweep)
        self._group = GroupCommit(transport, self._loop) if self._durable and self._loop is not None else None
        if transport.fileno() >= 0:
            transport.on_ready = self._on_ready
        if self._loop is not None and transport.fileno() >= 0:
            self._loop.add_reader(transport.fileno(), self._on_bell)

    @classmethod
    async def open(
        cls, store: Path, agent: str, keyring: Keyring, *, consume: bool = True, send: bool = True, wait_s: float = 0.0
    ) -> Bus:
        """Take the identity `agent` of the fleet at `store`.

        Raises:
            UnknownAgentError: It is not on the roster.
            IdentityBusyError: A living process holds it, and did not let go within `wait_s`.
        """
        from muster.bus.transports.lanes.transport import LanesTransport

        deadline = time.monotonic() + wait_s
        while True:
            try:
                return cls(LanesTransport(store, agent, keyring, consume=consume, send=send), store=store)
            except BusError as error:
                if error.code != "bus.identity_busy" or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    def post(self, to: str, body: object = None, **envelope: Any) -> Receipt:
        """Store one message for `to` and return at once; see `send` for the envelope, promises and errors. The hot path.

        In a durable store this blocks until the disk has it: prefer `send`, which shares one wait among all who send at a time.
        """
        receipt = self._post(to, body, envelope)
        if self._durable:
            self.transport.flush()
        return receipt

    def _post(self, to: str, body: object, envelope: Mapping[str, Any]) -> Receipt:
        if self.closed:
            raise BusClosedError("this bus is closed")
        out = outgoing(body, envelope)
        try:
            seq = put_caused(self, to, out, envelope) if out.hops else self._put(to, out)
        except (InboxFullError, OutboxFullError):
            self.stats.refused_full += 1
            raise
        upkeep = self._upkeep
        upkeep.pause_s = limits.RERING_S
        if upkeep.reminder is None:
            upkeep.remind_later()
        return Receipt(self, to, seq, out, envelope.get("message_id") if envelope else None)

    def post_struct(self, to: str, struct: Any, *, priority: str = "normal", message_id: str | None = None) -> Receipt:
        """`post` of one of muster's own messages (`core.protocol`); its type is found from its class."""
        from muster.core.protocol import TYPE_OF

        return self.post(to, struct, type=TYPE_OF[struct.__class__], priority=priority, message_id=message_id)

    async def send(self, to: str, body: object = None, *, wait_s: float | None = None, **envelope: Any) -> Receipt:
        """Put one message in another agent's inbox.

        When this returns the message survives the death of any process; it survives a reboot only if the transport's capabilities
        say `durable`. Stored is not handled: the recipient may see a message twice and should key on its id. Messages of one class from
        one sender to one recipient keep their order.

        Args:
            to: An agent of the roster.
            body: bytes as they are; anything else as msgpack, at most `limits.BODY_BYTES_MAX` bytes.
            wait_s: Wait up to this long for room, asleep: in a full inbox, or within this sender's own bounds. None: as the recipient's
                `overflow` says, which is not at all unless it wants its senders to wait, or evicts its oldest messages to make room.
            envelope: type, priority ("normal" or "control"), message_id (sent again within the window it adds no second copy),
                expires_in_s, correlation_id, causation_id, traceparent. `cause=delivery` says "because of this one": it sets the
                last three, and lets muster stop agents that answer each other without end.

        Raises:
            UnknownAgentError, InvalidNameError, BodyTooLargeError, BodyEncodingError: Nothing was written; retrying cannot help.
            InboxFullError, OutboxFullError, StoreFullError: Nothing was written; wait `retry_after_s`.
            EchoStormError: Too long a chain, or too many messages to this recipient, that other messages caused; nothing was written.
            StoreError: The disk of a durable store refused; the message was not accepted, though it may still be delivered.
            BusClosedError: `close` was called first.
        """
        try:
            receipt = self._post(to, body, envelope)
        except (InboxFullError, OutboxFullError) as error:
            receipt = await wait_for_room(self, to, wait_s, error, lambda: self._post(to, body, envelope))
        if self._durable:
            if self._group is None:
                raise UsageError("send needs a running loop in a durable store; post blocks instead")
            await self._group.wait()
        return receipt

    async def ask(
        self, to: str, body: object = None, *, type: str = "ask", timeout_s: float = 30.0, **envelope: Any
    ) -> Message:
        """Send a request and wait for the reply that names it.

        Raises:
            AskTimeoutError: No reply within `timeout_s`; the request was stored and may still be handled; a late reply is dropped.
            Else as `send`.
        """
        if self._loop is None or self.transport.fileno() < 0:
            raise UsageError("ask needs a bus that consumes its inbox, in a running loop")
        deadline = time.monotonic() + timeout_s
        receipt = await self.send(to, body, type=type, wait_s=timeout_s, reply_to=self.id, **envelope)
        asked = receipt.id
        future: asyncio.Future[Message | None] = self._loop.create_future()
        self._asks[asked] = future
        timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), set_done, future)
        try:
            self._pump_replies()
            reply = await future
        finally:
            timer.cancel()
            self._asks.pop(asked, None)
        if reply is None:
            raise AskTimeoutError(f"{to} did not reply within {timeout_s:g} s", recipient=to)
        return reply

    async def publish(self, group: str, body: object = None, **envelope: Any) -> list[Receipt]:
        """Send to every agent of a group but oneself: "@all", "@workers", or "@KIND" of the fleet's spec.

        Not atomic: an error for one recipient is raised after the others got theirs; its `facts["failed"]` lists who did not.

        Raises:
            UnknownAgentError: No such group; nothing was written.
        """
        return await groups.publish(self, group, body, envelope)

    def members(self, group: str) -> list[str]:
        """The agents of a group, without this one. Raises UnknownAgentError."""
        return groups.members(group, self.transport.roster(), self.store, self.id)

    def _reply(self, request: Message, body: object, type_: str) -> Receipt:
        return self.post(
            request.extras.get(EXTRA_REPLY_TO) or request.sender, body, type=type_, priority="control",
            correlation_id=request.id, causation_id=request.id,
            hops=min(request.hops + 1, self.hops_max),  # whatever was asked can be answered
        )  # fmt: skip

    def receive_nowait(self) -> Delivery | None:
        """The next delivery if there is one now. Replies to asks are handed to whoever asked, not returned here."""
        delivery = self._next()
        # Without a turn of the loop nobody has looked at the bell yet.
        while delivery is None and self._fileno >= 0 and self._hear():
            delivery = self._next()
        return delivery

    def _next(self) -> Delivery | None:
        """The next delivery of the lanes that are known to be ready."""
        while True:
            if self._local:
                inbound: Inbound | None = self._local.popleft()
            else:
                inbound = self._take()
            if inbound is None:
                return None
            if inbound.message.control and self._take_reply(inbound):
                continue
            self._in_hand.add(inbound)
            return Delivery(self, inbound)

    async def receive(self, *, timeout_s: float | None = None) -> Delivery | None:
        """The next delivery, waiting for it; None when `timeout_s` has passed. Raises BusClosedError once the bus is closed."""
        deadline: float | None = None
        while True:
            if self.closed:
                raise BusClosedError("this bus is closed")
            delivery = self._next()  # who rings is heard by the loop
            if delivery is not None:
                self._in_row += 1
                if self._in_row >= _TURN:
                    self._in_row = 0
                    try:
                        await asyncio.sleep(0)
                    except asyncio.CancelledError:
                        delivery.release()
                        raise
                return delivery
            self._in_row = 0
            if self._loop is None or self._fileno < 0:
                raise UsageError("receive needs a bus that consumes its inbox, in a running loop")
            remaining = None
            if timeout_s is not None:
                deadline = deadline or time.monotonic() + timeout_s
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
            await self._receivers.wait(remaining)

    async def inbox(self) -> AsyncIterator[Delivery]:
        """Deliveries as they come, until the bus is closed."""
        while True:
            try:
                delivery = await self.receive()
            except BusClosedError:
                return
            if delivery is not None:
                yield delivery

    def drain_sender(self, sender: str) -> list[Delivery]:
        """Everything `sender` has stored for this identity and that was not taken yet; final once the sender is proven dead."""
        deliveries = []
        for inbound in self.transport.take_all_from(sender):
            if not (inbound.message.control and self._take_reply(inbound)):
                self._in_hand.add(inbound)
                deliveries.append(Delivery(self, inbound))
        return deliveries

    def listen_to(self, senders: Collection[str] | None) -> None:
        """Take normal messages of these senders only (None: of everybody, as at the start); control messages always come.

        What others store waits in their lanes: untaken, counting no attempt, keeping their credit in use.
        """
        self.transport.listen_to(senders)
        if self.transport.is_ready:
            self._receivers.wake()

    def on_wake(self, call: Callable[[], None]) -> None:
        """Call `call` in the loop whenever the bell rang: for loops that take with `receive_nowait` instead of awaiting `receive`."""
        self._wakers.append(call)

    def _take_reply(self, inbound: Inbound) -> bool:
        """Hand a reply to its asker. True if it was one (late ones are counted and dropped)."""
        extras = inbound.message.extras
        asked = extras.get(EXTRA_CORRELATION)
        # A reply names the request twice, also as its cause; others may name what they belong to.
        if asked is None or extras.get(EXTRA_CAUSATION) != asked or EXTRA_REPLY_TO in extras:
            return False
        future = self._asks.get(asked)
        if future is None or future.done():
            self.stats.late_replies += 1
        else:
            future.set_result(inbound.message)
        self.transport.ack(inbound)
        return True

    def _pump_replies(self) -> None:
        while (inbound := self.transport.take(control_only=True)) is not None:
            if not self._take_reply(inbound):
                self._local.append(inbound)

    def _on_ready(self) -> None:
        """An ack let a lane go on that had waited for it: nobody will ring for that."""
        if not self._told and (self._receivers or self._wakers):
            self._told = True  # in a later turn: whoever acks is in the middle of something
            self._upkeep.later(0.0, self._news)

    def _nack(self, inbound: Inbound, reason: str, delay_s: float) -> None:
        self.stats.nacked += 1
        if inbound.attempt >= self.transport.attempts_max:
            self._kill(inbound, reason or f"given back {inbound.attempt} times")
            return
        self._upkeep.later(delay_s, lambda: self._deliver_again(inbound)) if delay_s > 0 else self._deliver_again(
            inbound
        )

    def _deliver_again(self, inbound: Inbound) -> None:
        self.transport.again(inbound)
        self._local.append(inbound)
        self._receivers.wake()

    def _release(self, inbound: Inbound) -> None:
        self.transport.uncount(inbound)
        if not self.closed:
            self.transport.again(inbound)
            self._local.appendleft(inbound)
            self._receivers.wake()

    def _kill(self, inbound: Inbound, reason: str) -> None:
        self.transport.kill(inbound, reason)
        self._receivers.wake()

    def _hear(self) -> bool:
        """Drain the bell; wake those who wait for acks."""
        if self.transport.on_bell():
            self._ack_waiters.wake()
        return self.transport.is_ready

    def _on_bell(self) -> None:
        self._hear()
        if self._asks and not self._receivers:
            self._pump_replies()
        self._news()

    def _news(self) -> None:
        self._told = False
        self._receivers.wake()
        for call in self._wakers:
            call()

    async def _next_ack(self, timeout_s: float) -> bool:
        """Until some ack bell rings, or `timeout_s`; whether one rang. A bus that does not consume has none."""
        return await self._ack_waiters.wait(timeout_s)

    def _sweep(self) -> None:
        if not self.closed:
            self._hear()  # what was rung for is no find of the sweep
            self.transport.sweep()
            if self.transport.is_ready:
                self._news()

    @property
    def gaps(self) -> list[tuple[str, int, int]]:
        """(lane, first, last) of numbers that never come, because they were damaged or evicted: the newest 100."""
        return self.transport.gaps

    def roster(self) -> list[str]:
        """Every agent of the fleet, by name."""
        return self.transport.roster()

    def depth(self, agent: str | None = None) -> int:
        """Messages stored for `agent` (default: this one) and not finalised."""
        return self.transport.depth(agent or self.id)

    async def close(self) -> None:
        """Let go of the identity. What is in hand is given back, counts no attempt, and goes to whoever joins next. Safe twice."""
        if self.closed:
            return
        self.closed = True
        if self._group is not None:
            self._group.closed = True
        for inbound in (*self._in_hand, *self._local):
            self.transport.uncount(inbound)
        self._in_hand.clear()
        self._local.clear()
        if self._loop is not None and self.transport.fileno() >= 0:
            self._loop.remove_reader(self.transport.fileno())
        self._upkeep.close()
        for future in self._asks.values():
            if not future.done():
                future.set_exception(BusClosedError("this bus was closed while it waited for a reply"))
        self._receivers.wake()
        self._ack_waiters.wake()
        self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
