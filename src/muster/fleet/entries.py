"""What the processes of a fleet run, handed to the spawner by every front door."""

from __future__ import annotations

from pathlib import Path

from muster.supervise.spawner import Entries


def entries() -> Entries:
    """The coordinator's and the workers' main functions, and what the fork server loads before it forks them."""
    return Entries(coordinator=_coordinator, worker=_worker, preload=_preload)


def _coordinator(store: Path, control_fd: int, name: str) -> int:
    from muster.coordinator.main import main

    return main(store, control_fd, name)


def _worker(grant_fd: int, lifeline_fd: int) -> int:
    from muster.agent.worker import main

    return main(grant_fd, lifeline_fd)


def _preload() -> None:
    # Imported once and frozen, shared by every worker: this is why hundreds of them start in a second at 2 MB each.
    import hmac

    # What a worker would import after the fork costs each of them its own copy (the lanes alone 3 MB).
    import muster.agent.worker
    import muster.bus.transports.lanes.transport
    import muster.coordinator.main  # noqa: F401 - a restarted coordinator starts as fast as a worker
    from muster.core import message, protocol

    # The same holds for what is built on first use: OpenSSL's tables (0.5 MB) and the decoders of every message.
    hmac.digest(b"key", b"message", "sha256")
    message.encode_body({})
    for struct in protocol.TYPES.values():
        message.decoder_for(message.CONTENT_MSGPACK, struct)
