"""What a worker is born with: keys for the edges its agents may use, derived anew for every birth and kept nowhere."""

from __future__ import annotations

from pathlib import Path

import msgspec

from muster.core.names import COORDINATOR, OPERATOR
from muster.core.protocol import AgentGrant, WorkerGrant
from muster.security.keys import load_master, pair_keys, receive_root


class Grants:
    """Makes worker grants. Receiving roots are derived once: with n agents there are n roots and n² edges."""

    def __init__(self, store: Path, roster: list[str]) -> None:
        """Raises what `load_master` raises."""
        self._store = store
        master = load_master(store)
        self._roots = {agent: receive_root(master, agent) for agent in (*roster, COORDINATOR, OPERATOR)}

    def grant(self, worker: str, incarnation: int, agents: list[str]) -> bytes:
        """The msgpack of a `WorkerGrant`: each agent may write to everybody of the roster, the coordinator and the operator."""
        granted = [
            AgentGrant(
                agent=agent,
                receive_root=self._roots[agent],
                pair_keys=pair_keys(self._roots, agent),
            )
            for agent in agents
        ]
        return msgspec.msgpack.encode(
            WorkerGrant(worker=worker, incarnation=incarnation, store=str(self._store), agents=granted)
        )
