"""Retirement: an identity leaves the fleet, and nothing that was sent to it or by it is lost without a word.

The instant is one rename, `bell` to `retired`: without a bell an agent is not on the roster, and nobody begins a lane to it. What was
stored for it becomes dead letters with the verdict `dead`, so that its senders' receipts tell; its cursors then grant nothing more. What
it has sent stays until its recipients have finalised it; a later call, or `fsck --repair`, frees those lanes. Each step may be the last
before a crash: calling again goes on from there. The name may be used again; its old cursors and lanes stay valid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import inspect, layout, locks
from muster.bus.transports.lanes.transport import LanesTransport
from muster.bus.transports.lanes.words import Page, value_of, word
from muster.core.names import agent_id
from muster.errors import IdentityBusyError, InvalidNameError, StoreFullError, UnknownAgentError
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: So long the inbox is emptied at most, should somebody fill it faster.
DRAIN_S: Final = 5.0
#: Senders with an open lane look at the roster every 50 ms; after so long, none stores by what it saw before.
SETTLE_S: Final = 0.1
#: A lane that goes is renamed to this and then removed: no lane has a name with a dot that is not `.control`.
GONE: Final = "tmp-gone."


class Retired(NamedTuple):
    """What became of an agent's messages. `waiting`: sent by it and not finalised yet, by recipient; `left`: stored for it meanwhile."""

    letters: int
    waiting: dict[str, int]
    left: int


def is_retired(store: Path, agent: str) -> bool:
    base = layout.agent_dir(store, agent)
    return os.path.lexists(f"{base}/retired") and not os.path.lexists(f"{base}/bell")


def retire_agent(store: Path, agent: str, *, reason: str = "retired") -> Retired:
    """Take `agent` off the roster for good, whatever waits in either direction. Idempotent; call again after any failure.

    Raises:
        InvalidNameError, UnknownAgentError: There is no such agent that could be retired; nothing was changed.
        IdentityBusyError: A living process holds the identity; nothing was changed.
        StoreFullError: No room for a dead letter: what is left waits as before, and the agent is off the roster.
    """
    agent_id(agent)
    base = layout.agent_dir(store, agent)
    if not layout.has_agent(store, agent):
        if not os.path.lexists(f"{base}/retired"):
            raise UnknownAgentError(f"there is no agent {agent!r} in {store.name}", agent=agent)
        with _both_locks(base, agent):
            os.rename(
                f"{base}/retired", f"{base}/bell"
            )  # an earlier call was interrupted, or somebody sent at the same instant
    letters = _bury_what_waits(store, agent, reason)
    with _both_locks(base, agent):
        _grant_nothing(f"{base}/inbox")
        waiting = reclaim_lanes(store, agent)
    return Retired(letters, waiting, inspect.inbox_depth(store, agent))


@contextlib.contextmanager
def _both_locks(base: str, agent: str) -> Iterator[None]:
    held = []
    try:
        for name in ("inbox.lock", "outbox.lock"):
            if not locks.acquire(f"{base}/{name}"):
                raise IdentityBusyError(
                    f"{agent} is in use by process {locks.holder(f'{base}/{name}')}", retry_after_s=1.0, agent=agent
                )
            held.append(f"{base}/{name}")
        yield
    finally:
        for path in held:
            locks.release(path)


def _bury_what_waits(store: Path, agent: str, reason: str) -> int:
    """Off the roster, then everything that is stored for `agent` becomes a dead letter; how many."""
    base = layout.agent_dir(store, agent)
    transport = LanesTransport(store, agent, Keyring.from_master(load_master(store), agent))
    try:
        os.rename(f"{base}/bell", f"{base}/retired")
        time.sleep(SETTLE_S)
        buried, deadline = 0, time.monotonic() + DRAIN_S
        while True:
            transport.scan()
            before = buried
            while time.monotonic() < deadline and (inbound := transport.take()) is not None:
                transport.uncount(inbound)
                inbound.attempt -= 1
                if not transport.kill(inbound, reason):
                    raise StoreFullError(
                        "the store has no room for dead letters; what waits was left as it is", retry_after_s=1.0
                    )
                buried += 1
            if buried == before:
                return buried
    finally:
        transport.close()


def _grant_nothing(inbox: str) -> None:
    """Credit up to `acked_base` and no further, in every cursor. Whoever takes the name again grants anew."""
    for name in os.listdir(inbox):
        if not name.endswith(".cursor"):
            continue
        page = Page(f"{inbox}/{name}")
        base = value_of(page.words[cursors.ACKED_BASE])
        if base is not None:
            page.words[cursors.CREDIT] = word(base)
        page.close()


def reclaim_lanes(store: Path, agent: str) -> dict[str, int]:
    """Free the outgoing lanes of a retired agent that are finalised; the caller holds its outbox lock. What still waits, by recipient."""
    outbox = f"{layout.agent_dir(store, agent)}/outbox"
    waiting: dict[str, int] = {}
    for name in sorted(os.listdir(outbox)):
        if name.startswith(GONE):
            shutil.rmtree(f"{outbox}/{name}")
            continue
        try:
            recipient, control = layout.parse_lane_name(name)
        except InvalidNameError:
            continue
        view = inspect.view_lane(store, agent, recipient, control=control)
        if view is not None and view.depth:
            waiting[recipient] = waiting.get(recipient, 0) + view.depth
        elif view is not None:
            os.rename(f"{outbox}/{name}", f"{outbox}/{GONE}{name}")
            shutil.rmtree(f"{outbox}/{GONE}{name}")
    return waiting
