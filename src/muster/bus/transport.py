"""The port between the bus and what carries it. One contract suite (`tests/contract/`) runs over every implementation.

A transport is one identity's view: it stores what the identity sends and hands out what was stored for it. It is synchronous and never
waits; `on_bell` is called when `fileno()` is readable (or the callback given to `listen` fires), and tells whether senders were acked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from muster.core.codec import Outgoing
    from muster.core.message import Message


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do; the contract suite and `muster doctor` go by it."""

    name: str
    durable: bool  # survives a power cut
    many_processes: bool
    many_machines: bool


@dataclass(slots=True)
class BusStats:
    """Counts since the bus was opened. `sweeps_found` stays 0 while the bell works; `rerings` counts reminders to
    recipients that let messages wait for more than a second; `unreadable` counts lanes that were left aside.
    """

    sent: int = 0
    received: int = 0
    acked: int = 0
    nacked: int = 0
    dead: int = 0
    expired: int = 0
    evicted: int = 0
    refused_full: int = 0
    bad_frames: int = 0
    unreadable: int = 0
    bad_hints: int = 0
    gaps: int = 0
    rerings: int = 0
    sweeps_found: int = 0
    late_replies: int = 0
    hops_refused: int = 0


class Inbound:
    """A message in this identity's hands. `lane` and `place` (where its verdict goes) are the transport's own business."""

    __slots__ = ("attempt", "lane", "message", "place")

    def __init__(self, lane: Any, message: Message, attempt: int, place: Any = None) -> None:
        self.lane = lane
        self.message = message
        self.attempt = attempt
        self.place = place


class Transport(Protocol):
    """See the module's docstring. Errors are those of muster.errors; after a refusal nothing was written."""

    capabilities: Capabilities
    agent: str
    stats: BusStats

    @property
    def attempts_max(self) -> int: ...

    #: Called when an ack, and no bell, has made something ready.
    on_ready: Callable[[], None]

    def put(self, recipient: str, out: Outgoing) -> int: ...
    def begin_flush(self) -> list[tuple[Any, Any]]: ...
    def end_flush(self, waited: list[tuple[Any, Any]]) -> None: ...
    def flush(self) -> None: ...
    def take(self, *, control_only: bool = False) -> Inbound | None: ...
    def take_all_from(self, sender: str) -> list[Inbound]: ...
    def listen_to(self, senders: Collection[str] | None) -> None: ...
    def set_overflow(self, policy: str) -> None: ...
    @property
    def gaps(self) -> list[tuple[str, int, int]]: ...
    def ack(self, inbound: Inbound) -> bool: ...
    def kill(self, inbound: Inbound, reason: str) -> bool: ...
    def again(self, inbound: Inbound) -> int: ...
    def uncount(self, inbound: Inbound) -> None: ...
    def state(self, recipient: str, *, control: bool, seq: int) -> str: ...
    def want(self, recipient: str, *, control: bool, seq: int) -> None: ...
    def number_for_room(self, recipient: str, *, control: bool) -> int: ...
    def ring_again(self) -> bool: ...
    def resume(self) -> None: ...
    def scan(self) -> int: ...
    def sweep(self) -> None: ...
    def on_bell(self) -> bool: ...
    def fileno(self) -> int: ...
    def knows(self, agent: str) -> bool: ...
    def roster(self) -> list[str]: ...
    def depth(self, agent: str) -> int: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def holds_back(self) -> bool: ...
    def close(self) -> None: ...
