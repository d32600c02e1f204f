"""The simulated operator: submits tasks, gives orders, reads what comes back. It never dies; it asks again when nobody answers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from muster.bus.envelope import outgoing
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.protocol import TYPE_OF
from muster.core.requests import Done
from muster.errors import InboxFullError
from muster.testing.simulator.lanes import LaneTransport, id_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from muster.testing.simulator.world import World

#: Waits before a refused message is tried again, and before an ask without an answer is repeated.
RETRY_S: Final = 0.2
ASK_AGAIN_S: Final = 5.0


class SimOperator:
    """One conversation with the coordinator."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_there = True
        self._transport = LaneTransport(world.lanes, OPERATOR, world.process(OPERATOR))
        self._transport.on_arrival = self._read
        self._unsent: deque[tuple[msgspec.Struct, str, Callable[[], None]]] = deque()
        self._waiting: dict[str, tuple[msgspec.Struct, Callable[[Done], None]]] = {}
        self._asked = 0
        self.refusals: list[Done] = []

    @property
    def has_said_all(self) -> bool:
        """Whether everything was stored and every ask was answered."""
        return not self._unsent and not self._waiting

    def send(self, body: msgspec.Struct, then: Callable[[], None] = lambda: None) -> None:
        """Store one message, now or when there is room; `then` is called once it is stored."""
        self._unsent.append((body, "", then))
        self._send()

    def ask(self, body: msgspec.Struct, then: Callable[[Done], None] = lambda _done: None) -> None:
        """Ask for a change until it is answered."""
        self._asked += 1
        ask_id = f"ask-{self._asked}"
        self._waiting[ask_id] = body, then
        self._ask(ask_id)

    def _ask(self, ask_id: str) -> None:
        if ask_id in self._waiting:
            self._asked += 1
            # A message of its own each time, as a client that gives up waiting and asks anew.
            self._unsent.append((self._waiting[ask_id][0], f"{ask_id}-{self._asked}", lambda: None))
            self._world.timeline.later(ASK_AGAIN_S, self._ask, ask_id)
            self._send()

    def _send(self) -> None:
        while self._unsent:
            body, ask_id, then = self._unsent[0]
            envelope: dict[str, Any] = {"type": TYPE_OF[type(body)]}
            if ask_id:
                envelope.update(message_id=ask_id, reply_to=OPERATOR)
            try:
                self._transport.put(COORDINATOR, outgoing(body, envelope))
            except InboxFullError:
                self._world.timeline.later(RETRY_S, self._send)
                return
            self._unsent.popleft()
            self._world.tell(OPERATOR, f"says {body!s:.300}")
            then()

    def _read(self) -> None:
        while (inbound := self._transport.take()) is not None:
            message = inbound.message
            self._transport.ack(inbound)
            if message.type == TYPE_OF[Done]:
                self._answered(message.correlation_id or "", message.decode(Done))
            else:
                self._world.heard.append((message.type, id_of(message)))

    def _answered(self, ask_id: str, done: Done) -> None:
        asked = self._waiting.pop(ask_id.rpartition("-")[0], None)
        self._world.tell(OPERATOR, f"hears {done}")
        if not done.ok:
            self.refusals.append(done)
        if asked is not None:
            asked[1](done)
