"""A fleet's store as a whole: make it, open it, see what is unread in it, remove it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from muster.bus.transports.lanes import inspect, layout, locks, overflow
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.layout import add_agent, has_agent, read_settings, roster
from muster.core import limits
from muster.core.settings import DEFAULTS
from muster.errors import FleetNotRunningError, StoreVersionError
from muster.security.keys import create_master, load_master, master_path
from muster.security.permissions import check_private, make_private_dir, read_private, sync_path, write_private

if TYPE_CHECKING:
    from muster.core.settings import BusSettings
    from muster.core.spec import FleetSpec

__all__ = [
    "add_agent",
    "create_store",
    "has_agent",
    "hops_max",
    "open_store",
    "read_settings",
    "read_spec",
    "remove_store",
    "roster",
    "set_overflow",
    "unread",
    "write_spec",
]


def create_store(store: Path, settings: BusSettings | None = None) -> Path:
    """Make the directories and the master key of a store (0700 and 0600 whatever the umask). Idempotent; the parent must exist.

    `settings` are those of a new store; one that exists keeps its own (`read_settings`).

    Raises:
        UnsafePermissionsError: Something is there that is a link, somebody else's or open to others; it was not used.
    """
    make_private_dir(store)
    # Before its first agent: credit may be out that was reckoned by the settings which held until now. Defaults need no file.
    if settings is not None and settings.render() != DEFAULTS.render() and not (store / "agents").exists():
        with contextlib.suppress(FileExistsError):
            layout.write_settings(store, settings)
    for directory in (store / "keys", store / "agents", store / "sockets"):
        make_private_dir(directory)
    if not master_path(store).exists():
        with contextlib.suppress(FileExistsError):  # another process made it just now: that one counts
            create_master(store)
    for directory in (store, store / "keys"):
        for name in os.listdir(directory):
            if name.startswith("tmp-"):  # of a process that died while it made this; one that lives has lost the race
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / name)
    if settings is not None and settings.durable:
        for directory in (store, store.parent):
            sync_path(directory)
    return store


def set_overflow(store: Path, agent: str, policy: str) -> None:
    """Set what senders meet when the inbox of `agent` is full, unless a living process holds it: that one decides.

    Raises:
        ConfigError: There is no such policy.
    """
    base = layout.agent_dir(store, agent)
    if overflow.read_policy(base) == policy or not locks.acquire(f"{base}/inbox.lock"):
        return
    try:
        overflow.write_policy(base, policy)
    finally:
        locks.release(f"{base}/inbox.lock")


def open_store(store: Path) -> Path:
    """Verify an existing store's owner, mode and key.

    Raises:
        FleetNotRunningError: There is no store.
        UnsafePermissionsError: It is not safely ours.
    """
    try:
        check_private(store, os.lstat(store), directory=True)
        load_master(store)
    except (FileNotFoundError, NotADirectoryError):
        raise FleetNotRunningError(f"there is no fleet at {store}", store=str(store)) from None
    return store


def write_spec(store: Path, spec: FleetSpec) -> None:
    """Store the spec in place of the one before: whoever reads meanwhile finds the old one or the new one, whole."""
    import msgspec

    fresh = store / "tmp-spec.json"
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()  # of a process that died while it wrote
    write_private(fresh, msgspec.json.encode(spec))
    os.rename(fresh, store / "spec.json")


def read_spec(store: Path) -> FleetSpec:
    """The fleet's spec. Raises FleetNotRunningError (none there), StoreVersionError (not readable by this version)."""
    import msgspec

    from muster.core.spec import FleetSpec

    try:
        raw = read_private(store / "spec.json")
    except FileNotFoundError:
        raise FleetNotRunningError(f"there is no fleet at {store}", store=str(store)) from None
    try:
        return msgspec.json.decode(raw, type=FleetSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreVersionError(f"the fleet at {store} was written by another version: {error}") from None


def hops_max(store: Path) -> int:
    """How many answers the fleet at `store` lets a chain of messages have. Cheap: a short verb asks, too."""
    import json

    try:
        declared = json.loads(read_private(store / "spec.json")).get("hops")
    except (OSError, ValueError, AttributeError):  # programs share a store that has no fleet
        declared = None
    return declared if isinstance(declared, int) else limits.HOPS_MAX


def unread(store: Path) -> int:
    """How many messages of users are stored and not finalised, dead letters included; muster's own messages do not count."""
    from muster.core.protocol import TYPES

    count = 0
    for agent in roster(store):
        count += sum(
            letter.get("type") not in TYPES for letter in list_letters(f"{layout.agent_dir(store, agent)}/inbox")
        )
        for view in inspect.lanes_to(store, agent):
            if view.depth:
                count += sum(kind not in TYPES and kind != "reply" for kind in inspect.unfinalised_types(store, view))
    return count


def remove_store(store: Path) -> None:
    """Remove a store with everything in it. The caller holds its spawner lock and has looked at `unread`."""
    check_private(store, os.lstat(store), directory=True)
    shutil.rmtree(store)
