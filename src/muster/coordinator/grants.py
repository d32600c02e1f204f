"""What a worker is born with: keys for the edges its agents may use, derived anew for every birth and kept nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from muster.core.names import COORDINATOR, OPERATOR
from muster.core.orders import AgentGrant, WorkerGrant
from muster.core.spec import roster
from muster.security.keys import PairRoot, load_master, pair_keys, receive_root

if TYPE_CHECKING:
    from pathlib import Path

    from muster.core.spec import FleetSpec


class Grants:
    """Makes worker grants. Receiving roots are derived once: with n agents there are n roots and up to n² edges."""

    def __init__(self, store: Path, spec: FleetSpec, coordinator: str = COORDINATOR) -> None:
        """`coordinator`: whom the agents report to. Raises what `load_master` raises."""
        self._store, self._coordinator = store, coordinator
        self._master = master = load_master(store)
        peers = dict.fromkeys((*(roster(spec) if spec.edges == "all" else ()), COORDINATOR, OPERATOR, coordinator))
        self._peers = {peer: PairRoot(receive_root(master, peer)) for peer in peers}

    def admit(self, agents: list[str]) -> None:
        """Everybody who is born from now on may write to these, too."""
        for agent in agents:
            self._peers.setdefault(agent, PairRoot(receive_root(self._master, agent)))

    def keys_of(self, sender: str, peers: list[str]) -> dict[str, bytes]:
        """The keys with which `sender` may write to `peers`."""
        return pair_keys({peer: self._peers[peer] for peer in peers}, sender)

    def grant(self, worker: str, incarnation: int, agents: list[str]) -> bytes:
        """The msgpack of a `WorkerGrant`: each agent may write to whom the spec's `edges` name."""
        granted = [
            AgentGrant(
                agent=agent,
                receive_root=self._root_of(agent),
                pair_keys=pair_keys(self._peers, agent),
            )
            for agent in agents
        ]
        return msgspec.msgpack.encode(
            WorkerGrant(
                worker=worker,
                incarnation=incarnation,
                store=str(self._store),
                agents=granted,
                coordinator=self._coordinator,
            )
        )

    def _root_of(self, agent: str) -> bytes:
        peer = self._peers.get(agent)
        return receive_root(self._master, agent) if peer is None else peer.root
