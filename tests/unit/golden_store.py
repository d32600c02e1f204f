"""Golden stores: what a version of muster left on disk, kept as archives so that later versions prove that they still read it.

`python -m tests.unit.golden_store` writes the archive of the version that the source tree has. It is run once for each version of the lane
format, and the archive is never written anew: a store that today's code made would prove nothing about yesterday's.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, set_overflow
from muster.bus.transports.lanes.deadletters import letters_in
from muster.bus.transports.lanes.redrive import put_back
from muster.bus.transports.lanes.transport import LanesTransport
from muster.bus.transports.lanes.words import VERSION
from muster.core.settings import EVICT_OLDEST, BusSettings
from muster.security.keys import Keyring, load_master
from muster.security.permissions import write_private

DATA = Path(__file__).parent / "data"
AGENTS = ("alice", "bob", "carol", "dora")
#: Bounds of the stores since version 2: a lane fills up soon, and nothing needs to be lent before.
SETTINGS = BusSettings(agents_max=8, lane_messages_max=16, inbox_messages_max=1024)
MASTER = bytes(range(32))

#: What alice stores for bob on the lane with everything in it. Seven frames of this size fill a first segment.
STORED = 12
FILLER = "x" * 1000
ACKED, TAKEN, DEAD = (1, 2, 3, 5), (4, 7), 6
EXPLICIT = {8: "invoice-8", 9: "invoice-9"}
#: What carol's flood left in dora's inbox, which evicts: number 1 was redriven, a full lane lost its oldest eighth.
EVICTED, KEPT = (2, 3), range(4, 19)


def body(n: int) -> dict[str, Any]:
    return {"n": n, "filler": FILLER}


def archive_of(version: int) -> Path:
    return DATA / f"store-v{version}.tar.xz"


def join(store: Path, agent: str) -> Bus:
    return Bus(LanesTransport(store, agent, Keyring.from_master(load_master(store), agent)))


def build(parent: Path) -> Path:
    """A store in which every kind of message waits, left behind as if its processes had been killed."""
    store = parent / "fleet"
    for directory in (store, store / "keys"):
        directory.mkdir(mode=0o700)
    write_private(store / "keys" / "master", MASTER)
    create_store(store, SETTINGS)
    for agent in AGENTS:
        add_agent(store, agent)
    alice, bob, carol, dora = (join(store, agent) for agent in AGENTS)
    for n in range(1, 8):
        alice.post("bob", body(n), type="work", correlation_id=f"c-{n}")
    for delivery in list(iter(bob.receive_nowait, None)):
        if delivery.seq in ACKED:
            delivery.ack()
        elif delivery.seq == DEAD:
            delivery.dead_letter("golden")
    bob.post("alice", "all of this lane is acked")
    answer = alice.receive_nowait()
    assert answer is not None
    answer.ack()
    bob.transport.close()
    for n in range(8, STORED + 1):
        alice.post("bob", body(n), type="work", message_id=EXPLICIT.get(n))
    alice.post("bob", "stop", type="order", priority="control")
    alice.post("bob", "go", type="order", priority="control", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    carol.post("bob", b"\x00bytes\xff", type="blob")
    carol.post("bob", "too late", type="blob", expires_in_s=0)
    carol.post("bob", None, type="blob", expires_in_s=5e9)
    _flood(store, carol, dora)
    alice.transport.close()
    carol.transport.close()
    return store


def _flood(store: Path, carol: Bus, dora: Bus) -> None:
    """An inbox with a redriven letter and evictions, behind which the newest wait."""
    carol.post("dora", "again")
    first = dora.receive_nowait()
    assert first is not None
    first.dead_letter("golden")
    dora.transport.close()
    (letter,) = letters_in(f"{store}/agents/dora/inbox")
    assert put_back(store / "agents" / "dora", letter.name)
    set_overflow(store, "dora", EVICT_OLDEST)
    for seq in range(2, KEPT.stop):
        carol.post("dora", seq)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uname = entry.gname = ""
    entry.uid = entry.gid = entry.mtime = 0
    return entry


def pack(store: Path, archive: Path) -> None:
    """Everything but the lock files' holders, with modes and FIFOs, in an order that does not depend on the file system."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted([store, *store.rglob("*")]):
            tar.add(path, path.relative_to(store.parent), recursive=False, filter=_plain)
    archive.write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def unpack(archive: Path, parent: Path) -> Path:
    """The archived store below `parent`, as the user who runs the tests owns it."""
    with tarfile.open(archive, "r:xz") as tar:
        for entry in tar:
            entry.uid, entry.gid = os.getuid(), os.getgid()
            tar.extract(entry, parent, filter="tar")
    return parent / "fleet"


if __name__ == "__main__":
    target = archive_of(VERSION)
    if target.exists():
        raise SystemExit(f"{target.name} stands already: it is what that version wrote, and stays")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pack(build(Path(scratch)), target)
