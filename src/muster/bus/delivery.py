"""What the bus hands out: deliveries to finish, receipts to look at."""

from __future__ import annotations

import asyncio
import builtins
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from muster.bus.waiting import wait_finalised
from muster.core.ids import show_id
from muster.errors import DeliveryStateError, EchoStormError

if TYPE_CHECKING:
    from types import TracebackType

    from muster.bus.bus import Bus
    from muster.bus.transport import Inbound
    from muster.core.codec import Outgoing

T = TypeVar("T")


class Delivery:
    """A message in the hands of its recipient, to be finished once: `ack`, `nack`, `release` or `dead_letter`.

    `async with delivery:` acks on success, nacks when the block raises, and releases (counting no attempt) when it is cancelled. The
    exception goes on to the caller in every case.
    """

    __slots__ = ("_bus", "_inbound", "_open", "message")

    def __init__(self, bus: Bus, inbound: Inbound) -> None:
        self._bus = bus
        self._inbound = inbound
        self._open = True
        self.message = inbound.message

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def sender(self) -> str:
        return self.message.sender

    @property
    def recipient(self) -> str:
        return self.message.recipient

    @property
    def type(self) -> str:
        return self.message.type

    @property
    def seq(self) -> int:
        """Position in the sender's sequence to this recipient; a redelivery keeps it."""
        return self.message.seq

    @property
    def attempt(self) -> int:
        """How often this message has been delivered, this time included."""
        return self._inbound.attempt

    @property
    def redelivered(self) -> bool:
        return self._inbound.attempt > 1

    @property
    def created_ns(self) -> int:
        return self.message.created_ns

    @property
    def correlation_id(self) -> str | None:
        return self.message.correlation_id

    @property
    def body(self) -> Any:
        return self.message.body

    @overload
    def decode(self, as_type: builtins.type[T]) -> T: ...
    @overload
    def decode(self, as_type: Any) -> Any: ...
    def decode(self, as_type: Any) -> Any:
        """The body as `as_type`. Raises BodyEncodingError; the delivery stays open."""
        return self.message.decode(as_type)

    def _finish(self) -> Inbound:
        if not self._open:
            raise DeliveryStateError(
                f"message {self.message.seq} from {self.message.sender} was already finished", seq=self.message.seq
            )
        self._open = False
        self._bus._in_hand.discard(self._inbound)
        return self._inbound

    @property
    def is_open(self) -> bool:
        return self._open

    def ack(self) -> None:
        """Handled; it is never delivered again. Raises DeliveryStateError if it was finished before."""
        bus = self._bus
        bus.stats.acked += 1
        bus._transport_ack(self._finish())

    def nack(self, reason: str = "", *, delay_s: float = 0.0) -> None:
        """Not handled: deliver it again after `delay_s`, or make it a dead letter once its attempts are spent."""
        self._bus._nack(self._finish(), reason, delay_s)

    def release(self) -> None:
        """Give it back untouched: delivered again soon, and this delivery counts no attempt."""
        self._bus._release(self._finish())

    def dead_letter(self, reason: str) -> None:
        """Give up on it: kept with `reason` in the inbox's dead letters, seen as `dead` by its sender."""
        self._bus._kill(self._finish(), reason)

    def reply(self, body: object = None, *, type: str = "reply") -> Receipt:
        """Answer an `ask` (control class, correlated). Does not finish the delivery. Raises what `Bus.post` raises."""
        return self._bus._reply(self.message, body, type)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if kind is None:
            self.ack()
        elif issubclass(kind, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
            self.release()
        elif isinstance(error, EchoStormError) and error.retry_after_s is None:
            self.dead_letter(
                error.message
            )  # the chain is as long the next time: trying again would only repeat the work
        else:
            self.nack(f"{kind.__name__}: {error}")

    def __repr__(self) -> str:
        return f"<Delivery {self.message!r} attempt={self.attempt}{'' if self._open else ' finished'}>"


class Receipt:
    """What `send` returns: the message is stored. `state` and `wait_acked` tell the truth of what became of it since."""

    __slots__ = ("_bus", "_explicit", "control", "raw_id", "recipient", "seq")

    def __init__(self, bus: Bus, recipient: str, seq: int, out: Outgoing, explicit: str | None = None) -> None:
        self._bus = bus
        self.recipient = recipient
        self.seq = seq
        self.raw_id = out.message_id
        self.control = out.control
        self._explicit = explicit

    @property
    def id(self) -> str:
        """The id as its recipient sees it: the caller's own if it chose one."""
        return self._explicit or show_id(self.raw_id)

    @property
    def state(self) -> str:
        """`stored`, `taken`; then `acked`, `dead`, `expired`, `evicted`, `damaged`, `forged`, or, when the verdict is older than the
        recipient's window, `finalised`.
        """
        return self._bus.transport.state(self.recipient, control=self.control, seq=self.seq)

    async def wait_acked(self, *, timeout_s: float | None = None) -> None:
        """Wait until the recipient acked it.

        Raises:
            AskTimeoutError: Not within `timeout_s`; the message stays stored and may still be handled.
            BusError: It was finalised otherwise (dead letter, expired); the text says how.
        """
        await wait_finalised(self._bus, self, timeout_s)

    def __repr__(self) -> str:
        return f"<Receipt {self.recipient} seq={self.seq}>"
