"""Where fleets live on disk, and which fleet a command means.

Runs live in memory, standing fleets in the user's state directory: logind may delete a user's /dev/shm and runtime directory at
logout, which must not take a standing fleet's messages with it. `--store DIR` or MUSTER_STORE_DIR replaces both roots.

This module uses the standard library alone, because the short verbs (`send recv ask ps`) pay for every import.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muster.core.names import fleet_name
from muster.errors import (
    ConfigError,
    FleetNotRunningError,
    StoreTooSmallError,
    StoreUnsuitableError,
    UnsafePermissionsError,
)
from muster.security import permissions
from muster.supervise import lock

SHARED_MEMORY = Path("/dev/shm")
#: Store bytes a fleet needs at least: the coordinator's log and reserve, and per agent the lanes to and from the coordinator.
STORE_BYTES_BASE = 8 << 20
STORE_BYTES_PER_AGENT = 64 << 10


class Fleet:
    """One fleet's directory as found on disk. `spawner_pid` is None when no living process holds it."""

    def __init__(self, name: str, store: Path, spec: dict[str, Any], spawner_pid: int | None) -> None:
        self.name = name
        self.store = store
        self.spec = spec
        self.spawner_pid = spawner_pid

    @property
    def store_id(self) -> str:
        return str(self.spec.get("store_id", ""))

    @property
    def is_run(self) -> bool:
        return self.spec.get("run") is not None


# --------------------------------------------------------------------------- roots


def override_root(flag: str | None = None) -> Path | None:
    """The root that `--store` or MUSTER_STORE_DIR names, or None."""
    text = flag or os.environ.get("MUSTER_STORE_DIR")
    return Path(text).expanduser().absolute() if text else None


def run_root(flag: str | None = None) -> Path:
    """Where `muster run` puts its stores: tmpfs, else the runtime directory, else $TMPDIR."""
    overridden = override_root(flag)
    if overridden is not None:
        return overridden
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY / f"muster-{os.getuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "muster"
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"muster-{os.getuid()}"


def state_root(flag: str | None = None) -> Path:
    """Where standing fleets and the output of detached runs live."""
    overridden = override_root(flag)
    if overridden is not None:
        return overridden
    home = os.environ.get("XDG_STATE_HOME")
    if home and not Path(home).is_absolute():
        home = None  # the XDG specification: relative paths are to be ignored
    return (Path(home) if home else Path.home() / ".local" / "state") / "muster"


def roots(flag: str | None = None) -> list[Path]:
    """Every directory that may hold stores of this user, without doubles."""
    return list(dict.fromkeys((run_root(flag), state_root(flag))))


def spool_of(store_id: str, flag: str | None = None) -> Path:
    """Where a run keeps output that is too large for a message: on disk, because runs themselves live in memory."""
    return state_root(flag) / ".spool" / store_id


def spools(flag: str | None = None) -> list[Path]:
    """Every such directory."""
    try:
        return sorted((state_root(flag) / ".spool").iterdir())
    except OSError:
        return []


def make_private(directory: Path) -> Path:
    """Make `directory` (0700) if it is missing and verify that it is ours alone.

    Raises:
        UnsafePermissionsError: It is a symlink, belongs to another user or is open to others; it was not used.
        StoreUnsuitableError: It cannot be made.
    """
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        pass  # a file or a dangling symlink: check_private says so
    except OSError as error:
        raise StoreUnsuitableError(
            f"cannot make the directory {directory}: {error.strerror}", path=str(directory)
        ) from None
    check_private(directory)
    return directory


def check_private(directory: Path) -> None:
    """Verify that `directory` is a directory of ours, closed to everybody else, without following a symlink.

    Raises:
        FleetNotRunningError: There is none.
        UnsafePermissionsError: As in `make_private`.
    """
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        raise FleetNotRunningError(f"there is no directory {directory}", path=str(directory)) from None
    except OSError as error:
        raise UnsafePermissionsError(
            f"{directory} cannot be looked at: {error.strerror}", path=str(directory)
        ) from None
    permissions.check_private(directory, found, directory=True)


def check_room(root: Path, agents: int) -> None:
    """Refuse a file system that is too small for a fleet of `agents`.

    Raises:
        StoreTooSmallError: Nothing was started.
    """
    room = os.statvfs(root)
    free = room.f_bavail * room.f_frsize
    needed = STORE_BYTES_BASE + agents * STORE_BYTES_PER_AGENT
    if free < needed:
        raise StoreTooSmallError(
            f"{root} has {free >> 20} MiB free, and a fleet of {agents} agents needs at least {-(-needed >> 20)} MiB; "
            "choose another place with --store DIR",
            path=str(root),
            free_bytes=free,
            needed_bytes=needed,
        )


# --------------------------------------------------------------------------- finding fleets


def spawner_pid(store: Path) -> int | None:
    """The pid of the living spawner that holds `store`, else None: the kernel's answer, so no stale pid file can fool it."""
    try:
        return lock.running_pid(store)
    except OSError:
        return None


def load_spec(store: Path) -> dict[str, Any] | None:
    """spec.json of a store as plain data, or None when it is missing or unreadable."""
    try:
        spec = json.loads((store / "spec.json").read_bytes())
    except (OSError, ValueError):
        return None
    return spec if isinstance(spec, dict) else None


def scan(flag: str | None = None) -> Iterator[Fleet]:
    """Every fleet of this user, living or left over, in the order of their names per root."""
    for root in roots(flag):
        try:
            check_private(root)
            names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
        except (FleetNotRunningError, UnsafePermissionsError, OSError):
            continue
        for name in names:
            store = root / name
            spec = None if name.startswith(".") else load_spec(store)
            if spec is not None:
                yield Fleet(name, store, spec, spawner_pid(store))


def find(name: str, flag: str | None = None) -> Fleet:
    """The fleet called `name`.

    Raises:
        InvalidNameError: `name` cannot be a fleet's name.
        FleetNotRunningError: There is no store of that name.
        UnsafePermissionsError: There is one that is not ours alone.
    """
    fleet_name(name)
    for root in roots(flag):
        store = root / name
        if store.is_symlink() or store.is_dir():
            check_private(root)
            check_private(store)
            spec = load_spec(store)
            if spec is None and (store / "keys" / "master").exists():
                spec = {}  # programs that joined made it: a bus without a coordinator
            if spec is not None:
                return Fleet(name, store, spec, spawner_pid(store))
    raise FleetNotRunningError(f"there is no fleet {name!r} here; `muster ps` lists those that run", fleet=name)


def chosen_name(flag: str | None) -> str | None:
    """The fleet a command means: `--fleet`, else MUSTER_FLEET, else the nearest fleet.toml upwards; None if nothing names one.

    Raises:
        InvalidNameError, ConfigError: The name or the file is malformed.
    """
    name = flag or os.environ.get("MUSTER_FLEET")
    if name:
        return fleet_name(name)
    path = nearest_fleet_file(Path.cwd())
    return None if path is None else name_in_file(path)


def chosen(fleet_flag: str | None, store_flag: str | None = None) -> Fleet:
    """The fleet a command means, as found on disk.

    A command that an agent started finds its own fleet through MUSTER_STORE, wherever the store's root is.

    Raises:
        ConfigError: Nothing names a fleet.
        FleetNotRunningError, InvalidNameError, UnsafePermissionsError: As in `find`.
    """
    inherited = os.environ.get("MUSTER_STORE")
    if inherited and not store_flag and fleet_flag in (None, "", os.environ.get("MUSTER_FLEET")):
        store = Path(inherited)
        check_private(store)
        spec = load_spec(store)
        if spec is not None:
            return Fleet(str(spec.get("name", store.name)), store, spec, spawner_pid(store))
    name = chosen_name(fleet_flag)
    if name is None:
        raise ConfigError(
            "which fleet? Name it with --fleet NAME or MUSTER_FLEET, or run this below a fleet.toml", key="fleet"
        )
    return find(name, store_flag)


def nearest_fleet_file(start: Path) -> Path | None:
    """The fleet.toml of `start` or of its nearest ancestor that has one."""
    for directory in (start, *start.parents):
        candidate = directory / "fleet.toml"
        if candidate.is_file():
            return candidate
    return None


def name_in_file(path: Path) -> str:
    """`[fleet] name` of a fleet.toml, else the name of its directory.

    Raises:
        ConfigError, InvalidNameError: The file cannot be read as TOML, or the name is malformed.
    """
    import tomllib  # only when a file has to be read: the short verbs usually get the name from the environment

    try:
        with path.open("rb") as file:
            table = tomllib.load(file).get("fleet", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", source=str(path)) from None
    name = table.get("name") if isinstance(table, dict) else None
    return fleet_name(name if name is not None else path.absolute().parent.name)
