"""Process trees: found, killed and proven dead, however hard they try."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.core.orders import KillWorker
from muster.supervise import ledger, platform, tree
from muster.testing import eventually

from .spawner_toys import NASTY, ToyFleet, fleet, marked, nothing_left_behind

__all__ = ["fleet"]


@pytest.fixture
def tidy() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def deeds(tmp_path: Path) -> Path:
    folder = tmp_path / "deeds"
    folder.mkdir()
    return folder


def _names(deeds: Path) -> set[str]:
    return {path.name.split(".")[0] for path in deeds.iterdir()}


ALL_DEEDS = {"command", "double-forked", "cleared", "hopping", "hopped"}


def test_a_dead_workers_tree_is_gone_before_its_exit_is_told(fleet: ToyFleet, deeds: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    marker = f"toys-{fleet.store_id}"
    worker = coordinator.spawn("w-1", do="nasty", marker=marker, folder=str(deeds), hop_s=0.1)
    bystander = coordinator.spawn("w-2", do="nasty", marker=f"other-{marker}", folder=str(deeds), hop_s=0.1)
    eventually(lambda: len(list(deeds.iterdir())) == 2 * len(ALL_DEEDS), 30)
    others = set(marked(f"other-{marker}"))
    assert len(marked(marker)) > len(others) >= 4
    os.kill(worker.pid, signal.SIGKILL)
    told = coordinator.exited("w-1")
    assert set(marked(marker)) == others, "something of the dead worker's tree lives, or the living one's was touched"
    assert told.survivors == []
    assert not tree.is_gone(bystander.pid, bystander.start_time)
    coordinator.send(KillWorker(worker="w-2", incarnation=1, signal=signal.SIGKILL, tree=True))
    coordinator.exited("w-2")
    assert marked(marker) == []
    coordinator.finish()
    assert client.wait(10) == 0


def test_a_tree_that_keeps_hopping_is_caught(fleet: ToyFleet, deeds: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    marker = f"toys-{fleet.store_id}"
    worker = coordinator.spawn("w-1", do="nasty", marker=marker, folder=str(deeds), hop_s=600)
    eventually(lambda: _names(deeds) == ALL_DEEDS - {"hopped"}, 20)
    os.kill(worker.pid, signal.SIGKILL)
    assert coordinator.exited("w-1", 20).survivors == []
    assert marked(marker) == []
    coordinator.finish()
    assert client.wait(10) == 0


def test_killing_a_workers_tree_ends_the_worker_too(fleet: ToyFleet, deeds: Path) -> None:
    client = fleet.start()
    coordinator = fleet.coordinator()
    marker = f"toys-{fleet.store_id}"
    coordinator.spawn("w-1", do="nasty", marker=marker, folder=str(deeds), hop_s=0.1)
    eventually(lambda: _names(deeds) == ALL_DEEDS, 20)
    coordinator.send(KillWorker(worker="w-1", incarnation=1, signal=signal.SIGTERM, tree=True))
    assert coordinator.exited("w-1").signal == signal.SIGKILL
    assert marked(marker) == []
    coordinator.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- a process that cannot be killed


def _trace_exit(pid: int) -> ctypes.CDLL:
    """Hold `pid` back from dying: its exit stops until the tracer, this thread, lets go (as a hung disk would)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    seize, trace_exit = 0x4206, 1 << 6
    if libc.ptrace(seize, pid, None, trace_exit) != 0:
        pytest.skip(f"cannot trace here: {os.strerror(ctypes.get_errno())}")
    return libc


def test_survivors_are_named_and_their_end_is_told_again(
    fleet: ToyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SURVIVORS_AFTER_S", 0.5)
    client = fleet.start()
    coordinator = fleet.coordinator()
    worker = coordinator.spawn("w-1", do="wait_with_child", into=str(tmp_path / "child"))
    child = int(eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
    libc = _trace_exit(child)
    os.kill(worker.pid, signal.SIGKILL)
    told = coordinator.exited("w-1")
    assert told.survivors == [child]
    # Another worker's proof is not delayed by it, and the loop goes on answering.
    other = coordinator.spawn("w-2", do="wait")
    os.kill(other.pid, signal.SIGKILL)
    assert coordinator.exited("w-2").survivors == []
    assert client.ping()["pid"] == client.pid
    os.waitpid(child, 0x40000000)  # __WALL: the tracee's stop on its way out
    libc.ptrace(17, child, None, None)  # let go
    again = coordinator.exited("w-1")
    assert again.survivors == []
    assert (again.pid, again.signal) == (worker.pid, signal.SIGKILL)
    coordinator.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- the functions themselves


def test_kill_orphans_ends_everything_but_what_is_kept(tidy: None, deeds: Path) -> None:
    marker = f"kill-orphans-{os.getpid()}-{time.time_ns()}"
    kept = subprocess.Popen(["sleep", "1000"])
    argv = [sys.executable, "-c", NASTY, marker, str(deeds), "0.1"]
    os.posix_spawn(sys.executable, argv, os.environ, setsid=True)
    eventually(lambda: _names(deeds) == ALL_DEEDS, 20)
    began = time.monotonic()
    assert tree.kill_orphans({kept.pid}, 5.0) == []
    assert time.monotonic() - began < 5
    assert marked(marker) == []
    assert kept.poll() is None
    kept.kill()
    kept.wait()


def test_kill_orphans_names_what_it_could_not_kill_in_time(tidy: None) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    libc = _trace_exit(child.pid)
    began = time.monotonic()
    assert tree.kill_orphans((), 0.3) == [child.pid]
    assert 0.3 <= time.monotonic() - began < 2
    libc.ptrace(17, child.pid, None, None)  # let go
    eventually(lambda: tree.kill_orphans((), 0.1) == [])
    child.returncode = -signal.SIGKILL  # reaped behind Popen's back


def test_children_of_finds_those_of_every_thread(tidy: None) -> None:
    found: list[subprocess.Popen[bytes]] = []
    hold = threading.Event()

    def start() -> None:
        found.append(subprocess.Popen(["sleep", "1000"]))
        hold.wait(20)

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: found)
    assert found[0].pid in tree.children_of(os.getpid())
    hold.set()
    thread.join()
    assert found[0].pid in tree.children_of(os.getpid())  # handed to another thread
    found[0].kill()
    found[0].wait()
    assert found[0].pid not in tree.children_of(os.getpid())


def test_descendants_are_the_same_with_and_without_the_kernels_lists(
    tidy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & (sleep 1000 & wait) & wait"])
    eventually(lambda: len(tree.descendants_of(shell.pid)) >= 3)
    first = tree.descendants_of(shell.pid)
    for module in (platform, tree):
        monkeypatch.setattr(module, "has_children_files", lambda: False)
    assert sorted(tree.descendants_of(shell.pid)) == sorted(first)
    assert shell.pid in tree.children_of(os.getpid())
    assert tree.kill_trees([shell.pid]) == 1 + len(first)
    shell.wait()
    assert tree.kill_orphans((), 5.0) == []


def test_a_zombie_is_gone_and_a_reused_pid_is_not_hit(tidy: None) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    start_time = tree.start_time_of(child.pid)
    assert start_time is not None
    assert not tree.is_gone(child.pid, start_time)
    assert not platform.signal_exactly(child.pid, start_time - 1, signal.SIGKILL), "another process's pid"
    assert child.poll() is None
    assert platform.signal_exactly(child.pid, start_time, signal.SIGKILL)
    eventually(lambda: tree.is_gone(child.pid, start_time))  # a zombie until the next line
    child.wait()
    assert tree.is_gone(child.pid, start_time)
    assert not platform.signal_exactly(child.pid, start_time, signal.SIGKILL)


def test_start_time_is_that_of_proc(tidy: None) -> None:
    text = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert tree.start_time_of(os.getpid()) == int(text[19])
    assert tree.start_time_of(1 << 30) is None


def test_a_name_full_of_brackets_is_read_right(tidy: None, tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "1000"])
    eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text().startswith("a)"))
    stat = platform.stat_of(child.pid)
    assert stat is not None
    assert stat.parent == os.getpid()
    child.kill()
    child.wait()
