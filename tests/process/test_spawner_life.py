"""Births, deaths and restarts, with real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from muster.core.orders import ExitSeen, KillWorker, SpawnWorker, StopFleet, WorkerExited, WorkerStarted
from muster.errors import (
    FleetNotRunningError,
    FleetRunningError,
    SpawnFailedError,
    StoreVersionError,
    UnsafePermissionsError,
)
from muster.supervise import platform, tree
from muster.supervise.client import SpawnerClient
from muster.supervise.spawner import Entries, start_spawner
from muster.testing import eventually

from .spawner_toys import ToyFleet, coordinator_entry, fleet, living_children, marked, worker_entry

__all__ = ["fleet"]


def test_a_fleet_ends_with_the_status_its_coordinator_gives(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    started = coordinator.spawn("w-1", do="wait")
    assert client.ping()["workers"] == [
        {
            "worker": "w-1",
            "incarnation": 1,
            "pid": started.pid,
            "start_time": platform.start_time_of(started.pid),
            "owner": "coordinator",
        }
    ]
    coordinator.finish(7)
    assert client.wait(10) == 7
    assert tree.is_gone(started.pid, started.start_time)
    assert not (fleet.store / "spawner.sock").exists()
    assert not (fleet.store / "spawner.children").exists()
    with pytest.raises(FleetNotRunningError):
        SpawnerClient.connect(fleet.store)


def test_a_worker_is_born_with_nothing_but_its_own(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    other = coordinator.spawn("w-other", do="wait")
    with SpawnerClient.connect(fleet.store) as visitor:  # an accepted connection in the spawner, too
        visitor.ping()
        started = coordinator.spawn("w-1", do="describe", into=str(tmp_path / "facts"))
        eventually((tmp_path / "facts").exists)
    facts = json.loads((tmp_path / "facts").read_text())
    own = sorted(int(fd) for fd in facts["fds"] if int(fd) > 2)
    assert len(own) == 2, facts["fds"]
    assert [facts["fds"][str(fd)].split(":")[0] for fd in own if fd == facts["lifeline"]] == ["pipe"]
    assert any("memfd:grant" in target for target in facts["fds"].values())
    assert facts["session"] == facts["pid"] == started.pid
    assert facts["name"] == "muster:w-1"
    assert facts["mask"] == []
    assert all(facts["default"])
    assert facts["stdin"] == "/dev/null"
    assert started.start_time == platform.start_time_of(started.pid)
    assert os.getsid(client.pid) == client.pid != os.getsid(0)
    assert Path(f"/proc/{client.pid}/comm").read_text() == "muster:spawner\n"
    assert os.readlink(f"/proc/{client.pid}/fd/0") == "/dev/null"
    coordinator.finish()
    assert client.wait(10) == 0
    assert tree.is_gone(other.pid, other.start_time)


def test_an_exit_is_told_with_its_status_or_its_signal(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    coordinator.order("w-1", do="exit", status=3)
    told = coordinator.exited("w-1")
    assert (told.exit_status, told.signal, told.survivors) == (3, None, [])
    waiting = coordinator.spawn("w-2", do="wait")
    coordinator.send(KillWorker(worker="w-2", incarnation=1, signal=signal.SIGTERM))
    told = coordinator.exited("w-2")
    assert (told.exit_status, told.signal, told.pid) == (None, signal.SIGTERM, waiting.pid)
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_killed_coordinator_is_started_again_and_told_who_lives(fleet: ToyFleet) -> None:
    client = fleet.start()
    first = fleet.coordinator()
    started = first.spawn("w-1", do="wait")
    first.kill()
    second = fleet.coordinator()
    assert second.pid != first.pid
    listing = second.list()
    assert listing.alive == [started]
    assert listing.exited == []
    assert listing.coordinator_restarts == 1
    assert client.ping()["coordinator"] == {"pid": second.pid, "restarts": 1}
    second.finish()
    assert client.wait(10) == 0


def test_exits_are_kept_until_a_coordinator_has_seen_them(fleet: ToyFleet) -> None:
    client = fleet.start()
    first = fleet.coordinator()
    a, b = first.spawn("a", do="wait"), first.spawn("b", do="wait")
    os.kill(a.pid, signal.SIGKILL)
    first.exited("a")  # told, but not acknowledged
    first.kill()
    os.kill(b.pid, signal.SIGKILL)  # nobody is there to be told
    second = fleet.coordinator()
    eventually(lambda: len(second.list().exited) == 2)
    told = {exit_.worker: exit_ for exit_ in second.list().exited}
    assert told["a"] == WorkerExited(worker="a", incarnation=1, pid=a.pid, exit_status=None, signal=9)
    assert told["b"] == WorkerExited(worker="b", incarnation=1, pid=b.pid, exit_status=None, signal=9)
    second.send(ExitSeen(worker="a", incarnation=1))
    assert [exit_.worker for exit_ in second.list().exited] == ["b"]
    second.send(ExitSeen(worker="b", incarnation=1))
    second.kill()
    third = fleet.coordinator()
    assert third.list().exited == []
    third.finish()
    assert client.wait(10) == 0


def test_a_repeated_order_makes_no_second_worker(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    first = coordinator.spawn("w-1", do="wait")
    assert coordinator.spawn("w-1", do="wait") == first
    assert [entry["pid"] for entry in client.ping()["workers"]] == [first.pid]
    os.kill(first.pid, signal.SIGKILL)
    told = coordinator.exited("w-1")
    coordinator.order("w-1", do="wait")
    assert coordinator.exited("w-1") == told
    assert client.ping()["workers"] == []
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_worker_without_a_grant_is_told_as_an_exit(fleet: ToyFleet, capfd: pytest.CaptureFixture[str]) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    coordinator.send_raw(b"\xc1 no message", 0)
    coordinator.send_raw(b"\x81\xa4type\xa5spawn\xa6worker\xa3w-1")
    coordinator.send(SpawnWorker(worker="w-1", incarnation=4))
    told = coordinator.exited("w-1")
    assert (told.pid, told.exit_status, told.incarnation) == (0, 71, 4)
    coordinator.finish()
    assert client.wait(10) == 0
    stderr = capfd.readouterr().err
    assert stderr.count("no message") == 2
    assert "cannot start worker 'w-1'" in stderr


def test_the_coordinator_dying_too_often_ends_the_workers(fleet: ToyFleet, capfd: pytest.CaptureFixture[str]) -> None:
    client = fleet.start(orphan_grace_s=0.5)
    coordinator = fleet.coordinator()
    gentle = coordinator.spawn("gentle", do="wait")
    stubborn = coordinator.spawn("stubborn", do="stubborn", ready=str(fleet.store / "ready"))
    eventually((fleet.store / "ready").exists)
    coordinator.kill()
    for _ in range(10):
        coordinator = fleet.coordinator()
        coordinator.exit(1)
    assert client.wait(15) == 1
    assert tree.is_gone(gentle.pid, gentle.start_time)
    assert tree.is_gone(stubborn.pid, stubborn.start_time)
    assert "died 11 times in 60 s; the workers are stopped" in capfd.readouterr().err


def test_workers_are_kept_when_the_policy_says_so(fleet: ToyFleet, capfd: pytest.CaptureFixture[str]) -> None:
    client = fleet.start(orphan_policy="keep")
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w-1", do="wait")
    coordinator.kill()
    for _ in range(10):
        fleet.coordinator().exit(1)
    eventually(lambda: client.ping()["coordinator"] == {"pid": None, "restarts": 10})
    assert not tree.is_gone(worker.pid, worker.start_time)
    # A stop needs somebody to carry it out: a coordinator is tried at once, not after the long pause.
    client.stop("drain", "enough")
    last = fleet.coordinator()
    assert last.expect(StopFleet) == StopFleet(mode="drain", reason="enough")
    last.finish(0)
    assert client.wait(10) == 0
    assert "the workers go on" in capfd.readouterr().err


def test_two_hundred_lives_leave_no_descriptor_behind(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()

    def open_fds() -> int:
        return len(os.listdir(f"/proc/{client.pid}/fd"))

    coordinator.order("w-0", do="exit", status=0)
    coordinator.send(ExitSeen(worker="w-0", incarnation=coordinator.exited("w-0").incarnation))
    before = open_fds()
    for number in range(1, 201):
        coordinator.order(f"w-{number}", do="exit", status=number % 7)
    for number in range(1, 201):
        assert coordinator.exited(f"w-{number}", 20).exit_status == number % 7
        coordinator.send(ExitSeen(worker=f"w-{number}", incarnation=1))
    assert coordinator.list().exited == []
    assert open_fds() == before
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_hundred_workers(fleet: ToyFleet, capsys: pytest.CaptureFixture[str]) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    began = time.perf_counter()
    for number in range(100):
        coordinator.order(f"w-{number}", do="wait")
    pids = {coordinator.expect(WorkerStarted, worker=f"w-{number}").pid for number in range(100)}
    forked_s = time.perf_counter() - began
    assert len(pids) == 100
    coordinator.finish()
    assert client.wait(20) == 0
    ended_s = time.perf_counter() - began - forked_s
    with capsys.disabled():
        print(f"\n[100 workers: forked in {forked_s * 1000:.0f} ms, all gone {ended_s * 1000:.0f} ms after the end]")


def test_a_coordinator_that_does_not_read_costs_no_exit(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    for _ in range(10_000):  # far more answers than the socket holds
        coordinator.send(KillWorker(worker="nobody", incarnation=1, signal=9))
        coordinator.send_raw(b"\x81\xa4type\xa4list")
    coordinator.order("w-1", do="exit", status=5)
    assert client.ping()["pid"] == client.pid  # it answers others meanwhile
    assert len(os.listdir(f"/proc/{client.pid}/fd")) < 20
    assert coordinator.exited("w-1", 20).exit_status == 5
    coordinator.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- starting


def test_a_second_start_is_refused_and_names_the_living_spawner(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    with pytest.raises(FleetRunningError) as caught:
        start_spawner(fleet.store, fleet.entries, foreground=True)
    assert caught.value.facts["pid"] == client.pid
    assert str(client.pid) in caught.value.message
    coordinator.finish()
    assert client.wait(10) == 0


def test_two_starts_at_once_give_one_spawner(fleet: ToyFleet) -> None:
    """Both pass the first look at the lock: the lock itself decides."""
    from muster.supervise import lock

    fleet.write_spec()
    held = lock.running_pid(fleet.store)
    assert held is None
    first = start_spawner(fleet.store, fleet.entries, foreground=True)
    fleet.client = first
    real, lock.running_pid = lock.running_pid, lambda store: None
    try:
        with pytest.raises(FleetRunningError) as caught:
            start_spawner(fleet.store, fleet.entries, foreground=True)
    finally:
        lock.running_pid = real
    assert caught.value.facts["pid"] == first.pid
    fleet.coordinator().finish()
    assert first.wait(10) == 0


def test_a_store_that_is_none_is_a_sentence(fleet: ToyFleet) -> None:
    with pytest.raises(SpawnFailedError, match="there is no fleet at"):
        start_spawner(fleet.store, fleet.entries, foreground=True)
    with pytest.raises(SpawnFailedError, match="there is no fleet at"):
        start_spawner(fleet.store / "nowhere", fleet.entries, foreground=True)
    fleet.write_spec()
    (fleet.store / "spec.json").write_text("{}")
    with pytest.raises(StoreVersionError):
        start_spawner(fleet.store, fleet.entries, foreground=True)
    (fleet.store / "spec.json").chmod(0o666)
    with pytest.raises(UnsafePermissionsError):
        start_spawner(fleet.store, fleet.entries, foreground=True)
    assert living_children() == []


@pytest.mark.parametrize("foreground", [True, False])
def test_closed_standard_streams_are_no_trap(fleet: ToyFleet, foreground: bool) -> None:
    """Some service managers start programs so: numbers 0 to 2 must not go to the spawner's sockets."""
    fleet.write_spec()
    pid = os.fork()
    if pid == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        try:
            os._exit(start_spawner(fleet.store, fleet.entries, foreground=foreground).wait(20))
        finally:
            os._exit(99)
    coordinator = fleet.coordinator()
    coordinator.spawn("w-1", do="wait")
    coordinator.finish(6)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_code_that_cannot_be_loaded_is_a_sentence(fleet: ToyFleet) -> None:
    def broken() -> None:
        raise ImportError("No module named 'nowhere'")

    fleet.write_spec()
    entries = Entries(coordinator=coordinator_entry, worker=worker_entry, preload=broken)
    with pytest.raises(SpawnFailedError, match="ImportError: No module named 'nowhere'"):
        start_spawner(fleet.store, entries, foreground=True)
    assert living_children() == []


def test_a_store_with_a_long_path_works(fleet: ToyFleet, tmp_path: Path) -> None:
    store = tmp_path / ("long-" * 30) / "toys"
    store.mkdir(0o700, parents=True)
    long = ToyFleet(store)
    try:
        client = long.start()
        coordinator = long.coordinator()
        with SpawnerClient.connect(store) as visitor:
            assert visitor.pid == client.pid
        coordinator.finish(4)
        assert client.wait(10) == 4
    finally:
        long.close()


def test_nothing_that_its_starter_had_open_stays_open(fleet: ToyFleet) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        client = fleet.start(foreground=False)
        coordinator = fleet.coordinator()
        os.close(write_end)
        os.set_blocking(read_end, False)
        assert os.read(read_end, 1) == b"", "somebody still holds the other end"
    finally:
        os.close(read_end)
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_fleet_in_the_background_lives_on_its_own_and_keeps_no_stream_open(fleet: ToyFleet) -> None:
    client = fleet.start(foreground=False)
    coordinator = fleet.coordinator()
    client.close()
    with SpawnerClient.connect(fleet.store) as other:
        assert other.ping()["stopping"] is None
        streams = {os.readlink(f"/proc/{other.pid}/fd/{fd}") for fd in (1, 2)}
        assert streams == {str(fleet.store / "spawner.log")}
        coordinator.kill()
        fleet.coordinator().finish(0)
        assert other.wait(10) == 0
    assert "was killed by SIGKILL; starting it again" in (fleet.store / "spawner.log").read_text()


# --------------------------------------------------------------------------- the door


def _talk(store: Path, *lines: bytes) -> list[dict[str, object]]:
    with socket.socket(socket.AF_UNIX) as visitor, platform.short_path(store, "spawner.sock") as address:
        visitor.settimeout(5)
        visitor.connect(address)
        visitor.sendall(b"".join(line + b"\n" for line in lines))
        visitor.shutdown(socket.SHUT_WR)
        text = b""
        while part := visitor.recv(1 << 16):
            text += part
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"hello", "one line with a JSON object"),
        (b"[]", "one line with a JSON object"),
        (b"[" * 60000, "one line with a JSON object"),
        (b"\xff\xfe", "one line with a JSON object"),
        (b'{"op": "explode"}', "no such"),
        (b'{"op": ["ping"]}', "no such"),
        (b'{"op": "stop", "mode": "later"}', "mode"),
        (b'{"op": "stop", "mode": "drain", "reason": 7}', "reason"),
    ],
)
def test_a_bad_request_is_refused_and_harms_nobody(fleet: ToyFleet, line: bytes, complaint: str) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    refusal, answer = _talk(fleet.store, line, b'{"op": "ping"}')
    assert refusal["error"]["code"] == "usage"  # type: ignore[index]
    assert complaint in refusal["error"]["message"]  # type: ignore[index]
    assert answer["pid"] == client.pid
    assert client.ping()["stopping"] is None
    coordinator.finish()
    assert client.wait(10) == 0


def test_an_endless_line_ends_its_connection_only(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    with socket.socket(socket.AF_UNIX) as visitor, platform.short_path(fleet.store, "spawner.sock") as address:
        visitor.settimeout(5)
        visitor.connect(address)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                visitor.send(b"x" * 65536)
    assert client.ping()["pid"] == client.pid
    coordinator.finish()
    assert client.wait(10) == 0


@pytest.mark.root
def test_another_user_is_refused(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    for path in (fleet.store, fleet.store.parent, fleet.store.parent.parent, fleet.store.parent.parent.parent):
        path.chmod(0o755)
    (fleet.store / "spawner.sock").chmod(0o666)  # even when the file system would let them in
    with socket.socket(socket.AF_UNIX) as visitor, platform.short_path(fleet.store, "spawner.sock") as address:
        visitor.settimeout(5)
        os.seteuid(65534)
        try:
            visitor.connect(address)
        finally:
            os.seteuid(0)
        text = b""
        while part := visitor.recv(4096):
            text += part
    assert json.loads(text)["error"]["code"] == "security.forbidden"
    coordinator.finish()
    assert client.wait(10) == 0


def test_waiting_can_be_given_up_and_taken_up_again(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    with pytest.raises(TimeoutError):
        client.wait(0.05)
    assert client.ping()["pid"] == client.pid
    coordinator.finish(3)
    assert client.wait(10) == 3
    assert client.wait(0) == 3


def test_marked_finds_what_it_is_asked_for() -> None:
    """The other tests' proof of absence rests on it."""
    assert os.getpid() in marked("pytest") or marked("python")
