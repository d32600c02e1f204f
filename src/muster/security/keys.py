"""Pairwise keys: holding the key of an edge *is* the permission to send on it.

    R_r  = HMAC-SHA256(M, "recv" | r)                         the recipient's root; r derives every key that verifies mail to r
    K_sr = HMAC-SHA256(R_r, "pair/1" | len(s) | s | epoch)     the edge s -> r; s must have been given it

M never leaves the coordinator's side. A worker is born with R of its agents and K of the edges that policy allows. See
docs/lane-format.md and SECURITY.md for what this does not stop (code that runs as the same user).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING

from muster.errors import CorruptStoreError, ForbiddenError
from muster.security.permissions import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from muster.core.orders import AgentGrant

KEY_BYTES = 32
EPOCH = 1

#: What HMAC (RFC 2104) mixes into the two copies of its key, as tables for `bytes.translate`.
_INNER_PAD = bytes(number ^ 0x36 for number in range(256))
_OUTER_PAD = bytes(number ^ 0x5C for number in range(256))
_BLOCK_BYTES = 64


def receive_root(master: bytes, recipient: str) -> bytes:
    """R_r: from it `recipient` derives the key of everybody who may write to it."""
    return hmac.digest(master, b"recv" + recipient.encode(), "sha256")


def proxy_secret(root: bytes) -> str:
    """What stands for the owner of `root` in the path of its requests to the fleet's API proxy: both can derive it, nobody else."""
    return hmac.digest(root, b"proxy/1", "sha256").hex()


def pair_key(root: bytes, sender: str, epoch: int = EPOCH) -> bytes:
    """K_sr: the key under which `sender` signs for the owner of `root`."""
    return hmac.digest(root, _pair_text(sender, epoch), "sha256")


def _pair_text(sender: str, epoch: int) -> bytes:
    name = sender.encode()
    return b"pair/1" + bytes((len(name),)) + name + epoch.to_bytes(2, "little")


class PairRoot:
    """One recipient's root, for the keys of many senders: both blocks that HMAC makes of it are hashed once, not for every sender.

    A fleet of n agents has n² edges, and this takes 40 % of the time of `hmac.digest`.
    """

    __slots__ = ("_start_inner", "_start_outer", "root")

    def __init__(self, root: bytes) -> None:
        self.root = root
        block = root.ljust(_BLOCK_BYTES, b"\0")
        self._start_inner = hashlib.sha256(block.translate(_INNER_PAD)).copy
        self._start_outer = hashlib.sha256(block.translate(_OUTER_PAD)).copy

    def digest(self, text: bytes) -> bytes:
        """HMAC-SHA256 of `text` under the root."""
        inner = self._start_inner()
        inner.update(text)
        outer = self._start_outer()
        outer.update(inner.digest())
        return outer.digest()


def pair_keys(roots: Mapping[str, PairRoot], sender: str) -> dict[str, bytes]:
    """`pair_key` of `sender` to every owner of `roots`."""
    text = _pair_text(sender, EPOCH)
    return {owner: root.digest(text) for owner, root in roots.items()}


def master_path(store: Path) -> Path:
    return store / "keys" / "master"


def create_master(store: Path) -> bytes:
    """A new master key at `<store>/keys/master` (0600), on the disk when this returns: without it nothing that is stored can be verified.

    Raises:
        FileExistsError: There is one.
    """
    master = os.urandom(KEY_BYTES)
    write_private(master_path(store), master, durable=True)
    return master


def load_master(store: Path) -> bytes:
    """The fleet's master key.

    Raises:
        UnsafePermissionsError, FileNotFoundError: It is not safely there.
        CorruptStoreError: It is no key: cut short, or written over.
    """
    master = read_private(master_path(store))
    if len(master) != KEY_BYTES:
        raise CorruptStoreError(
            f"the master key of {store} has {len(master)} bytes instead of {KEY_BYTES}", path=str(master_path(store))
        )
    return master


def grant_for(master: bytes, agent: str, peers: Iterable[str]) -> AgentGrant:
    """What `agent` is born with: its own root, and the key of its edge to each of `peers`."""
    from muster.core.orders import AgentGrant

    return AgentGrant(
        agent=agent,
        receive_root=receive_root(master, agent),
        pair_keys={peer: pair_key(receive_root(master, peer), agent) for peer in peers},
    )


class Keyring:
    """The keys one identity holds: to verify what it receives, and to sign on the edges it was given."""

    def __init__(
        self, agent: str, root: bytes, *, edges: Mapping[str, bytes] | None = None, master: bytes | None = None
    ) -> None:
        self.agent = agent
        self._root = root
        self._master = master
        self._sign: dict[str, bytes] = dict(edges or {})
        self._verify: dict[str, bytes] = {}

    @classmethod
    def from_master(cls, master: bytes, agent: str) -> Keyring:
        """A keyring that may write to everybody: the coordinator's, the operator's, a standing script's (tier A)."""
        return cls(agent, receive_root(master, agent), master=master)

    @classmethod
    def from_grant(cls, grant: AgentGrant) -> Keyring:
        """A worker's keyring: its own root and the edges it was issued, nothing from which others could be derived."""
        return cls(grant.agent, grant.receive_root, edges=grant.pair_keys)

    def sign_key(self, recipient: str) -> bytes:
        """The key of the edge to `recipient`. Raises ForbiddenError if this identity was not given it."""
        key = self._sign.get(recipient)
        if key is None:
            if self._master is None:
                raise ForbiddenError(
                    f"{self.agent} holds no key for writing to {recipient}", sender=self.agent, recipient=recipient
                )
            key = self._sign[recipient] = pair_key(receive_root(self._master, recipient), self.agent)
        return key

    def learn(self, edges: Mapping[str, bytes]) -> None:
        """Take in the keys of edges that policy has allowed since this identity was born."""
        self._sign.update(edges)

    def verify_key(self, sender: str) -> bytes:
        """The key under which `sender` must have signed what it writes to this identity."""
        key = self._verify.get(sender)
        if key is None:
            key = self._verify[sender] = pair_key(self._root, sender)
        return key

    def __repr__(self) -> str:  # never shows a key: reprs end up in logs and tracebacks
        return f"<Keyring of {self.agent}>"
