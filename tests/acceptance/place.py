"""Where an acceptance test runs muster: a root for stores, a folder for work, and the proof that nothing is left of either's processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from muster.errors import FleetNotRunningError
from muster.supervise import lock
from muster.supervise.client import SpawnerClient
from muster.supervise.platform import environ_of, process_ids, start_time_of, wait_for_exits
from muster.supervise.tree import is_gone
from muster.testing import eventually

#: Generous: two cores may be shared with others. Nothing waits this long unless it fails.
PATIENCE_S = 30.0
#: The command beside this interpreter, as a user has it on the PATH.
COMMAND = Path(sys.executable).with_name("muster")
#: Quick to start: no site, nothing of the environment.
PYTHON = (sys.executable, "-I", "-S")


class Place:
    """One test's own corner of the machine. Everything that muster starts here names it in environment, folder or arguments."""

    def __init__(self) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
        self.base = Path(tempfile.mkdtemp(prefix="muster-test-", dir=memory))
        self.root = self.base / "stores"
        self.work = self.base / "work"
        self.work.mkdir()
        self.env = {
            # Without cached bytecode every start would compile the whole program anew: twice the time of an installed one.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("MUSTER_") and name != "PYTHONDONTWRITEBYTECODE"
            },
            "MUSTER_STORE_DIR": str(self.root),
            "PYTHONWARNINGS": "error",
            "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        #: (pid, start time) of processes that a test has seen; none of them may be alive at the end.
        self.seen: set[tuple[int, int]] = set()
        self._started: list[Muster] = []

    # ------------------------------------------------------------------ starting

    def start(self, *words: str, terminal: bool = False, env: dict[str, str] | None = None) -> Muster:
        """Start `muster WORDS…` in the work folder; with `terminal` as the leader of a terminal of its own."""
        muster = Muster(self, words, terminal=terminal, env=self.env | (env or {}))
        self._started.append(muster)
        return muster

    def carry_out(self, *words: str, env: dict[str, str] | None = None) -> Muster:
        """Start it and wait for its end."""
        muster = self.start(*words, env=env)
        muster.end()
        return muster

    def script(self, name: str, text: str) -> str:
        """A file with `text` in the work folder; its path."""
        path = self.work / name
        path.write_text(text)
        return str(path)

    def inputs(self, lines: Iterable[str]) -> str:
        """A file with one input per line; its path."""
        return self.script("inputs", "".join(f"{line}\n" for line in lines))

    # ------------------------------------------------------------------ looking

    def stores(self) -> list[Path]:
        """The stores that exist here."""
        return sorted(spec.parent for spec in self.root.glob("*/spec.json"))

    def processes(self) -> dict[int, str]:
        """Living processes that belong here: pid -> why we say so."""
        mark = os.fsencode(self.base)
        found: dict[int, str] = {}
        for pid in process_ids():
            if pid == os.getpid():
                continue
            if any(mark in entry for entry in environ_of(pid)):
                found[pid] = "environment"
            else:
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found[pid] = "arguments"
                    elif os.readlink(f"/proc/{pid}/cwd").startswith(str(self.base)):
                        found[pid] = "folder"
        found |= {pid: "seen" for pid, started in self.seen if not is_gone(pid, started)}
        return {pid: why for pid, why in found.items() if not _is_zombie(pid)}

    def note(self, pids: Iterable[int]) -> None:
        """Remember processes that have to be gone at the end."""
        self.seen |= {(pid, started) for pid in pids if (started := start_time_of(pid)) is not None}

    def files(self) -> list[str]:
        """Everything below the root of the stores but the empty folder for large outputs."""
        found = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, folders, names in os.walk(self.root)
            for name in (*folders, *names)
        ]
        return sorted(set(found) - {".spool"})

    def assert_nothing_is_left(self) -> None:
        """No process, no file, no FIFO and no socket of any run of this place."""
        left = self.processes()
        assert not left, {pid: (why, describe(pid)) for pid, why in left.items()}
        assert not self.files()
        with contextlib.suppress(FileNotFoundError):
            bound = Path("/proc/net/unix").read_text()
            assert str(self.base) not in bound, [line for line in bound.splitlines() if str(self.base) in line]

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """End whatever a failed test has left, and remove the place."""
        for muster in self._started:
            muster.close()

        def all_gone() -> bool:
            left = self.processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        eventually(all_gone, 10.0)
        shutil.rmtree(self.base)


class Muster:
    """One started `muster …`: a command line and, while it lives, its fleet."""

    def __init__(self, place: Place, words: tuple[str, ...], *, terminal: bool, env: dict[str, str]) -> None:
        self.place = place
        self._out = tempfile.TemporaryFile(dir=place.work)
        self._err = tempfile.TemporaryFile(dir=place.work)
        self._shown = bytearray()
        self._terminal: int | None = None
        command = [str(COMMAND), *words]
        if not terminal:
            self.process = subprocess.Popen(
                command, cwd=place.work, env=env, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
                preexec_fn=_heed_signals,
            )  # fmt: skip
            return
        self._terminal, line = os.openpty()
        self.process = subprocess.Popen(
            command, cwd=place.work, env=env, stdin=line, stdout=self._out, stderr=line, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(line)
        self._reader = threading.Thread(target=self._read_terminal, args=(self._terminal,), daemon=True)
        self._reader.start()

    def _read_terminal(self, terminal: int) -> None:
        with contextlib.suppress(OSError):
            while self._terminal is not None:
                if select.select([terminal], [], [], 0.05)[0]:
                    self._shown += os.read(terminal, 1 << 16)

    # ------------------------------------------------------------------ the command line

    @property
    def output(self) -> bytes:
        """Standard output so far."""
        return os.pread(self._out.fileno(), 1 << 26, 0)

    @property
    def errors(self) -> str:
        """Standard error, or what the terminal showed, so far."""
        return (bytes(self._shown) or os.pread(self._err.fileno(), 1 << 26, 0)).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        """Press keys at its terminal."""
        assert self._terminal is not None
        os.write(self._terminal, keys)

    def hang_up(self) -> None:
        """Close its terminal, as a window that is closed or a connection that is lost."""
        assert self._terminal is not None
        terminal, self._terminal = self._terminal, None
        self._reader.join()  # a read in progress would keep the terminal open
        os.close(terminal)

    def wait_for(self, words: str) -> None:
        """Wait until it has said `words` on standard error."""
        eventually(lambda: words in self.errors, PATIENCE_S, f"{words!r} is said")

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit status (negative: the signal)."""
        ends = time.monotonic() + timeout_s
        if self.process.returncode is None:
            # `wait` only looks every 50 ms: whoever times the end would measure that.
            wait_for_exits([self.process.pid], timeout_s)
        try:
            return self.process.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args!r} is still there; it said: {self.errors[-2000:]}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._terminal is not None:
            self.hang_up()
        self._out.close()
        self._err.close()

    # ------------------------------------------------------------------ its fleet

    def store(self) -> Path:
        """The store of the fleet, once its spawner holds it."""

        def held() -> Path | None:
            assert self.process.poll() in (None, 0), f"it ended with {self.process.poll()}: {self.errors}"
            return next((store for store in self.place.stores() if lock.running_pid(store) is not None), None)

        return eventually(held, PATIENCE_S, "a fleet runs") or Path()

    def ping(self) -> dict[str, Any] | None:
        """What the spawner knows; None when it has ended. Notes every process of the fleet."""
        try:
            with SpawnerClient.connect(self._known_store()) as client:
                told = client.ping()
        except (FleetNotRunningError, OSError, AssertionError):
            return None
        below = (*told["teams"], *told["workers"])
        pids = [told["pid"], told["coordinator"]["pid"], *(process["pid"] for process in below)]
        self.place.note(pid for pid in pids if pid)
        return told

    def _known_store(self) -> Path:
        stores = [store for store in self.place.stores() if lock.running_pid(store) is not None]
        if not stores:
            raise FleetNotRunningError("there is none")
        return stores[0]

    def coordinator(self) -> int | None:
        """Pid of the living coordinator."""
        told = self.ping()
        return None if told is None else told["coordinator"]["pid"]

    def workers(self) -> dict[str, int]:
        """Worker -> pid of those that live."""
        told = self.ping()
        return {} if told is None else {worker["worker"]: worker["pid"] for worker in told["workers"]}

    def teams(self) -> dict[str, int]:
        """Team -> pid of the coordinators of teams that live."""
        told = self.ping()
        return {} if told is None else {team["team"]: team["pid"] for team in told["teams"]}


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    _heed_signals()


def _heed_signals() -> None:
    """As at a login: tests that were started in the background must not hand down that keys mean nothing."""
    for key in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(key, signal.SIG_DFL)


def _is_zombie(pid: int) -> bool:
    started = start_time_of(pid)
    return started is None or is_gone(pid, started)


def describe(pid: int) -> str:
    """Arguments, state and parent of a process, for a failed assertion."""
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        fields = Path(f"/proc/{pid}/stat").read_text().split()
        return f"{arguments[:200]} ({fields[1]}, {fields[2]}, child of {fields[3]})"
    return "gone"


# --------------------------------------------------------------------------- results


def lines_of(results: Path) -> list[dict[str, Any]]:
    """The whole lines of a results file."""
    try:
        text = results.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def count_of(results: Path) -> int:
    """How many whole lines a results file has."""
    try:
        return results.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for_lines(results: Path, count: int) -> None:
    """Wait until a results file has at least `count` lines."""
    eventually(lambda: count_of(results) >= count, PATIENCE_S, f"{count} results")


def assert_recorded_once(results: Path, inputs: list[str]) -> list[dict[str, Any]]:
    """Each input has exactly one line, and that line says done."""
    lines = lines_of(results)
    assert [line for line, count in Counter(line["task"] for line in lines).items() if count > 1] == []
    assert {line["task"]: line["input"] for line in lines} == dict(enumerate(inputs, 1))
    assert {line["outcome"] for line in lines} <= {"done"}
    return lines
