"""Where fleets live, which fleet a command means, and what counts as a leftover."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from muster.errors import (
    ConfigError,
    FleetNotRunningError,
    ForbiddenError,
    InvalidNameError,
    StoreTooSmallError,
    UnsafePermissionsError,
)
from muster.fleet import leftovers, places, speak
from muster.supervise.lock import SpawnerLock


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "stores"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("MUSTER_STORE_DIR", str(directory))
    monkeypatch.chdir(tmp_path)
    return directory


def a_store(root: Path, name: str, **spec: object) -> Path:
    store = root / name
    store.mkdir(mode=0o700)
    (store / "agents").mkdir(mode=0o700)
    (store / "spec.json").write_text(json.dumps({"name": name, "store_id": "0" * 32, **spec}))
    return store


def test_runs_live_in_memory_and_standing_fleets_in_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere/state")
    assert places.state_root() == Path("/somewhere/state/muster")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert places.state_root() == Path.home() / ".local/state/muster"
    if os.access("/dev/shm", os.W_OK):
        assert places.run_root() == Path(f"/dev/shm/muster-{os.getuid()}")
    monkeypatch.setattr(places, "SHARED_MEMORY", Path("/nonexistent"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    assert places.run_root() == Path("/tmp/muster")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert places.run_root() == Path(f"/var/tmp/muster-{os.getuid()}")


def test_a_flag_beats_the_environment_for_both_roots(root: Path) -> None:
    assert places.roots() == [root]
    assert places.roots("/elsewhere") == [Path("/elsewhere")]


def test_directories_are_made_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = places.make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_an_open_directory_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(UnsafePermissionsError, match=f"{mode:04o}"):
        places.make_private(directory)


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "file").touch(mode=0o600)
    for name in ("link", "dangling", "file"):
        with pytest.raises(UnsafePermissionsError):
            places.make_private(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_room_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    places.check_room(tmp_path, 50)
    with pytest.raises(StoreTooSmallError, match="at least"):
        places.check_room(tmp_path, 1 << 40)


def test_the_fleet_is_that_of_the_flag_the_environment_or_the_nearest_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.chosen_name(None) is None
    deep = tmp_path / "project" / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "project" / "fleet.toml").write_text('[fleet]\nname = "of-file"\n')
    monkeypatch.chdir(deep)
    assert places.chosen_name(None) == "of-file"
    monkeypatch.setenv("MUSTER_FLEET", "of-environment")
    assert places.chosen_name(None) == "of-environment"
    assert places.chosen_name("of-flag") == "of-flag"
    with pytest.raises(InvalidNameError):
        places.chosen_name("../of-flag")


def test_a_file_without_a_name_means_its_directory(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "fleet.toml").write_text("[agents.a]\n")
    monkeypatch.chdir(project)
    assert places.chosen_name(None) == "project"
    (project / "fleet.toml").write_text("[agents.a\n")
    with pytest.raises(ConfigError, match=r"fleet\.toml"):
        places.chosen_name(None)


def test_a_fleet_is_found_by_name_and_never_outside_the_root(root: Path) -> None:
    a_store(root, "one")
    assert places.find("one").store == root / "one"
    with pytest.raises(FleetNotRunningError, match="'two'"):
        places.find("two")
    with pytest.raises(InvalidNameError):
        places.find("../one")
    with pytest.raises(ConfigError, match="which fleet"):
        places.chosen(None)


def test_an_agents_command_means_its_own_fleet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _other = a_store(root, "own"), a_store(root, "other")
    monkeypatch.setenv("MUSTER_STORE", str(own))
    monkeypatch.setenv("MUSTER_FLEET", "own")
    monkeypatch.delenv("MUSTER_STORE_DIR")
    assert places.chosen(None).store == own
    monkeypatch.setenv("MUSTER_STORE_DIR", str(root))
    assert places.chosen("other").store == root / "other"


def test_who_speaks_is_the_named_one_the_sockets_agent_or_the_operator(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_store(root, "own")
    monkeypatch.setenv("MUSTER_FLEET", "own")
    assert speak.speaker(None).agent == "operator"
    assert speak.speaker("kim").agent == "kim"
    with pytest.raises(InvalidNameError):
        speak.speaker("coordinator")
    monkeypatch.setenv("MUSTER_SOCKET", "/run/w-1")
    monkeypatch.setenv("MUSTER_AGENT", "w-1")
    for name in (None, "w-1"):
        assert (speak.speaker(name).agent, speak.speaker(name).socket) == ("w-1", "/run/w-1")
    with pytest.raises(ForbiddenError, match="cannot speak as 'kim'"):
        speak.speaker("kim")


def test_a_living_spawner_is_known_by_its_lock_and_by_nothing_else(root: Path) -> None:
    store = a_store(root, "one")
    (store / "spawner.lock").write_text(f"{os.getpid()} 1 boot\n")  # a stale pid file proves nothing
    assert places.spawner_pid(store) is None
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        SpawnerLock(store)
        os.write(write_end, b"held")
        signal.pause()
        os._exit(0)
    os.read(read_end, 4)
    try:
        assert places.spawner_pid(store) == child
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
    assert places.spawner_pid(store) is None


def test_only_crashed_runs_are_leftovers(root: Path) -> None:
    crashed = a_store(root, "crashed", run={})
    (crashed / "spawner.lock").touch(mode=0o600)
    a_store(root, "being-made", run={})  # no lock yet: its front door is about to start it
    a_store(root, "down")  # a standing fleet keeps its messages
    (a_store(root, "held", run={}) / "spawner.lock").touch(mode=0o600)
    lock = SpawnerLock(root / "held")
    try:
        names = [fleet.name for fleet in leftovers.crashed()]
    finally:
        lock.release()
    # A process does not see its own record locks, so "held" is known to be alive only to others; the test above covers that.
    assert [name for name in names if name != "held"] == ["crashed"]


def test_a_crashed_run_is_removed_with_its_spool(root: Path) -> None:
    store_id = "ab" * 16
    spool = places.spool_of(store_id)
    spool.mkdir(parents=True)
    (spool / "large").write_bytes(b"x")
    store = a_store(root, "wreck", run={"results": "/r.jsonl"}, store_id=store_id, spool=str(spool))
    (store / "spawner.lock").touch(mode=0o600)
    (fleet,) = leftovers.crashed()
    assert leftovers.reclaim(fleet, keep_unread=True) == ([], 0)
    assert not store.exists()
    assert not spool.exists()


def test_a_spool_that_no_store_names_is_removed(root: Path) -> None:
    kept, lost = places.spool_of("a" * 32), places.spool_of("b" * 32)
    kept.mkdir(parents=True)
    lost.mkdir()
    a_store(root, "one", run={}, spool=str(kept))
    assert leftovers.remove_lost_spools() == 1
    assert kept.exists()
    assert not lost.exists()
