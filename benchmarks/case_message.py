"""One message at a time in one process: send, receive, ack, and only then the next."""

from __future__ import annotations

from benchmarks.contenders import (
    JETSTREAM_FILE,
    JETSTREAM_MEMORY,
    JETSTREAM_SYNCED,
    MUSTER,
    MUSTER_DURABLE,
    MUSTER_POST,
    PEERS,
    REDIS_STREAMS,
)
from benchmarks.effort import effort
from benchmarks.flow import one_at_a_time
from benchmarks.harness import Case, Contender, Goal
from benchmarks.peers.port import Peer

BODY_BYTES = 256
#: How many times as fast as these muster shall be.
_FACTORS = {REDIS_STREAMS.name: 10.0, JETSTREAM_MEMORY.name: 20.0, JETSTREAM_FILE.name: 20.0}


def _contender(peer: Peer) -> Contender:
    return Contender(peer.name, lambda: one_at_a_time(peer, BODY_BYTES, effort(0.6, 0.1)))


def cases() -> list[Case]:
    peers = [*PEERS, JETSTREAM_SYNCED]
    return [
        Case(
            "message",
            "send + receive + ack, one at a time, 256 B, one process",
            [_contender(peer) for peer in (MUSTER, MUSTER_POST, MUSTER_DURABLE, *peers)],
            [
                *(Goal("us", MUSTER.name, peer.name, ">=", _FACTORS.get(peer.name)) for peer in peers),
                Goal("us", MUSTER_DURABLE.name, JETSTREAM_SYNCED.name, ">=", label="durable"),
                Goal("us", MUSTER_POST.name, REDIS_STREAMS.name, ">=", 10.0, label="post"),
                Goal("cpu_us", MUSTER.name, REDIS_STREAMS.name, ">=", label="CPU"),
            ],
        )
    ]
