"""Programs beside a simulated fleet that lock names and globs, as `bus.lease` does it: ask, wait, confirm, renew, let go.

Each believes that it holds its lock until its own steady clock says that the lease is over; the watch compares the beliefs of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from muster.bus.envelope import outgoing
from muster.core.names import COORDINATOR
from muster.core.protocol import TYPE_OF
from muster.core.requests import Done, LockAcquire, LockRelease, LockRenew
from muster.errors import InboxFullError
from muster.testing.simulator.lanes import LaneTransport

if TYPE_CHECKING:
    from random import Random

    from muster.testing.simulator.world import World

#: What there is to lock: names that meet each other, and one that meets none.
NAMES: Final = ("src/api", "src/*", "src/**", "docs")
ASK_AGAIN_S: Final = 10.0


class LockClient:
    """One program; when it is killed, the next one of its name begins with nothing."""

    def __init__(self, world: World, name: str, rng: Random) -> None:
        self.world, self.name, self.rng = world, name, rng
        self.process = world.process(name)
        self._transport = LaneTransport(world.lanes, name, self.process)
        self._transport.on_arrival = self._read
        self._asked: dict[str, tuple[msgspec.Struct, float]] = {}
        self._asks = 0
        #: Of the lock that is wanted or held.
        self.lock_id, self.names, self.ttl_s = "", [""], 0.0
        self.token = 0
        self.stored_s = 0.0
        self.process.on_exit = lambda _status, _signal: world.client_died(self)
        self.process.call_later(rng.uniform(0.0, 2.0), self._want)

    @property
    def believes(self) -> bool:
        """Whether it would go on as if it held its lock."""
        is_in_time = self.world.timeline.now_s - self.stored_s <= self.ttl_s
        return bool(self.token) and self.process.is_alive and is_in_time

    # ------------------------------------------------------------------ one lock after another

    def _want(self) -> None:
        if not self.world.are_faults_on:
            return
        self._asks += 1
        self.lock_id = f"{self.name}-{self.process.pid}-{self._asks:06d}"
        self.names = self.rng.sample(NAMES, self.rng.choice([1, 1, 2]))
        self.ttl_s = self.rng.choice([1.0, 5.0])
        self._acquire(patient=False)

    def _acquire(self, *, patient: bool) -> None:
        process = self.process.pid, self.process.pid, self.world.NAMESPACE
        wait_s = self.rng.choice([None, 3.0])
        self._ask(
            LockAcquire(
                lock_id=self.lock_id, names=self.names, ttl_s=self.ttl_s, wait_s=wait_s, patient=patient,
                pid=process[0], start_time=process[1], namespace=process[2],
            )
        )  # fmt: skip

    def _ask(self, body: msgspec.Struct) -> None:
        self._asks += 1
        message_id = f"{self.name}-{self.process.pid}-{self._asks:06d}"
        envelope = {"type": TYPE_OF[type(body)], "priority": "control", "message_id": message_id, "reply_to": self.name}
        begun_s = self.world.timeline.now_s
        try:
            self._transport.put(COORDINATOR, outgoing(body, envelope))
        except InboxFullError:
            self.process.call_later(0.2, self._again, body)
            return
        self._asked[message_id] = body, begun_s
        if isinstance(body, LockRenew) and self.token:
            self.stored_s = begun_s  # read before anybody else is given it
        if isinstance(body, LockAcquire):
            self.process.call_later(ASK_AGAIN_S, self._still_waiting, message_id, body)

    def _again(self, body: msgspec.Struct) -> None:
        if isinstance(body, LockRelease) or getattr(body, "lock_id", "") == self.lock_id:
            self._ask(body)

    def _still_waiting(self, message_id: str, body: LockAcquire) -> None:
        if message_id in self._asked and body.lock_id == self.lock_id and not self.token:
            self._ask(msgspec.structs.replace(body, patient=False))

    # ------------------------------------------------------------------ answers

    def _read(self) -> None:
        while (inbound := self._transport.take()) is not None:
            message = inbound.message
            self._transport.ack(inbound)
            asked = self._asked.pop(message.correlation_id or "", None)
            if asked is not None and getattr(asked[0], "lock_id", "") == self.lock_id:
                self._answered(asked[0], asked[1], message.decode(Done))

    def _answered(self, body: msgspec.Struct, begun_s: float, done: Done) -> None:
        if isinstance(body, LockRelease):
            return
        if not done.ok:
            self._lose()
        elif isinstance(body, LockRenew):
            self._hold(begun_s, int(done.facts["token"]))
        elif done.facts["state"] == "waiting":
            self._acquire(patient=True)
        elif body.patient:  # type: ignore[attr-defined]
            self._ask(LockRenew(lock_id=self.lock_id))
        else:
            self._hold(begun_s, int(done.facts["token"]))

    def _hold(self, begun_s: float, token: int) -> None:
        is_new = not self.token
        if self.world.timeline.now_s - begun_s > self.ttl_s:
            self._lose()
            return
        self.stored_s = max(begun_s, self.stored_s) if self.token else begun_s
        self.token = token
        if is_new:
            self.world.watch.locked(self)
            self.process.call_later(self.ttl_s / 3, self._renew, self.lock_id)
            self.process.call_later(self.rng.choice([0.05, 1.0, 8.0]), self._release, self.lock_id)

    def _renew(self, lock_id: str) -> None:
        if lock_id != self.lock_id or not self.token:
            return
        if not self.believes:
            self._lose()
            return
        self._ask(LockRenew(lock_id=lock_id))
        self.process.call_later(self.ttl_s / 3, self._renew, lock_id)

    def _release(self, lock_id: str) -> None:
        if lock_id == self.lock_id and self.token:
            self.world.watch.unlocked(self)
            self.token, self.lock_id, self.stored_s = 0, "", 0.0
            self._ask(LockRelease(lock_id=lock_id))
            self.process.call_later(self.rng.uniform(0.0, 1.0), self._want)

    def _lose(self) -> None:
        self.world.watch.unlocked(self)
        self.token, self.lock_id, self.stored_s = 0, "", 0.0
        self.process.call_later(self.rng.uniform(0.1, 1.0), self._want)
