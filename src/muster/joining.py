"""`muster.join`: an identity on a fleet's bus, for any Python program. No server to start, nothing to install beside muster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, open_store
from muster.core.names import agent_id
from muster.core.settings import check_overflow
from muster.errors import StoreError
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from types import TracebackType

#: The fleet of programs that name none and stand below no fleet.toml.
DEFAULT_FLEET = "default"


class Joining:
    """What `join` returns: `async with` it, or `await` it and close the bus yourself."""

    def __init__(
        self,
        agent: str,
        fleet: str | None,
        store: str | os.PathLike[str] | None,
        wait_s: float,
        overflow: str | None,
    ) -> None:
        self._agent = agent_id(agent)
        self._fleet = fleet
        self._store = store
        self._wait_s = wait_s
        self._overflow = None if overflow is None else check_overflow(overflow)
        self._bus: Bus | None = None

    async def _open(self) -> Bus:
        store = self._place()
        add_agent(store, self._agent)
        self._bus = await Bus.open(
            store, self._agent, Keyring.from_master(load_master(store), self._agent), wait_s=self._wait_s
        )
        if self._overflow is not None:
            try:
                self._bus.transport.set_overflow(self._overflow)
            except OSError as error:
                await self._bus.close()
                raise StoreError(f"the inbox of {self._agent} cannot be told its overflow: {error.strerror}") from None
        return self._bus

    def _place(self) -> Path:
        if self._store is not None:
            path = Path(self._store)
            return create_store(path) if path.parent.is_dir() else open_store(path)
        inherited = os.environ.get("MUSTER_STORE")
        if inherited and self._fleet is None:
            return open_store(Path(inherited))
        from muster.bus.transports.lanes import probe
        from muster.core.names import fleet_name
        from muster.fleet import places

        name = fleet_name(self._fleet or places.chosen_name(None) or DEFAULT_FLEET)
        root = places.make_private(places.state_root())
        if not (root / name).exists():
            probe.check(root)
        return create_store(root / name)

    def __await__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204 -- a generator of the event loop's own making
        return self._open().__await__()

    async def __aenter__(self) -> Bus:
        return await self._open()

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bus is not None:
            await self._bus.close()


def join(
    agent: str,
    *,
    fleet: str | None = None,
    store: str | os.PathLike[str] | None = None,
    wait_s: float = 0.0,
    overflow: str | None = None,
) -> Joining:
    """Take an identity on a fleet's bus; the agent is put on the roster if it is new, and the store is made if there is none.

    Args:
        agent: 1 to 64 of the characters a-z A-Z 0-9 _ -; one living process at a time may hold it.
        fleet: Name of the fleet; else the one this process was started in, MUSTER_FLEET, the nearest fleet.toml, or "default".
        store: Directory of the fleet's store, instead of a name.
        wait_s: Wait this long for an identity that another process holds.
        overflow: What senders meet once this inbox is full. "refuse": InboxFullError, at once. "wait": `send` waits up to
            `limits.OVERFLOW_WAIT_S` for room. "evict_oldest": the oldest normal messages that were not taken make room; each leaves a
            tombstone, a numbered gap here (`Bus.gaps`) and `evicted` in its sender's receipt. It is remembered with the inbox; None
            leaves it as it is, and that is "refuse" for a new one.

    Raises:
        InvalidNameError, ConfigError: At once. On entering: IdentityBusyError, RosterFullError, UnsafePermissionsError,
            StoreUnsuitableError, StoreTooSmallError.
    """
    return Joining(agent, fleet, store, wait_s, overflow)
