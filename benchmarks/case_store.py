"""What a message that waits takes: bytes of store, by size of its body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.case_flow import SIZES
from benchmarks.contenders import JETSTREAM_FILE, MUSTER, REDIS_STREAMS, SQLITE
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.peers.port import Peer
from benchmarks.processes import run_loop
from benchmarks.servers import NATS, REDIS

#: Messages that wait: fewer than a lane may hold, and of the large ones as many as make this many bytes.
_MESSAGES = 900
_BYTES_MAX = 32 << 20


def disk_bytes(directory: Path) -> int:
    """What the files below `directory` occupy, whatever length they show."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def _lanes(place: Any) -> int:
    return disk_bytes(place)


def _redis(_place: Any) -> int:
    import redis

    with redis.Redis(unix_socket_path=REDIS.address(), protocol=2) as client:
        return int(client.info("memory")["used_memory"])


def _sqlite(place: Path) -> int:
    from benchmarks.peers.sqlite_queue import connect

    connection = connect(place)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return disk_bytes(place.parent)


def _jetstream(_place: Any) -> int:
    assert NATS.store is not None
    return disk_bytes(NATS.store)


def _queued(peer: Peer, look: Callable[[Any], int], body_bytes: int) -> Figures:
    """Bytes per message: what the place holds once the messages wait in it, less what it held with one message in it before."""
    count = max(8, min(effort(_MESSAGES, 100), _BYTES_MAX // body_bytes))
    body = bytes(range(256)) * (body_bytes // 256 + 1)
    with peer.place(["bob"], ["alice"]) as place:

        async def fill() -> int:
            async with peer.sender(place, "alice") as sending:
                before = look(place)
                for _ in range(count):
                    await sending.send("bob", [body[:body_bytes]])
                return await _at_rest(lambda: look(place)) - before

        grown: int = run_loop(fill)
    if grown <= 0:
        raise MeasureError(f"{count} messages take {grown} bytes")
    return {"bytes": grown / count, "body_times": grown / count / body_bytes}


async def _at_rest(look: Callable[[], int]) -> int:
    """The first figure that is the same twice in a row, 50 ms apart: servers write behind. At most a second."""
    deadline, last = time.monotonic() + 1.0, look()
    while time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        if (now := look()) == last:
            break
        last = now
    return last


def cases() -> list[Case]:
    looks: list[tuple[Peer, Callable[[Any], int]]] = [
        (MUSTER, _lanes), (REDIS_STREAMS, _redis), (SQLITE, _sqlite), (JETSTREAM_FILE, _jetstream),
    ]  # fmt: skip

    def contender(peer: Peer, look: Callable[[Any], int], size: int) -> Contender:
        return Contender(peer.name, lambda: _queued(peer, look, size))

    return [
        Case(
            f"store{name}",
            f"store bytes of one waiting message with a body of {name}",
            [contender(peer, look, size) for peer, look in looks],
            [Goal("bytes", MUSTER.name, peer.name) for peer, _look in looks[1:]],
            rounds=1,
        )
        for name, size in SIZES.items()
    ]
