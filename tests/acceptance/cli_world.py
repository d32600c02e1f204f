"""A place for fleets of a test, the command line as a subprocess, and the proof that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muster.supervise.tree import start_time_of
from muster.testing import eventually

MUSTER = [sys.executable, "-m", "muster.cli.entry"]
#: Generous: two cores may be busy with other tests.
PATIENCE_S = 30.0


class World:
    """One test's stores, and everything it started."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        self.work = work
        self.env = {
            **os.environ,
            "MUSTER_STORE_DIR": str(root),
            "XDG_STATE_HOME": str(work / "state"),
            "PYTHONWARNINGS": "error",
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def muster(self, *words: str, stdin: bytes | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        done = subprocess.run(
            [*MUSTER, *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**self.env, **more.pop("env", {})},
            cwd=more.pop("cwd", self.work),
            timeout=PATIENCE_S * 2,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command line in a session of its own, with Ctrl-C as a terminal gives it.

        A shell that runs the tests in the background ignores SIGINT, which its children inherit and muster respects.
        """
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(
            [*MUSTER, *words],
            stdin=more.pop("stdin", subprocess.DEVNULL),
            stdout=more.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            env={**self.env, **more.pop("env", {})},
            cwd=self.work,
            start_new_session=True,
            bufsize=0,  # a test may read a line, and `communicate` the rest: nothing may wait in a buffer between them
        )
        signal.signal(signal.SIGINT, before)
        self.started.append(process)
        return process

    def finish(
        self, process: subprocess.Popen[bytes], timeout_s: float = PATIENCE_S * 2
    ) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a started command line."""
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, (out or b"").decode(), err.decode())

    def ps(self) -> list[dict[str, Any]]:
        """What `muster ps --json` says."""
        rows: list[dict[str, Any]] = json.loads(self.muster("ps", "--json").stdout)
        return rows

    def pid_of(self, role: str, name: str | None = None) -> int:
        """The pid of a fleet's process, once it is there."""

        def look() -> int | None:
            for row in self.ps():
                if row["role"] == role and name in (None, row["name"]) and row["pid"]:
                    return int(row["pid"])
            return None

        pid = eventually(look, PATIENCE_S, f"a {role} in `muster ps`")
        assert pid is not None
        return pid

    def stores(self) -> list[str]:
        """What is in the root of the stores, without the records and spools that stay empty."""
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))

    def marked(self) -> list[int]:
        """Living processes that know this world's root."""
        needle = f"MUSTER_STORE_DIR={self.root}\0".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    with open(f"/proc/{entry}/environ", "rb") as file:
                        if needle in file.read() and start_time_of(int(entry)) is not None:
                            found.append(int(entry))
                except OSError:
                    continue
        return found

    def assert_nothing_left(self) -> None:
        """No process, no store, no spool."""
        eventually(lambda: not self.marked(), PATIENCE_S, f"no process of {self.root} is left: {self.marked()}")
        assert self.stores() == []
        spool = self.root / ".spool"
        assert not spool.exists() or list(spool.iterdir()) == []

    def close(self) -> None:
        """End whatever a failed test left."""
        for pid in self.marked():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.started:
            process.kill()
            process.communicate(timeout=PATIENCE_S)


@contextmanager
def a_world(work: Path) -> Iterator[World]:
    """A world in memory if there is memory to be had, since runs live there."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="muster-test-", dir=parent) as root:
        world = World(Path(root), work)
        try:
            yield world
        finally:
            world.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A results file as objects."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_lines(path: Path, count: int) -> None:
    """Until a results file has that many lines."""
    eventually(
        lambda: path.exists() and path.read_bytes().count(b"\n") >= count, PATIENCE_S, f"{count} lines in {path.name}"
    )


def until(deadline_s: float) -> float:
    """A deadline for loops."""
    return time.monotonic() + deadline_s
