"""What a spawner runs in the processes it forks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entries:
    """The functions of the processes below the spawner; they run in the forked child and return its exit status.

    coordinator: Gets the store, a descriptor of the control socket (SEQPACKET; `orders.ToCoordinator` / `ToSpawner`,
    msgpack), and its name: `names.COORDINATOR` is the root, every other one coordinates a team.
    worker: Gets a descriptor of its grant (memfd, unread) and one that becomes readable (end of stream) when the
    spawner dies.
    preload: Called once, before the first fork: imports everything that the two need.
    """

    coordinator: Callable[[Path, int, str], int]
    worker: Callable[[int, int], int]
    preload: Callable[[], None]
