"""Runs in the background: the same client as in front, with its output in files that `muster attach` follows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from muster.core.names import fleet_name
from muster.core.protocol import Progress
from muster.errors import CoordinatorLostError, FleetNotRunningError
from muster.fleet import places
from muster.fleet.display import Display

FOLLOW_S = 0.2
COPY_BYTES = 1 << 20
#: Records of ended runs are kept this long.
KEPT_S = 7 * 86_400.0


def home(flag: str | None) -> Path:
    """Where the records of detached runs are. The dot keeps it apart from fleets, whose names have none."""
    return places.state_root(flag) / ".detached"


class Record:
    """The directory of one detached run: `stdout`, `stderr`, `progress.json`, `ended.json`, and `lock`, held while its client lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self._lock_fd = -1

    @classmethod
    def make(cls, name: str, flag: str | None) -> Record:
        """A new record, replacing that of an ended run of the same name; the caller's process holds it from now on."""
        places.make_private(places.state_root(flag))
        places.make_private(home(flag))
        record = cls(places.make_private(home(flag) / name))
        for file in ("stdout", "stderr", "progress.json", "ended.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(record.directory / file)
        record._lock_fd = os.open(
            record.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        fcntl.flock(record._lock_fd, fcntl.LOCK_EX)
        return record

    def redirect(self) -> None:
        """Point standard output and error of this process at the record's files."""
        for fd, file in ((1, "stdout"), (2, "stderr")):
            opened = os.open(self.directory / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(opened, fd)
            os.close(opened)

    def write(self, file: str, content: bytes) -> None:
        """Replace a small file; a reader sees the old or the new one."""
        temporary = self.directory / f".{file}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, self.directory / file)

    def ended(self) -> dict[str, Any] | None:
        """How the run ended: `exit_status`, `reason`, `report`; None while it goes on."""
        try:
            value = json.loads((self.directory / "ended.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def is_alive(self) -> bool:
        """Whether the client of this run lives: it holds the lock."""
        try:
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


class FileDisplay(Display):
    """Progress into the record, for whoever attaches."""

    def __init__(self, record: Record) -> None:
        super().__init__("none")
        self._record = record

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= FOLLOW_S:
            self._drawn_at = now
            with contextlib.suppress(OSError):
                self._record.write("progress.json", msgspec.json.encode(progress))


def find(name: str | None, flag: str | None) -> Record:
    """The detached run called `name`, or the one that was started last.

    Raises:
        FleetNotRunningError: There is none.
        InvalidNameError: `name` cannot be a run's name.
    """
    if name is not None:
        directory = home(flag) / fleet_name(name)
        if directory.is_dir():
            return Record(directory)
        raise FleetNotRunningError(f"there is no detached run called {name!r}", fleet=name)
    found = records(flag)
    if not found:
        raise FleetNotRunningError("there is no detached run")
    return found[-1]


def records(flag: str | None) -> list[Record]:
    """Every record, the one that was started last at the end."""
    try:
        directories = [path for path in home(flag).iterdir() if (path / "lock").exists()]
    except OSError:
        return []
    return [Record(path) for path in sorted(directories, key=lambda path: (path / "lock").stat().st_mtime)]


def forget_old(flag: str | None) -> int:
    """Remove records of runs that ended more than `KEPT_S` ago; how many."""
    import shutil

    old = [
        r for r in records(flag) if not r.is_alive() and time.time() - (r.directory / "lock").stat().st_mtime > KEPT_S
    ]
    for record in old:
        shutil.rmtree(record.directory, ignore_errors=True)
    return len(old)


def detach(work: Callable[[Callable[[dict[str, Any]], None]], int], *, keep_stdin: bool) -> dict[str, Any]:
    """Carry out `work` in a background process of its own session, and return what it reports first.

    `work` gets a function to report with (once), runs on, and returns an exit status. Call this while the process has one thread.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            words = pipe.read()
        try:
            return dict(json.loads(words))
        except ValueError:
            os.waitpid(child, 0)
            return {
                "error": {
                    "code": "fleet.spawn_failed",
                    "message": "the background process ended before the run had started",
                }
            }
    os.close(read_end)
    os.setsid()
    if not keep_stdin:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

    def report(words: dict[str, Any]) -> None:
        os.write(write_end, json.dumps(words, default=str).encode())
        os.close(write_end)

    status = 1
    try:
        status = work(report)
    finally:
        os._exit(status)


def attach(record: Record, display: Display) -> int:
    """Print what a detached run printed and prints, show its progress, and return its exit status.

    Raises:
        CoordinatorLostError: Its client was killed before it could say how the run ended.
    """
    at = {1: 0, 2: 0}
    while True:
        # In this order: what was printed before the end was noted is on disk when the note is seen.
        ended, alive = record.ended(), record.is_alive()
        for fd, file in ((1, "stdout"), (2, "stderr")):
            at[fd] = _copy(record.directory / file, at[fd], fd, display)
        if ended is not None:
            return int(ended.get("exit_status", 1))
        if not alive:
            raise CoordinatorLostError(
                f"the run {record.name!r} was killed; what it recorded is safe", fleet=record.name
            )
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            display.update(msgspec.json.decode((record.directory / "progress.json").read_bytes(), type=Progress))
        time.sleep(FOLLOW_S)


def _copy(file: Path, at: int, fd: int, display: Display) -> int:
    try:
        source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return at
    try:
        while chunk := os.pread(source, COPY_BYTES, at):
            with display.hidden():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            at += len(chunk)
    finally:
        os.close(source)
    return at
