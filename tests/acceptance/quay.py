"""A store as programs that join make it, without a coordinator, with three agents and a command line to look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes import redrive
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, load_master

from .cli_world import World

#: A reason that would colour a terminal, ring it and break its lines.
NASTY = "no \x1b[31mgood\x07\nat all"


class Desk:
    """A store that is down, with the bus of its one reader."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = create_store(world.root / "quay")
        for agent in ("desk", "shelf", "boat"):
            add_agent(self.store, agent)

    def bus(self, agent: str = "desk") -> Bus:
        return Bus(LanesTransport(self.store, agent, Keyring.from_master(load_master(self.store), agent)))

    def letters(self, agent: str = "desk") -> list[Path]:
        return sorted((self.store / "agents" / agent / "inbox/dead").iterdir())

    def on_their_way(self, agent: str = "desk") -> list[str]:
        return redrive.waiting_in(f"{self.store}/agents/{agent}/inbox")

    def bury(self, *bodies: Any, agent: str = "desk", **envelope: Any) -> list[str]:
        """Send from boat, and let the recipient give up on each; their ids."""
        boat = self.bus("boat")
        ids = [boat.post(agent, body, **envelope).id for body in bodies]
        boat.transport.close()
        reader = self.bus(agent)
        for _ in bodies:
            delivery = reader.receive_nowait()
            assert delivery is not None
            delivery.dead_letter(NASTY)
        reader.transport.close()
        return ids

    def dead(self, *words: str) -> tuple[int, str, str]:
        done = self.world.muster("dead", *words, "--fleet", "quay")
        return done.returncode, done.stdout, done.stderr

    def listed(self, *words: str) -> list[dict[str, Any]]:
        status, out, err = self.dead("list", "--json", *words)
        assert status == 0, err
        found: list[dict[str, Any]] = json.loads(out)
        return found
