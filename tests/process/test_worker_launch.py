"""Starting a command costs a vfork and nothing else, and works the same where the short way does not fit."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.agent.exits import Exits, reap
from muster.agent.launch import Launcher, LaunchError, Order

from .worker_world import PATIENCE_S

WAYS = ["direct", "other shape", "popen"]


@pytest.fixture(params=WAYS)
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    launcher = Launcher()
    if request.param == "other shape":  # a version whose private function takes other arguments
        launcher._use_vfork = (True, True, True)
    if request.param == "popen":
        launcher._use_vfork = None
    yield launcher
    launcher.close()


@pytest.fixture
def outputs() -> Iterator[tuple[int, int]]:
    fds = os.memfd_create("out"), os.memfd_create("err")
    yield fds
    for fd in fds:
        os.close(fd)


def order(outputs: tuple[int, int], *argv: str, path: str = "/bin/sh", cwd: str | None = None) -> Order:
    return Order(path.encode(), list(argv), [b"COLOUR=blue", b"PATH=/usr/bin:/bin"], cwd, *outputs)


def said(outputs: tuple[int, int]) -> str:
    return os.pread(outputs[0], 4096, 0).decode()


def test_a_command_gets_its_arguments_environment_and_directory(
    launcher: Launcher, outputs: tuple[int, int], tmp_path: Path
) -> None:
    pid = launcher.launch(
        order(outputs, "sh", "-c", 'echo "$0 $1 $COLOUR $(pwd)"; exit 4', "a", "b c", cwd=str(tmp_path))
    )
    assert os.waitstatus_to_exitcode(reap(pid)) == 4
    assert said(outputs) == f"a b c blue {tmp_path}\n"


def test_a_command_inherits_no_descriptor_of_ours_and_leads_a_session(
    launcher: Launcher, outputs: tuple[int, int]
) -> None:
    read, write = os.pipe()
    script = "for fd in /proc/self/fd/*; do readlink $fd; done; ps -o sid= -p $$ | tr -d ' '; echo $$"
    reap(launcher.launch(order(outputs, "sh", "-c", script)))
    *open_files, session, pid = said(outputs).split("\n")[:-1]
    assert session == pid
    assert os.readlink(f"/proc/self/fd/{read}") not in open_files
    assert "/dev/null" in open_files
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("path", "cwd", "code", "is_directory"),
    [
        ("/no/such/command", None, errno.ENOENT, False),
        ("/etc/passwd", None, errno.EACCES, False),
        ("/bin/sh", "/no/such/directory", errno.ENOENT, True),
    ],
)
def test_what_cannot_be_executed_is_an_error_and_leaves_no_process(
    launcher: Launcher, outputs: tuple[int, int], path: str, cwd: str | None, code: int, is_directory: bool
) -> None:
    for _ in range(3):
        with pytest.raises(LaunchError) as caught:
            launcher.launch(order(outputs, "x", path=path, cwd=cwd))
        assert (caught.value.errno, caught.value.is_directory) == (code, is_directory)
    pid = launcher.launch(order(outputs, "sh", "-c", "exit 0"))
    assert reap(pid) == 0, "an error of one start is not taken for that of the next"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_exits_are_told_each_once_with_the_status() -> None:
    exits = Exits(asyncio.get_running_loop())
    statuses: dict[int, int] = {}
    done = asyncio.Event()
    pids = [os.posix_spawn(sys.executable, [sys.executable, "-c", f"exit({n})"], os.environ) for n in range(6)]

    def note(pid: int, status: int) -> None:
        assert pid not in statuses
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if len(statuses) == len(pids):
            done.set()

    for pid in pids:
        exits.watch(pid, lambda status, pid=pid: note(pid, status))  # type: ignore[misc]
    await asyncio.wait_for(done.wait(), PATIENCE_S)
    assert [statuses[pid] for pid in pids] == list(range(6))
    exits.close()


async def test_without_pidfds_a_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    exits = Exits(asyncio.get_running_loop())
    ended = asyncio.get_running_loop().create_future()
    exits.watch(os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ), ended.set_result)
    assert os.waitstatus_to_exitcode(await asyncio.wait_for(ended, PATIENCE_S)) == 7
    exits.close()
