"""`muster.join`: an identity on a fleet's bus, for any Python program. No server to start, nothing to install beside muster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, open_store
from muster.core.names import agent_id
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from types import TracebackType

#: The fleet of programs that name none and stand below no fleet.toml.
DEFAULT_FLEET = "default"


class Joining:
    """What `join` returns: `async with` it, or `await` it and close the bus yourself."""

    def __init__(self, agent: str, fleet: str | None, store: str | os.PathLike[str] | None, wait_s: float) -> None:
        self._agent = agent_id(agent)
        self._fleet = fleet
        self._store = store
        self._wait_s = wait_s
        self._bus: Bus | None = None

    async def _open(self) -> Bus:
        store = self._place()
        add_agent(store, self._agent)
        self._bus = await Bus.open(
            store, self._agent, Keyring.from_master(load_master(store), self._agent), wait_s=self._wait_s
        )
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
    agent: str, *, fleet: str | None = None, store: str | os.PathLike[str] | None = None, wait_s: float = 0.0
) -> Joining:
    """Take an identity on a fleet's bus; the agent is put on the roster if it is new, and the store is made if there is none.

    Args:
        agent: 1 to 64 of the characters a-z A-Z 0-9 _ -; one living process at a time may hold it.
        fleet: Name of the fleet; else the one this process was started in, MUSTER_FLEET, the nearest fleet.toml, or "default".
        store: Directory of the fleet's store, instead of a name.
        wait_s: Wait this long for an identity that another process holds.

    Raises:
        InvalidNameError: At once. On entering: IdentityBusyError, UnsafePermissionsError, StoreUnsuitableError, StoreTooSmallError.
    """
    return Joining(agent, fleet, store, wait_s)
