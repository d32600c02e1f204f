"""What follows from another number of agents, outside of the machine: roster, description of the fleet, keys.

In this order, each step harmless when it is done again: identities, then spec.json (whole or not at all), then the keys of the living.
Workers that are spawned after that find all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from muster.bus.store import add_agent, read_spec, set_overflow, write_spec
from muster.coordinator.effects import Post
from muster.coordinator.lives import ALIVE, STARTING
from muster.core.protocol import Edges
from muster.core.settings import REFUSE
from muster.core.spec import kind_of
from muster.errors import MusterError

if TYPE_CHECKING:
    from pathlib import Path

    from muster.coordinator.events import FleetResized
    from muster.coordinator.shell import Shell
    from muster.core.spec import FleetSpec


def resized(spec: FleetSpec, counts: dict[str, int]) -> FleetSpec:
    """The fleet with other counts; everybody who is in both has the same id in both."""
    agents = tuple(kind.resized(counts[kind.name]) if kind.name in counts else kind for kind in spec.agents)
    return msgspec.structs.replace(spec, agents=agents)


class Resizer:
    """Carries `FleetResized` out."""

    def __init__(self, store: Path, shell: Shell) -> None:
        self._store, self._shell = store, shell

    def carry_out(self, effect: FleetResized) -> None:
        """Never raises: what cannot be done is noted, and the workers that need it do not get ready."""
        try:
            spec = resized(read_spec(self._store), effect.counts)
            for agent in effect.new:
                kind = kind_of(spec, agent)
                add_agent(self._store, agent)
                set_overflow(self._store, agent, kind.overflow or REFUSE)
            write_spec(self._store, spec)
        except (MusterError, OSError) as error:
            text = error.message if isinstance(error, MusterError) else str(error.strerror)
            self._shell.notes.write("fleet.not_resized", counts=effect.counts, error=text)
            return
        if effect.new and spec.edges == "all":
            self._introduce(effect.new)

    def _introduce(self, new: list[str]) -> None:
        shell = self._shell
        assert shell.grants is not None
        shell.grants.admit(new)
        state = shell.machine.state
        for agent in state.agents.values():
            # Who is starting just now was perhaps given its keys before these were known; who is dead gets them at its next birth.
            peers = [name for name in new if name != agent.name]
            if peers and state.workers[agent.worker].state in (STARTING, ALIVE):
                edges = Edges(keys=shell.grants.keys_of(agent.name, peers))
                shell.post(Post(agent.name, edges, is_control=True))
