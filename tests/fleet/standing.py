"""A standing fleet of one test: up, asked, down, each of it timed from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from tests.acceptance.place import Place

from muster.bus.bus import Bus
from muster.core.names import COORDINATOR, OPERATOR
from muster.security.keys import Keyring, load_master
from muster.supervise.client import SpawnerClient

T = TypeVar("T")
NAME = "harbour"


class Standing:
    """A fleet that `up` started; `down` ends it."""

    def __init__(self, place: Place, tables: str, *, patience_s: float) -> None:
        """Start the fleet that `tables` describe below `[fleet]`, and wait until every agent is ready."""
        self.place = place
        self._patience_s = patience_s
        (place.work / "fleet.toml").write_text(tables)
        began = time.monotonic()
        up = place.start("up", "-d", "--wait", f"{patience_s:.0f}s")
        assert up.end(2 * patience_s) == 0, up.errors
        #: Seconds from the start of `muster up` until it said that everybody is ready.
        self.ready_s = time.monotonic() - began
        self.store: Path = place.root / NAME

    def ping(self) -> dict[str, Any]:
        """What the spawner knows."""
        with SpawnerClient.connect(self.store) as client:
            return client.ping()

    def speak(self, talk: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; see `operator`."""
        return asyncio.run(talk)

    async def operator(self) -> Bus:
        """The operator's side of the fleet's bus."""
        return await Bus.open(self.store, OPERATOR, Keyring.from_master(load_master(self.store), OPERATOR), wait_s=5.0)

    async def status(self, bus: Bus) -> dict[str, Any]:
        """What the coordinator says of the fleet as a whole."""
        told: dict[str, Any] = (
            await bus.ask(COORDINATOR, {"agents": False}, type="fleet.status", timeout_s=self._patience_s)
        ).body
        return told

    def down(self) -> float:
        """End it; the seconds that took. Nothing of it may be left but its store."""
        self.place.note(worker["pid"] for worker in self.ping()["workers"])
        began = time.monotonic()
        down = self.place.start("down")
        assert down.end(self._patience_s) == 0, down.errors
        took_s = time.monotonic() - began
        left = self.place.processes()
        assert not left, left
        return took_s
