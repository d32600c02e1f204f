"""A real spawner with toy processes: the test itself plays the coordinator, workers do what their grant says.

The forked coordinator connects to the test, hands over its control socket and waits to be told how to end. So a test speaks the control
protocol from its own lines, while the process that dies, is restarted and is signalled is a real one.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest

from muster.bus.store import write_spec
from muster.core.orders import (
    Finished,
    ListWorkers,
    SpawnWorker,
    ToCoordinator,
    ToSpawner,
    WorkerExited,
    WorkerList,
    WorkerStarted,
)
from muster.core.spec import AgentSpec, FleetSpec
from muster.supervise import platform, tree
from muster.supervise.client import SpawnerClient
from muster.supervise.spawner import Entries, start_spawner
from muster.testing import eventually

DOOR = "coordinator.door"
Message = TypeVar("Message", bound=msgspec.Struct)


# --------------------------------------------------------------------------- what runs in the forked processes


def coordinator_entry(store: Path, control_fd: int, name: str) -> int:
    """Hand the control socket to the test, then end as it says; when it goes away, end."""
    with socket.socket(socket.AF_UNIX) as door:
        with platform.short_path(store, DOOR) as address:
            door.connect(address)
        socket.send_fds(door, [f"{os.getpid()} {name}".encode()], [control_fd])
        said = door.recv(16)
        return int(said) if said else 0


def worker_entry(grant_fd: int, lifeline_fd: int) -> int:
    """Do what the grant says: a JSON object with `do`, the name of a function below, and its arguments."""
    grant = json.loads(os.pread(grant_fd, 1 << 16, 0))
    return int(BEHAVIOURS[grant.pop("do")](lifeline_fd, **grant) or 0)


def _wait(lifeline_fd: int) -> None:
    select.select([lifeline_fd], [], [])


def _exit(_lifeline_fd: int, status: int) -> int:
    return status


def _stubborn(_lifeline_fd: int, ready: str) -> None:
    """Ignore every wish to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(ready).touch()
    while True:
        signal.pause()


def _describe(lifeline_fd: int, into: str) -> None:
    """Write down what this process was born with, then wait."""
    facts = {
        "fds": {
            fd: os.readlink(f"/proc/self/fd/{fd}")
            for fd in platform.open_fds()
            if os.path.exists(f"/proc/self/fd/{fd}")
        },
        "lifeline": lifeline_fd,
        "session": os.getsid(0),
        "pid": os.getpid(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "default": [signal.getsignal(number) == signal.SIG_DFL for number in (15, 2, 1, 17)],
        "stdin": os.readlink("/proc/self/fd/0"),
        "thread_children": platform.children_of(os.getpid()),
    }
    Path(into).with_suffix(".new").write_text(json.dumps(facts))
    os.rename(Path(into).with_suffix(".new"), into)
    _wait(lifeline_fd)


#: A command as nasty as they come: ignores signals, leaves its group, session and parent, clears its environment, keeps hopping to
#: new pids. argv: marker (found again in the command line), folder for a file per generation, seconds to hop.
NASTY = """
import os, signal, subprocess, sys, time
marker, folder, hop_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
for number in (1, 2, 15):
    signal.signal(number, signal.SIG_IGN)
def note(name):
    open(os.path.join(folder, f"{name}.{os.getpid()}"), "w").close()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note("double-forked")
        subprocess.Popen(["env", "-i", "/bin/sh", "-c", "trap '' TERM HUP; : " + marker + "; while :; do sleep 1; done"])
        note("cleared")
        time.sleep(1000)
    os._exit(0)
os.wait()
if os.fork() == 0:
    ends, first = time.monotonic() + hop_s, True
    while time.monotonic() < ends:
        if os.fork():
            os._exit(0)
        os.setsid()
        if first:
            note("hopping")
            first = False
    note("hopped")
    time.sleep(1000)
note("command")
time.sleep(1000)
"""


def _nasty(lifeline_fd: int, marker: str, folder: str, hop_s: float) -> None:
    subprocess.Popen(
        [sys.executable, "-c", NASTY, marker, folder, str(hop_s)],
        start_new_session=True,
        env={**os.environ, "MUSTER_STORE_ID": marker},
    )
    _wait(lifeline_fd)


def _wait_with_child(lifeline_fd: int, into: str) -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    Path(into).with_suffix(".new").write_text(str(child.pid))
    os.rename(Path(into).with_suffix(".new"), into)
    _wait(lifeline_fd)


def _pause(_lifeline_fd: int) -> None:
    """Look at nothing: only a signal ends this one."""
    while True:
        signal.pause()


def _deaf(lifeline_fd: int, into: str) -> None:
    """Ignore SIGTERM, obey the lifeline."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(f"{into}.waits").touch()
    _wait(lifeline_fd)
    Path(into).touch()


BEHAVIOURS: dict[str, Callable[..., int | None]] = {
    "wait": _wait,
    "exit": _exit,
    "stubborn": _stubborn,
    "describe": _describe,
    "nasty": _nasty,
    "wait_with_child": _wait_with_child,
    "deaf": _deaf,
    "pause": _pause,
}


def marked(marker: str) -> list[int]:
    """Living processes with `marker` in their command line."""
    found = []
    for pid in platform.process_ids():
        with contextlib.suppress(OSError):
            if marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


# --------------------------------------------------------------------------- what the test holds


class Coordinator:
    """One living coordinator process, seen from the test."""

    def __init__(self, door: socket.socket, timeout_s: float) -> None:
        door.settimeout(timeout_s)
        self._connection, _ = door.accept()
        text, fds, _, _ = socket.recv_fds(self._connection, 100, 1)
        pid, self.name = text.decode().split()
        self.pid = int(pid)
        self.control = socket.socket(fileno=fds[0])
        self.control.settimeout(10)
        self._passed_over: list[Any] = []
        self._exits_heard: set[str] = set()

    def send(self, message: ToSpawner, *fds: int) -> None:
        socket.send_fds(self.control, [msgspec.msgpack.encode(message)], list(fds))

    def send_raw(self, record: bytes, *fds: int) -> None:
        socket.send_fds(self.control, [record], list(fds))

    def receive(self, timeout_s: float = 10.0) -> Any:
        self.control.settimeout(timeout_s)
        message = msgspec.msgpack.decode(self.control.recv(1 << 20), type=ToCoordinator)
        if isinstance(message, WorkerExited):
            self._exits_heard.add(message.worker)
        return message

    def expect(self, kind: type[Message], timeout_s: float = 10.0, **fields: Any) -> Message:
        """The next message of that kind with these fields; others are kept for later."""

        def fits(message: Any) -> bool:
            return isinstance(message, kind) and all(getattr(message, name) == value for name, value in fields.items())

        for message in self._passed_over:
            if fits(message):
                self._passed_over.remove(message)
                return cast("Message", message)
        ends = time.monotonic() + timeout_s
        while True:
            message = self.receive(max(0.01, ends - time.monotonic()))
            if fits(message):
                return cast("Message", message)
            self._passed_over.append(message)

    def spawn(self, worker: str, incarnation: int = 1, **grant: Any) -> WorkerStarted:
        """Ask for a worker and wait until it was forked."""
        self.order(worker, incarnation, **grant)
        return self.expect(WorkerStarted, worker=worker, incarnation=incarnation)

    def order(self, worker: str, incarnation: int = 1, **grant: Any) -> None:
        memfd = os.memfd_create("grant")
        try:
            os.write(memfd, json.dumps(grant).encode())
            self.send(SpawnWorker(worker=worker, incarnation=incarnation), memfd)
        finally:
            os.close(memfd)

    def order_team(self, name: str, incarnation: int = 1) -> None:
        self.send(SpawnWorker(worker=name, incarnation=incarnation, is_coordinator=True))

    def list(self) -> WorkerList:
        self.send(ListWorkers())
        return self.expect(WorkerList)

    def heard(self) -> builtins.list[str]:
        """The workers whose exits were told and received so far."""
        return sorted(self._exits_heard)

    def exited(self, worker: str, timeout_s: float = 10.0, **fields: Any) -> WorkerExited:
        return self.expect(WorkerExited, timeout_s, worker=worker, **fields)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def exit(self, status: int) -> None:
        self._connection.send(str(status).encode())

    def finish(self, exit_status: int = 0) -> None:
        self.send(Finished(exit_status=exit_status))
        self.exit(0)

    def close(self) -> None:
        self._connection.close()
        self.control.close()


class ToyFleet:
    """A store, its spawner, and the door at which its coordinators knock."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.store_id = os.urandom(16).hex()
        self.client: SpawnerClient | None = None
        self._coordinators: list[Coordinator] = []
        self.door = socket.socket(socket.AF_UNIX)
        with platform.short_path(store, DOOR) as address:
            self.door.bind(address)
        self.door.listen(16)

    @property
    def entries(self) -> Entries:
        return Entries(coordinator=coordinator_entry, worker=worker_entry, preload=lambda: None)

    def write_spec(self, **fields: Any) -> None:
        spec = FleetSpec(**{"name": "toys", "store_id": self.store_id, "agents": (AgentSpec(name="w"),), **fields})
        write_spec(self.store, spec)

    def start(self, *, foreground: bool = True, **fields: Any) -> SpawnerClient:
        """Start the spawner, with these fields of the spec."""
        self.write_spec(**fields)
        self.client = start_spawner(self.store, self.entries, foreground=foreground)
        return self.client

    def coordinator(self, timeout_s: float = 10.0) -> Coordinator:
        """The next coordinator that is started."""
        self._coordinators.append(Coordinator(self.door, timeout_s))
        return self._coordinators[-1]

    def team(self, root: Coordinator, name: str, incarnation: int = 1) -> Coordinator:
        """Let `root` start the coordinator of a team."""
        root.order_team(name, incarnation)
        team = self.coordinator()
        assert team.name == name
        assert team.pid == root.expect(WorkerStarted, worker=name, incarnation=incarnation).pid
        return team

    def no_coordinator_within(self, timeout_s: float) -> bool:
        return not select.select([self.door], [], [], timeout_s)[0]

    def close(self) -> None:
        """Whatever the test left running ends here."""
        if self.client is not None:
            with contextlib.suppress(Exception):
                self.client.stop("now")
            self.client.close()
        for coordinator in self._coordinators:
            coordinator.close()
        self.door.close()


def living_children() -> list[int]:
    """The test process's children that still run; the others are reaped."""
    living = []
    for pid in platform.children_of(os.getpid()):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                living.append(pid)
    return living


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails when a process started inside still runs afterwards: as a subreaper the test process inherits every orphan."""
    before = living_children()
    tree.set_subreaper()
    try:
        yield
        eventually(lambda: living_children() == before, 15.0, "every process has ended")
    finally:
        left = set(living_children()) - set(before)
        tree.kill_orphans(before, 5.0)
        platform._call_prctl(platform._PR_SET_CHILD_SUBREAPER, 0)
        assert not left, f"left behind: {left}"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[ToyFleet]:
    """A fleet in its own store; afterwards nothing of it runs."""
    store = tmp_path / "toys"
    store.mkdir(0o700)
    with nothing_left_behind():
        toys = ToyFleet(store)
        try:
            yield toys
        finally:
            toys.close()
