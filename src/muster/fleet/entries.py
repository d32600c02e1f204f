"""What the processes of a fleet run, handed to the spawner by every front door."""

from __future__ import annotations

from pathlib import Path

from muster.supervise.spawner import Entries


def entries() -> Entries:
    """The coordinator's and the workers' main functions, and what the fork server loads before it forks them."""
    return Entries(coordinator=_coordinator, worker=_worker, preload=_preload)


def _coordinator(store: Path, control_fd: int) -> int:
    from muster.coordinator.main import main

    return main(store, control_fd)


def _worker(grant_fd: int, lifeline_fd: int) -> int:
    from muster.agent.worker import main

    return main(grant_fd, lifeline_fd)


def _preload() -> None:
    # Imported once and frozen, shared by every worker: this is why hundreds of them start in a second at 2 MB each.
    import muster.agent.worker
    import muster.coordinator.main  # noqa: F401 - a restarted coordinator starts as fast as a worker
