"""The spawner when the system refuses it something, or somebody talks nonsense to it: it lives, it says what it could not do, and above
all it never calls a tree dead that lives.

The faults are the kernel's own (resource limits set from outside, records of any bytes, floods of signals); only a refused fork is played,
because root has no limit of processes.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muster.core.orders import ExitSeen, ListWorkers, WorkerExited, WorkerStarted
from muster.supervise import platform, spare, tree
from muster.supervise.lock import running_pid
from muster.supervise.server import NAME
from muster.testing import eventually

from .spawner_toys import ToyFleet, fleet, marked

__all__ = ["fleet"]


@contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """The soft limit of a running process, lowered for a while."""
    before = resource.prlimit(pid, what, (soft, resource.prlimit(pid, what)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


@contextmanager
def no_descriptor_free(pid: int) -> Iterator[None]:
    """A running process in which no descriptor can be opened."""
    highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
    held = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = next(fd for fd in range(highest + 2) if fd not in held)
    with limited(pid, resource.RLIMIT_NOFILE, lowest_free):
        yield


# --------------------------------------------------------------------------- refused forks


@pytest.fixture
def no_forks(fleet: ToyFleet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, forks are refused in every process that is started from here on."""
    flag = fleet.store / "no-forks"
    fork = os.fork

    def refuse() -> int:
        if flag.exists():
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", refuse)
    return flag


def test_a_refused_fork_is_an_exit_of_that_worker_and_nobody_elses_business(
    fleet: ToyFleet, no_forks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    neighbour = coordinator.spawn("neighbour", do="wait")
    no_forks.touch()
    coordinator.order("w", do="wait")
    told = coordinator.exited("w")
    assert (told.pid, told.exit_status, told.survivors) == (0, 71, [])
    no_forks.unlink()
    assert coordinator.spawn("w", incarnation=2, do="wait").pid > 0
    assert not tree.is_gone(neighbour.pid, neighbour.start_time)
    coordinator.finish()
    assert client.wait(10) == 0
    assert "cannot start worker 'w': Resource temporarily unavailable" in capfd.readouterr().err


def test_a_coordinator_that_cannot_be_forked_is_tried_again_while_its_workers_live(
    fleet: ToyFleet, no_forks: Path
) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w", do="wait")
    no_forks.touch()
    coordinator.kill()
    eventually(lambda: client.ping()["coordinator"]["pid"] is None)
    no_forks.unlink()
    second = fleet.coordinator()
    assert [entry.pid for entry in second.list().alive] == [worker.pid]
    second.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- no room, no descriptors


def test_a_record_that_cannot_be_written_costs_the_fleet_nothing(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    with limited(client.pid, resource.RLIMIT_FSIZE, 0):  # each write to a file fails, as on a full disk
        told = [coordinator.spawn(f"w-{number}", do="exit", status=3) for number in range(20)]
        assert [coordinator.exited(entry.worker).exit_status for entry in told] == [3] * 20
        living = coordinator.spawn("living", do="wait")
    assert coordinator.list().alive[-1].pid == living.pid
    coordinator.finish()
    assert client.wait(10) == 0


def test_without_a_free_descriptor_a_tree_is_still_listed_and_killed_before_it_is_called_dead(
    fleet: ToyFleet, tmp_path: Path
) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    for round_ in range(3):
        into = tmp_path / f"child-{round_}"
        worker = coordinator.spawn("w", incarnation=round_ + 1, do="wait_with_child", into=str(into))
        child = _number_in(into)
        started = platform.start_time_of(child) or 0
        with no_descriptor_free(client.pid):
            os.kill(worker.pid, signal.SIGKILL)
            assert coordinator.exited("w", incarnation=round_ + 1).survivors == []
            assert tree.is_gone(child, started), "its exit was told while a process of its tree lived"
        coordinator.send(ExitSeen(worker="w", incarnation=round_ + 1))
    coordinator.finish()
    assert client.wait(10) == 0


def test_without_even_a_spare_descriptor_nothing_is_proven_until_there_is_one(
    fleet: ToyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a dead worker has left cannot be listed then, and no list is not an empty list."""
    monkeypatch.setattr(spare, "_SPARE", 0)
    client = fleet.start()
    coordinator = fleet.coordinator()
    into = tmp_path / "child"
    worker = coordinator.spawn("w", do="wait_with_child", into=str(into))
    child = _number_in(into)
    with no_descriptor_free(client.pid):
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: tree.is_gone(worker.pid, worker.start_time), 10.0)
        assert not _is_readable(coordinator.control, within_s=0.5)
        assert not tree.is_gone(child, platform.start_time_of(child) or 0), "it lives: nobody could kill it"
    assert coordinator.exited("w").survivors == []
    assert tree.is_gone(child, platform.start_time_of(child) or 0)
    coordinator.finish()
    assert client.wait(10) == 0


def _number_in(file: Path) -> int:
    """What a toy has written down, once it has."""
    eventually(file.exists, 10.0)
    return int(file.read_text())


def _is_readable(control: socket.socket, within_s: float) -> bool:
    return bool(select.select([control], [], [], within_s)[0])


def test_without_a_free_descriptor_workers_and_clients_are_refused_and_it_does_not_spin(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w-1", do="wait")
    coordinator.list()  # what the spawn brought along has been closed
    with no_descriptor_free(client.pid):
        coordinator.order("w-2", do="wait")  # the grant cannot be received
        assert coordinator.exited("w-2").exit_status == 71
        assert client.ping()["workers"][0]["pid"] == worker.pid, "who is connected is served"
        with _knocking(fleet.store) as door:
            refusal = json.loads(door.recv(4096))["error"]
            assert (refusal["code"], refusal["retry_after_s"]) == ("fleet", 1.0)
        busy_s = _cpu_s(client.pid)
        assert not _is_readable(coordinator.control, within_s=0.5)
        assert _cpu_s(client.pid) - busy_s < 0.25, "it spins"
    assert coordinator.spawn("w-2", incarnation=2, do="wait").pid > 0
    coordinator.finish()
    assert client.wait(10) == 0


@contextmanager
def _knocking(store: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as door, platform.short_path(store, NAME) as address:
        door.settimeout(5)
        door.connect(address)
        door.sendall(b'{"op": "ping"}\n')
        yield door


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------- nonsense


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_on_its_control_link_harm_nobody(
    fleet: ToyFleet, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(seed)
    client = fleet.start()
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w", do="wait")
    null = os.open(os.devnull, os.O_RDONLY)
    coordinator.list()  # what the spawn brought along has been closed
    before = len(os.listdir(f"/proc/{client.pid}/fd"))
    kinds = [b"spawn", b"kill", b"finished", b"exit_seen", b"reown", b"nothing"]
    for _ in range(200):
        if dice.random() < 0.5:
            record = dice.randbytes(dice.choice([1, 7, 300, 70_000]))
        else:  # well begun, badly ended
            kind = dice.choice(kinds)
            record = bytes([0x82, 0xA4]) + b"type" + bytes([0xA0 + len(kind)]) + kind + dice.randbytes(9)
        coordinator.control.settimeout(10)
        coordinator.send_raw(record, *[null] * dice.choice([0, 0, 1, 4]))
    os.close(null)
    coordinator.send(ListWorkers())
    listing = coordinator.list()
    assert [entry.pid for entry in listing.alive] == [worker.pid], f"seed {seed}"
    assert len(os.listdir(f"/proc/{client.pid}/fd")) == before, (
        f"seed {seed}: descriptors that came with nonsense stay open"
    )
    coordinator.finish()
    assert client.wait(10) == 0
    assert "no message" in capfd.readouterr().err


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_at_its_door_harm_nobody(fleet: ToyFleet, seed: int) -> None:
    dice = random.Random(seed)
    client = fleet.start()
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w", do="wait")
    for _ in range(40):
        with socket.socket(socket.AF_UNIX) as door, platform.short_path(fleet.store, NAME) as address:
            door.settimeout(5)
            door.connect(address)
            words = dice.choice([b'{"op":', b'{"op": "stop", "mode": 7}', b"[1]", b"", b"null"])
            try:
                door.sendall(words + dice.randbytes(dice.choice([0, 10, 5000])) + dice.choice([b"\n", b""]))
            except BrokenPipeError:
                continue
    assert client.ping()["workers"][0]["pid"] == worker.pid, f"seed {seed}"
    assert client.ping()["stopping"] is None, f"seed {seed}"
    coordinator.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- signals


def test_a_storm_of_signals_costs_no_exit_and_no_stop(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    harmless = (signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG)
    for number in range(30):
        coordinator.order(f"w-{number}", do="exit", status=number)
        for _ in range(100):
            for each in harmless:
                os.kill(client.pid, each)
    for number in range(30):
        assert coordinator.exited(f"w-{number}", 20).exit_status == number
        coordinator.send(ExitSeen(worker=f"w-{number}", incarnation=1))
    assert client.ping()["stopping"] is None
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_hundred_signals_to_stop_are_one_stop_that_is_carried_out(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start(grace_s=0.2)
    coordinator = fleet.coordinator()
    ready = tmp_path / "ready"
    stubborn = coordinator.spawn("w", do="stubborn", ready=str(ready))
    eventually(ready.exists)
    for _ in range(100):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(client.pid, number)
    assert client.wait(15) != 0
    assert tree.is_gone(stubborn.pid, stubborn.start_time)
    assert running_pid(fleet.store) is None


def test_a_spawner_that_was_stopped_and_goes_on_has_missed_nothing(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    mark = f"stopped-{os.getpid()}-{time.monotonic_ns()}"
    workers = [coordinator.spawn(f"w-{number}", do="wait") for number in range(5)]
    coordinator.spawn("nasty", do="nasty", marker=mark, folder=str(tmp_path), hop_s=0.1)
    eventually(lambda: len(list(tmp_path.glob("cleared.*"))) == 1, 20.0, "the nasty command is at work")
    os.kill(client.pid, signal.SIGSTOP)
    nasty = next(entry for entry in _workers_of(client.pid) if entry not in {worker.pid for worker in workers})
    for pid in (*(worker.pid for worker in workers), nasty):
        os.kill(pid, signal.SIGKILL)
    os.kill(client.pid, signal.SIGCONT)
    for name in (*(worker.worker for worker in workers), "nasty"):
        assert coordinator.exited(name).signal == signal.SIGKILL
    assert not marked(mark)
    coordinator.finish()
    assert client.wait(10) == 0


def _workers_of(spawner: int) -> list[int]:
    found = []
    for pid in platform.children_of(spawner):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name.startswith("muster:w") or name == "muster:nasty":
            found.append(pid)
    return found


def test_exits_and_births_are_told_in_a_fixed_shape(fleet: ToyFleet) -> None:
    """What the faults above compare with: one birth, one exit, in this order."""
    client = fleet.start()
    coordinator = fleet.coordinator()
    coordinator.order("w", do="exit", status=4)
    assert isinstance(coordinator.receive(), WorkerStarted)
    told = coordinator.receive()
    assert isinstance(told, WorkerExited)
    assert (told.exit_status, told.signal, told.survivors) == (4, None, [])
    coordinator.finish()
    assert client.wait(10) == 0
