"""Run as a program: two coordinators of one store are started at once, so many times; prints how many of each pair lived.

A fork server like the spawner, because a fresh interpreter for each of them would spread the two over tenths of a second.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path

import msgspec

from muster.coordinator import main as coordinator
from muster.core.orders import ListWorkers, ToSpawner

#: How long each of a pair has to say that it coordinates, or to end.
PAIR_S = 20.0


def lived(store: Path) -> int:
    """Start two at once: how many of them asked the spawner for their workers, as only one that holds the fleet does."""
    contenders: list[tuple[int, socket.socket]] = []
    go_read, go_write = os.pipe()
    for _ in range(2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            for _, end in contenders:
                end.close()
            ours.close()
            os.read(go_read, 1)  # the end of the pipe lets both go
            os._exit(coordinator.main(store, theirs.detach()))
        theirs.close()
        contenders.append((pid, ours))
    os.close(go_read)
    os.close(go_write)
    asked = sum(_asks(end) for _, end in contenders)
    for pid, end in contenders:
        end.close()  # to one that lives: the spawner is gone
        os.waitpid(pid, 0)
    return asked


def _asks(end: socket.socket) -> bool:
    if not select.select([end], [], [], PAIR_S)[0]:
        raise TimeoutError("a coordinator neither asked for its workers nor ended")
    record = end.recv(1 << 16)
    return bool(record) and isinstance(msgspec.msgpack.decode(record, type=ToSpawner), ListWorkers)


if __name__ == "__main__":
    coordinator.IDENTITY_WAIT_S = 0.05
    print(json.dumps([lived(Path(sys.argv[1])) for _ in range(int(sys.argv[2]))]))
