"""The ways a fleet ends: asked to, forced to, or robbed of its spawner. Afterwards nothing of it runs (the fixture looks)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muster.core.orders import Finished, StopFleet
from muster.errors import FleetNotRunningError
from muster.supervise import leftovers, lock, platform, tree
from muster.supervise.client import SpawnerClient
from muster.testing import eventually

from .spawner_toys import ToyFleet, fleet, marked

__all__ = ["fleet"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_the_coordinator_to_drain_and_a_second_one_means_now(fleet: ToyFleet, number: int) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    os.kill(client.pid, number)
    told = coordinator.expect(StopFleet)
    assert told.mode == "drain"
    assert signal.Signals(number).name in told.reason
    assert client.ping()["stopping"] == "drain"
    os.kill(client.pid, number)
    assert coordinator.expect(StopFleet).mode == "now"
    coordinator.finish(5)
    assert client.wait(10) == 5


def test_stop_by_the_door_passes_mode_and_reason_on(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    client.stop("drain", "end of the day")
    assert coordinator.expect(StopFleet) == StopFleet(mode="drain", reason="end of the day")
    client.stop("drain", "again")  # changes nothing, says nothing
    client.stop("now", "hurry")
    assert coordinator.receive() == StopFleet(mode="now", reason="hurry")
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_coordinator_restarted_during_a_stop_hears_of_it_first(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    client.stop("drain", "bye")
    coordinator.expect(StopFleet)
    coordinator.kill()
    second = fleet.coordinator()
    assert second.receive() == StopFleet(mode="drain", reason="bye")
    second.finish()
    assert client.wait(10) == 0


def test_a_fleet_that_does_not_drain_in_time_is_killed(fleet: ToyFleet, capfd: pytest.CaptureFixture[str]) -> None:
    client = fleet.start(grace_s=0.5)
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w-1", do="stubborn", ready=str(fleet.store / "ready"))
    eventually((fleet.store / "ready").exists)
    began = time.monotonic()
    client.stop("drain")
    assert client.wait(10) == 1
    took_s = time.monotonic() - began
    assert took_s >= 1.5, "the coordinator was robbed of its time: grace_s and one second"
    assert tree.is_gone(worker.pid, worker.start_time)
    assert "did not stop in time and was killed" in capfd.readouterr().err


def test_now_shortens_a_long_drain(fleet: ToyFleet) -> None:
    client = fleet.start(grace_s=3600)
    coordinator = fleet.coordinator()
    coordinator.spawn("w-1", do="stubborn", ready=str(fleet.store / "ready"))
    eventually((fleet.store / "ready").exists)
    client.stop("drain")
    client.stop("now")
    assert client.wait(15) == 1


def test_workers_that_outstay_the_end_are_terminated_then_killed(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    (tmp_path / "deeds").mkdir()
    gentle = coordinator.spawn("gentle", do="wait")
    stubborn = coordinator.spawn("stubborn", do="stubborn", ready=str(tmp_path / "ready"))
    marker = f"toys-{fleet.store_id}"
    coordinator.spawn("nasty", do="nasty", marker=marker, folder=str(tmp_path / "deeds"), hop_s=0.2)
    eventually((tmp_path / "ready").exists)
    eventually(lambda: len(list((tmp_path / "deeds").iterdir())) == 5, 20)
    coordinator.finish(0)
    assert client.wait(15) == 0
    assert tree.is_gone(gentle.pid, gentle.start_time)
    assert tree.is_gone(stubborn.pid, stubborn.start_time)
    assert marked(marker) == []


def test_a_coordinator_that_says_the_end_and_stays_is_killed(fleet: ToyFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.supervise.loop._FINISH_GRACE_S", 0.3)
    client = fleet.start()
    coordinator = fleet.coordinator()
    coordinator.send(Finished(exit_status=6))
    assert client.wait(10) == 6


def test_a_closed_client_in_the_foreground_drains_the_fleet(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    with SpawnerClient.connect(fleet.store) as other:
        client.close()
        assert coordinator.expect(StopFleet).mode == "drain"
        coordinator.finish()
        assert other.wait(10) == 0


def test_under_nohup_a_hangup_changes_nothing(fleet: ToyFleet, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        client = fleet.start(foreground=False)
    finally:
        signal.signal(signal.SIGHUP, before)
    coordinator = fleet.coordinator()
    os.kill(client.pid, signal.SIGHUP)
    os.kill(client.pid, signal.SIGCHLD)  # handled after it, so both are when the next line is answered
    assert client.ping()["stopping"] is None
    coordinator.spawn("w-1", do="describe", into=str(tmp_path / "facts"))  # which itself starts with default actions
    eventually((tmp_path / "facts").exists)
    assert all(json.loads((tmp_path / "facts").read_text())["default"])
    coordinator.finish()
    assert client.wait(10) == 0


def test_an_idle_spawner_does_not_wake_up(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    coordinator.spawn("w-1", do="wait")
    client.ping()

    def wakings() -> str:
        lines = Path(f"/proc/{client.pid}/status").read_text().splitlines()
        return next(line for line in lines if line.startswith("voluntary"))

    eventually(lambda: (first := wakings()) and fleet.no_coordinator_within(0.2) and wakings() == first)
    before = wakings()
    assert fleet.no_coordinator_within(1.5)
    assert wakings() == before
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_holder_that_goes_away_drains_the_fleet_and_a_visitor_does_not(fleet: ToyFleet) -> None:
    client = fleet.start(foreground=False)
    coordinator = fleet.coordinator()
    with SpawnerClient.connect(fleet.store) as visitor:
        visitor.ping()
    with SpawnerClient.connect(fleet.store) as holder:
        holder.hold()
        assert client.ping()["stopping"] is None
    assert coordinator.expect(StopFleet).mode == "drain"
    coordinator.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- the spawner is killed


def test_everything_ends_when_the_spawner_is_killed(fleet: ToyFleet) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    waiting = coordinator.spawn("w-1", do="wait")
    pausing = coordinator.spawn("w-2", do="pause")
    born = tree.start_time_of(coordinator.pid)
    assert born is not None
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(FleetNotRunningError):
        client.wait(10)
    eventually(lambda: tree.is_gone(waiting.pid, waiting.start_time))
    eventually(lambda: tree.is_gone(pausing.pid, pausing.start_time), what="the kernel's SIGTERM")
    eventually(lambda: tree.is_gone(coordinator.pid, born))
    with pytest.raises(FleetNotRunningError):
        SpawnerClient.connect(fleet.store)
    assert lock.running_pid(fleet.store) is None


def test_no_child_keeps_the_lifeline_open(fleet: ToyFleet, tmp_path: Path) -> None:
    """A worker that ignores SIGTERM still learns of the spawner's death: nobody else holds the other end."""
    client = fleet.start()
    coordinator = fleet.coordinator()
    stubborn = coordinator.spawn("stubborn", do="stubborn", ready=str(tmp_path / "ready"))  # a younger sibling's copy
    deaf = coordinator.spawn("deaf", do="deaf", into=str(tmp_path / "heard"))
    late = coordinator.spawn("late", do="stubborn", ready=str(tmp_path / "ready-too"))
    for name in ("ready", "ready-too", "heard.waits"):
        eventually((tmp_path / name).exists)
    os.kill(client.pid, signal.SIGKILL)
    eventually((tmp_path / "heard").exists, what="the lifeline ended")
    eventually(lambda: tree.is_gone(deaf.pid, deaf.start_time))
    for entry in (stubborn, late):
        os.kill(entry.pid, signal.SIGKILL)


def test_the_next_start_kills_what_a_killed_spawner_left(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    stubborn = coordinator.spawn("stubborn", do="stubborn", ready=str(tmp_path / "ready"))
    frozen = coordinator.spawn("frozen", do="describe", into=str(tmp_path / "frozen"))
    eventually((tmp_path / "ready").exists)
    eventually((tmp_path / "frozen").exists)  # stopped during its birth it would still hold the spawner's descriptors
    # A command whose worker is dead too: only its environment tells whose it was.
    command = subprocess.Popen(
        ["sleep", "1000"], env={"MUSTER_STORE_ID": fleet.store_id, "PATH": os.environ["PATH"]}, start_new_session=True
    )
    other = subprocess.Popen(
        ["sleep", "1000"], env={"MUSTER_STORE_ID": fleet.store_id + "0", "PATH": os.environ["PATH"]}
    )
    os.kill(frozen.pid, signal.SIGSTOP)  # it cannot act on anything
    eventually(lambda: (stat := platform.stat_of(frozen.pid)) is not None and stat.state == "T")
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(FleetNotRunningError):
        client.wait(10)
    left = {pid for pid, _ in leftovers.find_leftovers(fleet.store, fleet.store_id)}
    assert {stubborn.pid, frozen.pid, command.pid} <= left
    assert other.pid not in left
    client.close()
    again = fleet.start()
    assert tree.is_gone(stubborn.pid, stubborn.start_time)
    assert tree.is_gone(frozen.pid, frozen.start_time)
    assert command.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()
    second = fleet.coordinator()
    assert second.list().alive == []
    second.finish(0)
    assert again.wait(10) == 0


def test_find_marked_needs_the_whole_id(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(["sleep", "1000"], env={"MUSTER_STORE_ID": value, "PATH": os.environ["PATH"]})
        for value in ("feed", "feedfeed", "fee")
    ]
    try:
        eventually(lambda: len(tree.find_marked("feed")) == 1)
        assert tree.find_marked("feed") == [(processes[0].pid, tree.start_time_of(processes[0].pid))]
    finally:
        for process in processes:
            process.kill()
            process.wait()


# --------------------------------------------------------------------------- the store


def _ephemeral_store(fleet: ToyFleet) -> None:
    from muster.bus.store import add_agent, create_store

    create_store(fleet.store)
    for agent in ("coordinator", "operator", "w"):
        add_agent(fleet.store, agent)


def test_an_ephemeral_store_goes_with_its_fleet(fleet: ToyFleet) -> None:
    _ephemeral_store(fleet)
    client = fleet.start(ephemeral=True)
    fleet.coordinator().finish(0)
    assert client.wait(10) == 0
    assert not fleet.store.exists()


def test_a_standing_store_stays(fleet: ToyFleet) -> None:
    _ephemeral_store(fleet)
    client = fleet.start(ephemeral=False)
    fleet.coordinator().finish(0)
    assert client.wait(10) == 0
    assert fleet.store.exists()


def test_a_killed_fleet_keeps_its_store(fleet: ToyFleet) -> None:
    _ephemeral_store(fleet)
    client = fleet.start(ephemeral=True, grace_s=0.0)
    fleet.coordinator()
    client.stop("drain")
    assert client.wait(10) == 1
    assert fleet.store.exists()


async def test_the_store_stays_while_its_holder_has_unread_words(fleet: ToyFleet) -> None:
    from muster.bus.bus import Bus
    from muster.security.keys import Keyring, load_master

    _ephemeral_store(fleet)
    client = fleet.start(ephemeral=True)
    coordinator = fleet.coordinator()
    keyring = Keyring.from_master(load_master(fleet.store), "coordinator")
    bus = await Bus.open(fleet.store, "coordinator", keyring)
    bus.post("operator", {"exit_status": 0}, type="run.ended")
    await bus.close()
    coordinator.finish(0)
    with pytest.raises(TimeoutError):
        client.wait(0.5)
    reader = await Bus.open(fleet.store, "operator", Keyring.from_master(load_master(fleet.store), "operator"))
    delivery = await reader.receive(timeout_s=5)
    assert delivery is not None
    delivery.ack()
    await reader.close()
    assert client.wait(10) == 0
    assert not fleet.store.exists()


# --------------------------------------------------------------------------- where it is started


_SCRIPT = """
import os, sys
from pathlib import Path
from muster.supervise.spawner import Entries, start_spawner
from muster.supervise.control import ControlLink
import msgspec
from muster.core.orders import Finished
import socket

def coordinator(store, control_fd, name):
    control = socket.socket(fileno=control_fd)
    control.send(msgspec.msgpack.encode(Finished(exit_status=9)))
    return 0

client = start_spawner(Path(sys.argv[1]), Entries(coordinator, lambda a, b: 0, lambda: None), foreground=True)
print("pids", os.getpid(), client.pid, client.wait(20), flush=True)
"""


@pytest.mark.root
def test_it_works_under_a_first_process_of_a_container(fleet: ToyFleet) -> None:
    fleet.write_spec()
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _SCRIPT, str(fleet.store)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.stdout == "pids 1 2 9\n", done.stderr


def test_ctrl_c_in_the_terminal_does_not_reach_the_fleet(fleet: ToyFleet) -> None:
    """The starter has a controlling terminal; interrupting its foreground group interrupts the starter only."""
    import pty

    fleet.write_spec()
    pid, terminal = pty.fork()
    if pid == 0:
        import signal as signals

        from muster.supervise.spawner import start_spawner

        try:
            signals.signal(signals.SIGINT, lambda *_: os.write(1, b"interrupted\n"))
            client = start_spawner(fleet.store, fleet.entries, foreground=True)
            os.write(1, f"spawner {client.pid}\n".encode())
            os._exit(client.wait(30))
        finally:
            os._exit(99)
    try:
        coordinator = fleet.coordinator()
        worker = coordinator.spawn("w-1", do="wait")
        seen = b""
        while b"spawner " not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while b"interrupted" not in seen:
            seen += os.read(terminal, 4096)
        with SpawnerClient.connect(fleet.store) as visitor:
            assert visitor.ping()["stopping"] is None
        assert not tree.is_gone(worker.pid, worker.start_time)
        coordinator.finish(8)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
    finally:
        os.close(terminal)
