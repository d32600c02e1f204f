"""The embedded engine: an identity's lanes, in both directions, behind the transport port (`muster.bus.transport`).

Everything here is synchronous and short: stores into mapped pages, `pread`, and a bell. Waiting is the bus's business.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from muster.bus.transport import BusStats, Capabilities, Inbound
from muster.bus.transports.lanes import inspect, layout, locks
from muster.bus.transports.lanes.bell import PeerBells
from muster.bus.transports.lanes.inbox import Inbox
from muster.bus.transports.lanes.outbox import Outbox
from muster.bus.transports.lanes.words import refusal
from muster.core import limits
from muster.errors import IdentityBusyError, UnknownAgentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from muster.core.codec import Outgoing
    from muster.security.keys import Keyring


class LanesTransport:
    """One identity on one machine's store. Holds `inbox.lock` (if it consumes) and `outbox.lock` (if it sends) until closed."""

    def __init__(
        self, store: Path, agent: str, keyring: Keyring, *, consume: bool = True, send: bool = True, wait_s: float = 0.0
    ) -> None:
        """Take the identity.

        Raises:
            UnknownAgentError: It is not on the roster.
            IdentityBusyError: A living process holds it; nothing was changed.
        """
        if not layout.has_agent(store, agent):
            raise UnknownAgentError(f"{agent} is not on the roster of {store.name}", agent=agent)
        self.store = store
        self.agent = agent
        self.stats = BusStats()
        self._pid = os.getpid()
        self._locks: list[str] = []
        self._bells = PeerBells()
        self._inbox: Inbox | None = None
        settings = layout.read_settings(store)
        self.capabilities = Capabilities("lanes", durable=settings.durable, many_processes=True, many_machines=False)
        self._outbox = Outbox(store, keyring, self._bells, self.stats, settings)
        base = layout.agent_dir(store, agent)
        try:
            for wanted, name in ((consume, "inbox.lock"), (send, "outbox.lock")):
                if wanted:
                    self._lock(f"{base}/{name}", wait_s)
            if consume:
                self._inbox = Inbox(store, keyring, self._bells, self.stats, settings)
        except OSError as error:
            self.close()
            raise refusal(error, f"{agent} cannot be opened") from None
        except BaseException:
            self.close()
            raise
        # The hot path goes straight to the halves.
        self.take = self._inbox.take if self._inbox is not None else self._refuse_take
        self.ack = self._inbox.ack if self._inbox is not None else self._refuse_ack
        self.put = self._outbox.put if send else self._refuse_put
        self.begin_flush = self._outbox.begin_flush
        self.end_flush = self._outbox.end_flush
        self.flush = self._outbox.flush
        self.number_for_room = self._outbox.number_for_room
        self.knows = self._outbox.knows
        self.state = self._outbox.state
        self.want = self._outbox.want
        self.ring_again = self._outbox.ring_again
        self.resume = self._outbox.resume if send else self._leave_outbox

    def _lock(self, path: str, wait_s: float) -> None:
        # Whoever acts for an identity that nobody holds has its lock for a moment (overflow.act_for_absent).
        wait_s = max(wait_s, limits.ABSENT_LOCK_S)
        if not locks.acquire(path, wait_s=wait_s):
            pid = locks.holder(path)
            raise IdentityBusyError(
                f"{self.agent} is already in use by process {pid}", retry_after_s=1.0, agent=self.agent, pid=pid
            )
        self._locks.append(path)

    def _refuse_put(self, recipient: str, _out: Outgoing) -> int:
        raise UsageError(f"this bus of {self.agent} was opened without sending; nothing was sent to {recipient}")

    @staticmethod
    def _leave_outbox() -> None:
        """Without `outbox.lock` the files of the outbox are another process's to repair and to free."""

    def _refuse_take(self, *, control_only: bool = False) -> Inbound | None:
        del control_only
        return self.inbox.take()

    def _refuse_ack(self, inbound: Inbound) -> bool:
        return self.inbox.ack(inbound)

    @property
    def inbox(self) -> Inbox:
        """The receiving half. Raises UsageError if this identity does not consume."""
        if self._inbox is None:
            raise UsageError(f"this bus of {self.agent} was opened without receiving")
        return self._inbox

    @property
    def on_ready(self) -> Callable[[], None]:
        return self.inbox.on_ready

    @on_ready.setter
    def on_ready(self, call: Callable[[], None]) -> None:
        if self._inbox is not None:
            self._inbox.on_ready = call

    def set_overflow(self, policy: str) -> None:
        """See Inbox.set_overflow."""
        self.inbox.set_overflow(policy)

    @property
    def attempts_max(self) -> int:
        return self._inbox.attempts_max if self._inbox is not None else limits.ATTEMPTS_MAX

    @property
    def gaps(self) -> list[tuple[str, int, int]]:
        """(lane, first, last) of numbers lost to damage, the newest 100."""
        return self.inbox.gaps

    def fileno(self) -> int:
        """The bell; readable when there may be something to do. -1 if this identity does not consume."""
        return self._inbox.lookout.bell.fd if self._inbox is not None else -1

    def on_bell(self) -> bool:
        """Drain the bell and note which lanes to look at. True if the recipients of ours acked something."""
        assert self._inbox is not None
        acked, overflow = self._inbox.on_bell()
        if acked:
            for name in acked:
                self._outbox.acked(name)
            return True
        return overflow

    def take_all_from(self, sender: str) -> list[Inbound]:
        return self.inbox.take_all_from(sender)

    def listen_to(self, senders: Collection[str] | None) -> None:
        self.inbox.listen_to(senders)

    def scan(self) -> int:
        return self.inbox.scan()

    def sweep(self) -> None:
        self.inbox.sweep()

    def kill(self, inbound: Inbound, reason: str) -> bool:
        return self.inbox.kill(inbound, reason)

    def again(self, inbound: Inbound) -> int:
        return self.inbox.again(inbound)

    def uncount(self, inbound: Inbound) -> None:
        self.inbox.uncount(inbound)

    @property
    def is_ready(self) -> bool:
        return self._inbox is not None and self._inbox.is_ready

    @property
    def holds_back(self) -> bool:
        return self._inbox is not None and self._inbox.holds_back

    def roster(self) -> list[str]:
        return layout.roster(self.store)

    def depth(self, agent: str) -> int:
        if agent == self.agent and self._inbox is not None:
            return self._inbox.depth()
        return inspect.inbox_depth(self.store, agent)

    def close(self) -> None:
        """Let go of the identity; what is in hand stays untouched and is delivered again to whoever comes next."""
        if self._pid == os.getpid():
            self._outbox.close()
            if self._inbox is not None:
                self._inbox.close()
                self._inbox = None
            self._bells.close()
            for path in self._locks:
                locks.release(path)
        self._locks.clear()
