"""The client: cheap to import, and clear about what it meets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.errors import FleetError, FleetNotRunningError, ForbiddenError, UsageError
from muster.supervise.client import SpawnerClient
from muster.supervise.leftovers import ChildRecord, recorded
from muster.supervise.platform import boot_id, start_time_of


@pytest.fixture
def pair() -> Iterator[tuple[SpawnerClient, socket.socket]]:
    ours, theirs = socket.socketpair()
    client = SpawnerClient(ours, 4711)
    yield client, theirs
    client.close()
    theirs.close()


def test_importing_the_client_loads_nothing_heavy() -> None:
    heavy = ["asyncio", "msgspec", "click", "ctypes", "psutil", "subprocess", "threading", "uvloop"]
    code = f"import sys, muster.supervise.client; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


def test_no_socket_and_nobody_behind_it_mean_not_running(tmp_path: Path) -> None:
    with pytest.raises(FleetNotRunningError):
        SpawnerClient.connect(tmp_path)
    with pytest.raises(FleetNotRunningError):
        SpawnerClient.connect(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "spawner.sock"))  # a file is left, nobody listens
    with pytest.raises(FleetNotRunningError):
        SpawnerClient.connect(tmp_path)


def test_the_end_told_before_it_was_asked_for_is_heard(pair: tuple[SpawnerClient, socket.socket]) -> None:
    client, spawner = pair
    spawner.send(b'{"ok": true, "op": "wait", "exit_status": 3}\n')
    spawner.close()
    assert client.wait(1) == 3


def test_the_end_told_while_something_else_was_asked_is_kept(pair: tuple[SpawnerClient, socket.socket]) -> None:
    client, spawner = pair
    spawner.send(b'{"ok": true, "op": "wait", "exit_status": 3}\n{"ok": true, "op": "ping", "pid": 1}\n')
    assert client.ping()["pid"] == 1
    spawner.close()
    assert client.wait(1) == 3


def test_a_spawner_that_hangs_up_is_not_running(pair: tuple[SpawnerClient, socket.socket]) -> None:
    client, spawner = pair
    spawner.close()
    with pytest.raises(FleetNotRunningError, match="4711"):
        client.stop()
    with pytest.raises(FleetNotRunningError):
        client.wait(1)


def test_silence_is_a_timeout_not_a_death(pair: tuple[SpawnerClient, socket.socket]) -> None:
    client, _ = pair
    with pytest.raises(TimeoutError):
        client.ping(timeout_s=0.05)
    with pytest.raises(TimeoutError):
        client.wait(0.05)


@pytest.mark.parametrize(
    ("code", "kind"), [("usage", UsageError), ("security.forbidden", ForbiddenError), ("unheard.of", FleetError)]
)
def test_refusals_keep_their_class(pair: tuple[SpawnerClient, socket.socket], code: str, kind: type) -> None:
    client, spawner = pair
    spawner.send(b'{"error": {"code": "%s", "message": "no"}}\n' % code.encode())
    with pytest.raises(kind, match="no"):
        client.ping()


# --------------------------------------------------------------------------- the record of children


def test_the_record_names_only_the_living_of_this_boot(tmp_path: Path) -> None:
    me, born = os.getpid(), start_time_of(os.getpid())
    assert born is not None
    record = ChildRecord(tmp_path)
    record.add(me, born, list)
    record.add(me, born + 1, list)  # somebody who had our pid
    record.add(1 << 30, 5, list)
    path = tmp_path / "spawner.children"
    path.write_text(path.read_text() + f"{os.getppid()} {start_time_of(os.getppid())} another-boot\ntorn li")
    assert boot_id() in path.read_text()
    assert recorded(tmp_path) == [(me, born)]
    record.close()
    assert recorded(tmp_path) == []


def test_the_record_does_not_grow_for_ever(tmp_path: Path) -> None:
    me, born = os.getpid(), start_time_of(os.getpid()) or 0
    record = ChildRecord(tmp_path)
    for _ in range(10_000):
        record.add(1 << 30, 5, lambda: [(me, born)])
    assert (tmp_path / "spawner.children").stat().st_size < 200_000
    assert recorded(tmp_path) == [(me, born)]
    record.close()
