"""What the spawner and the coordinators below it tell each other, and what a worker is born with.

These travel between the spawner and the processes it forked, on a SOCK_SEQPACKET socket pair, one msgpack struct per record: they carry
the kernel's proofs of life and death, which no message of a peer can give. See docs/protocol.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muster.core.names import COORDINATOR


class SpawnWorker(msgspec.Struct, frozen=True, kw_only=True, tag="spawn"):
    """coordinator -> spawner, with one memfd (SCM_RIGHTS) that holds the msgpack of a `WorkerGrant`.

    The spawner hands the memfd to the child unread and closes its own copy: it never sees a key. The worker is the sender's from then on:
    its exit is told to the sender, who alone may signal it. `is_coordinator`: what is forked is the coordinator of a team, without a memfd
    but with a control socket of its own; its death ends none of its workers.

    Refused, with a `WorkerExited` of pid 0 and exit status 77 that needs no `ExitSeen`: a worker that lives, a worker of somebody else
    (unless that one was given up, see `Reown`), and an incarnation that is not higher than all before.
    """

    worker: str
    incarnation: int
    is_coordinator: bool = False


class KillWorker(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """coordinator -> spawner: signal a worker of its own; `tree` also kills its whole process tree and proves it dead."""

    worker: str
    incarnation: int
    signal: int
    tree: bool = False


class ListWorkers(msgspec.Struct, frozen=True, kw_only=True, tag="list"):
    """coordinator -> spawner, first thing after a (re)start; answered by one `WorkerList` of the workers that it spawned."""


class Reown(msgspec.Struct, frozen=True, kw_only=True, tag="reown"):
    """root -> spawner: `source` is given up as a coordinator; from now on its workers' exits are told to `target`, who may signal them.

    Answered by the `WorkerList` of `source`, with every exit that nobody acknowledged. Asked again, it changes nothing and gets the list as
    it is then. Whoever spawns one of these workers next owns it. Believed from the root only.
    """

    source: str
    target: str


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """root -> spawner: the fleet is done and the root is about to exit; do not restart it.

    The spawner then kills whatever is left, removes an ephemeral store if it holds nothing unread, and exits with `exit_status`.
    """

    exit_status: int


class WorkerStarted(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """spawner -> coordinator: forked. `start_time` (clock ticks after boot, /proc/PID/stat field 22) makes the pid unambiguous."""

    worker: str
    incarnation: int
    pid: int
    start_time: int


class WorkerExited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """spawner -> coordinator: proof of death. Sent when the worker has been reaped *and* its whole process tree is gone.

    `survivors`: pids that could not be killed within the deadline (uninterruptible sleep); empty means the tree is proven dead.
    A second `WorkerExited` with no survivors follows when the last of them is gone. Never lost: unsent ones are kept for the
    next coordinator (`WorkerList.exited`) until acknowledged by `ExitSeen`.
    """

    worker: str
    incarnation: int
    pid: int
    exit_status: int | None
    signal: int | None
    survivors: list[int] = []


class ExitSeen(msgspec.Struct, frozen=True, kw_only=True, tag="exit_seen"):
    """coordinator -> spawner: the exit is in the log; forget it."""

    worker: str
    incarnation: int


class WorkerList(msgspec.Struct, frozen=True, kw_only=True, tag="list_reply"):
    """spawner -> coordinator: of the workers that `owner` spawned everything alive, and every exit that was not acknowledged yet.

    `last`: the highest incarnation of each that was ever ordered, alive or not; the next one must be higher. `incarnation`: the
    owner's own, if a root spawned it.
    """

    alive: list[WorkerStarted]
    exited: list[WorkerExited]
    coordinator_restarts: int
    owner: str = COORDINATOR
    last: dict[str, int] = {}
    incarnation: int = 0


class StopFleet(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """spawner -> root: a signal or a `muster down` asked for the end of the fleet."""

    mode: Literal["drain", "now"]
    reason: str = ""


ToSpawner = SpawnWorker | KillWorker | ListWorkers | Finished | ExitSeen | Reown
ToCoordinator = WorkerStarted | WorkerExited | WorkerList | StopFleet


class AgentGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent is born with: the root of its receiving keys and the pair keys of the edges that policy allows it to send on."""

    agent: str
    receive_root: bytes
    pair_keys: dict[str, bytes]


class WorkerGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the memfd a worker is born with. `store` is the fleet's directory; everything else stands in its spec.json.

    `coordinator`: whom its agents report to. They believe verbs from that one and from the root.
    """

    worker: str
    incarnation: int
    store: str
    agents: list[AgentGrant]
    coordinator: str = COORDINATOR
