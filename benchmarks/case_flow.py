"""Messages flowing between processes: one to one, eight and fifty to one, one to fifty, one at a time and by the hundred; body sizes."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contenders import JETSTREAM_FILE, MUSTER, PEERS, REDIS_STREAMS
from benchmarks.effort import effort
from benchmarks.flow import Shape, flow
from benchmarks.harness import Case, Contender, Goal
from benchmarks.peers.port import Peer

BATCH = 100
#: (senders, recipients) of the patterns.
PATTERNS = {"1to1": (1, 1), "8to1": (8, 1), "50to1": (50, 1), "1to50": (1, 50)}
SIZES = {"64B": 64, "256B": 256, "4KiB": 4 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20}
_FIFTY_TO_ONE = 5.0


def _contender(peer: Peer, shape: Shape) -> Contender:
    few = replace(shape, senders=min(shape.senders, 10), recipients=min(shape.recipients, 10))
    return Contender(peer.name, lambda: flow(peer, effort(shape, few), effort(0.5, 0.05)))


def _case(name: str, title: str, shape: Shape, peers: list[Peer], rounds: int) -> Case:
    factors = {REDIS_STREAMS.name: _FIFTY_TO_ONE} if name == "50to1" else {}
    return Case(
        name,
        title,
        [_contender(peer, shape) for peer in (MUSTER, *peers)],
        [
            *(Goal("per_s", MUSTER.name, peer.name, ">=", factors.get(peer.name)) for peer in peers),
            Goal("cpu_us", MUSTER.name, REDIS_STREAMS.name, ">=", label="CPU"),
        ],
        rounds,
    )


def cases() -> list[Case]:
    found = []
    for name, (senders, recipients) in PATTERNS.items():
        who = f"{senders} to {recipients}, a process each, 256 B"
        found.append(_case(name, f"{who}, one at a time", Shape(senders, recipients), PEERS, 3))
        found.append(_case(f"{name}b", f"{who}, by the {BATCH}", Shape(senders, recipients, BATCH), PEERS, 2))
    # The two storages of JetStream differ little here; the one that stores as ours does stays.
    some = [peer for peer in PEERS if peer is not JETSTREAM_FILE]
    for name, size in SIZES.items():
        found.append(_case(f"size{name}", f"1 to 1, one at a time, bodies of {name}", Shape(1, 1, 1, size), some, 2))
    return found
