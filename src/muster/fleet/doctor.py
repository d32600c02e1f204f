"""`muster doctor`: is this machine fit for fleets, what is weaker here, and what did crashed ones leave behind?"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muster.bus.store import unread
from muster.bus.transports.lanes import probe
from muster.errors import FleetNotRunningError, MusterError
from muster.fleet import detached, leftovers, places

OK, WEAK, FAIL = "ok", "weak", "fail"
#: Descriptors that a spawner needs per worker (pidfd, lifeline, control), with room for a large fleet.
NOFILE_WANTED = 4096
SHM_WANTED_BYTES = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    verdict: str
    subject: str
    text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(flag: str | None) -> Iterator[Finding]:
    """Look at everything."""
    yield from _places(flag)
    yield from _limits()
    yield from _features()


def _places(flag: str | None) -> Iterator[Finding]:
    for subject, root in (("runs", places.run_root(flag)), ("standing fleets", places.state_root(flag))):
        try:
            if root.exists() or root.is_symlink():
                places.check_private(root)
            there = root if root.exists() else _nearest(root)
            # Tried in a directory of its own: the check makes files and must not meet a fleet.
            with tempfile.TemporaryDirectory(prefix="muster-doctor-", dir=there) as trial:
                probe.check(Path(trial))
            room = os.statvfs(there)
            free = room.f_bavail * room.f_frsize
            kind = probe.filesystem_of(there)
            text = f"{root} on {kind}, {free >> 20:,} MiB free"
            if subject == "runs" and kind != "tmpfs":
                yield Finding(WEAK, subject, f"{text}; runs are faster on tmpfs")
            elif free < SHM_WANTED_BYTES:
                yield Finding(
                    WEAK,
                    subject,
                    f"{text}; enough for {max(0, free - places.STORE_BYTES_BASE) // places.STORE_BYTES_PER_AGENT} agents",
                )
            else:
                yield Finding(OK, subject, text)
        except (MusterError, OSError) as error:
            yield Finding(FAIL, subject, getattr(error, "message", None) or f"{root}: {error}")


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} per process (up to {'any number' if hard == resource.RLIM_INFINITY else f'{hard:,}'})"
    yield Finding(
        OK if soft >= NOFILE_WANTED else WEAK,
        "open files",
        text if soft >= NOFILE_WANTED else f"{text}; raise it with ulimit -n {NOFILE_WANTED}",
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    many = soft == resource.RLIM_INFINITY or soft >= NOFILE_WANTED
    yield Finding(
        OK if many else WEAK,
        "processes",
        "no limit for this user" if soft == resource.RLIM_INFINITY else f"{soft:,} for this user",
    )
    pages = _number("/proc/sys/fs/pipe-user-pages-soft")
    if pages is not None:
        # Beyond it new pipes get one page: bells and outputs go on, with more switches between processes.
        yield Finding(OK, "pipes", "no limit" if pages == 0 else f"{pages // 16:,} of full size for this user")
    if places.SHARED_MEMORY.is_dir():
        room = os.statvfs(places.SHARED_MEMORY)
        size = room.f_blocks * room.f_frsize
        small = size <= SHM_WANTED_BYTES
        text = f"{places.SHARED_MEMORY} has {size >> 20:,} MiB"
        yield Finding(
            WEAK if small else OK, "shared memory", f"{text}; a container gets more with --shm-size" if small else text
        )
    else:
        yield Finding(WEAK, "shared memory", f"there is no {places.SHARED_MEMORY}; runs go to {places.run_root(None)}")


def _features() -> Iterator[Finding]:
    yield Finding(
        OK, "python", f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}"
    )
    yield _pidfd()
    yield _subreaper()
    yield _process_table()
    yield _cgroups()
    yield _landlock()


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return Finding(
            WEAK,
            "pidfd",
            "not here: ends of processes are seen by signal and polling, a reused pid is told by its start time",
        )
    return Finding(OK, "pidfd", "ends of processes are proven by the kernel")


def _subreaper() -> Finding:
    if sys.platform != "linux":
        return Finding(
            WEAK, "subreaper", "not here: a command that double-forks away is found by its mark only (MUSTER_STORE_ID)"
        )
    return Finding(OK, "subreaper", "orphans of commands stay below their worker")


def _process_table() -> Finding:
    try:
        Path(f"/proc/{os.getpid()}/stat").read_bytes()
    except OSError:
        return Finding(
            WEAK if sys.platform != "linux" else FAIL, "/proc", "not readable: processes are looked up the slow way"
        )
    return Finding(OK, "/proc", "readable")


def _cgroups() -> Finding:
    try:
        own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2]
        if (
            os.access(Path("/sys/fs/cgroup") / own.lstrip("/"), os.W_OK)
            and Path("/sys/fs/cgroup/cgroup.controllers").exists()
        ):
            return Finding(OK, "cgroups", "version 2, writable")
    except (OSError, IndexError):
        pass
    return Finding(
        WEAK, "cgroups", "not writable: trees are killed by ancestry and mark, and memory is not limited per agent"
    )


def _landlock() -> Finding:
    import ctypes

    version = -1
    if sys.platform == "linux":
        # landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION), see landlock(7)
        version = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)
    if version < 1:
        return Finding(WEAK, "landlock", "not here: agents cannot be confined to their files")
    return Finding(OK, "landlock", f"version {version}")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def leftover_findings(flag: str | None, *, fix: bool, discard: bool = False) -> Iterator[Finding]:
    """What ended fleets left. With `fix` it is killed, proven dead and removed; runs with messages that nobody read only with `discard`."""
    found = leftovers.crashed(flag)
    for fleet in found:
        try:
            yield _reclaimed(fleet, discard=discard) if fix else _described(fleet)
        except FleetNotRunningError:
            continue  # it went away by itself
        except (MusterError, OSError) as error:
            yield Finding(FAIL, "leftovers", f"{fleet.name!r} at {fleet.store} cannot be reclaimed: {error}")
    if fix:
        yield from _swept(flag)
    elif not found:
        yield Finding(OK, "leftovers", "none")


def _described(fleet: places.Fleet) -> Finding:
    pids, waiting = leftovers.processes(fleet), unread(fleet.store)
    if leftovers.has_ended(fleet) and not pids:
        text = f"the run {fleet.name!r} at {fleet.store} has ended, with {waiting} messages in it that nobody has read"
        return Finding(WEAK, "leftovers", f"{text}; `muster doctor --fix --discard` removes it")
    what = f"the crashed {'run' if fleet.is_run else 'fleet'} {fleet.name!r} at {fleet.store}"
    alive = f" with {len(pids)} living processes" if pids else ""
    return Finding(WEAK, "leftovers", f"{what}{alive}; `muster doctor --fix` reclaims it")


def _reclaimed(fleet: places.Fleet, *, discard: bool) -> Finding:
    killed, waiting = leftovers.reclaim(fleet, keep_unread=not discard)
    what = f"{fleet.name!r} at {fleet.store}: {len(killed)} processes killed"
    if waiting:
        return Finding(
            WEAK, "leftovers", f"{what}, kept because nobody has read {waiting} messages in it (--discard removes it)"
        )
    return Finding(OK, "leftovers", f"{what}, removed" if fleet.is_run else what)


def _swept(flag: str | None) -> Iterator[Finding]:
    for count, what in (
        (leftovers.remove_lost_spools(flag), "directories of large output"),
        (detached.forget_old(flag), "old records of detached runs"),
    ):
        if count:
            yield Finding(OK, "leftovers", f"{count} {what} removed")
    if shutil.disk_usage(_nearest(places.state_root(flag))).free < SHM_WANTED_BYTES:
        yield Finding(WEAK, "disk", "nearly full")
