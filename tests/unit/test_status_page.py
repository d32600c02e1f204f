"""A status page is believed as a whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.agent import status
from muster.agent.status import PAGE_BYTES, StatusWriter, boottime_ms, read_status
from muster.errors import UnsafePermissionsError


@pytest.fixture
def page(tmp_path: Path) -> Path:
    directory = tmp_path / "agents" / "w"
    directory.mkdir(parents=True, mode=0o700)
    return directory / "status"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, **values: int) -> StatusWriter:
    writer = StatusWriter(path)
    writer.begin(state=1, pid=7, heartbeat_ms=boottime_ms(), **values)
    return writer


def test_what_is_written_is_read(page: Path, store: Path) -> None:
    writer = write(page, incarnation=3, started_ms=11)
    writer.state("busy")
    writer.verdict("degraded")
    writer.set("task", 12)
    writer.set("pss_bytes", 5 << 20)
    writer.beat()
    found = read_status(store, "w")
    assert found is not None
    assert (found.state, found.verdict, found.pid, found.incarnation, found.task) == ("busy", "degraded", 7, 3, 12)
    assert (found.started_ms, found.pss_bytes, found.child_pid) == (11, 5 << 20, 0)
    assert found.heartbeat_age_s() < 60
    writer.close()
    assert read_status(store, "w") == found, "the page stays as the agent's last words"


def test_the_file_is_private_and_one_page(page: Path) -> None:
    previous = os.umask(0)
    try:
        write(page).close()
    finally:
        os.umask(previous)
    found = page.stat()
    assert (found.st_mode & 0o777, found.st_size, found.st_blocks * 512 >= PAGE_BYTES) == (0o600, PAGE_BYTES, True)
    assert os.listdir(page.parent) == ["status"]


def test_a_new_life_forgets_the_old_one(page: Path, store: Path) -> None:
    first = write(page, incarnation=1)
    first.set("task", 9)
    first.close()
    inode = page.stat().st_ino
    write(page, incarnation=2).close()
    found = read_status(store, "w")
    assert found is not None
    assert (found.incarnation, found.task, found.state) == (2, 0, "starting")
    assert page.stat().st_ino == inode, "written over in place: a full store must not keep an agent from restarting"


def test_there_is_no_page_without_a_file(store: Path) -> None:
    assert read_status(store, "nobody") is None


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o601])
def test_a_page_open_to_others_is_not_believed_and_not_written(page: Path, store: Path, mode: int) -> None:
    write(page).close()
    page.chmod(mode)
    assert read_status(store, "w") is None
    with pytest.raises(UnsafePermissionsError):
        StatusWriter(page)


def test_a_link_is_not_followed(page: Path, store: Path, tmp_path: Path) -> None:
    write(page).close()
    page.rename(tmp_path / "elsewhere")
    page.symlink_to(tmp_path / "elsewhere")
    assert read_status(store, "w") is None
    with pytest.raises(UnsafePermissionsError):
        StatusWriter(page)


def test_a_pipe_in_its_place_neither_blocks_nor_is_believed(page: Path, store: Path) -> None:
    os.mkfifo(page, 0o600)
    assert read_status(store, "w") is None


@pytest.mark.parametrize("size", [0, 8, PAGE_BYTES - 1, PAGE_BYTES + 1])
def test_a_page_of_another_size_is_not_believed(page: Path, store: Path, size: int) -> None:
    write(page).close()
    os.truncate(page, size)
    assert read_status(store, "w") is None


@given(data=st.data())
def test_any_damaged_word_makes_the_page_unbelievable(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("damage")
    (store / "agents" / "w").mkdir(parents=True)
    path = store / "agents" / "w" / "status"
    write(path, incarnation=5).close()
    words = len(status._FIELDS)
    at = data.draw(st.integers(0, words * 8 - 1))
    raw = bytearray(path.read_bytes())
    raw[at] ^= data.draw(st.integers(1, 255))
    with path.open("r+b") as file:
        file.write(raw)
    assert read_status(store, "w") is None


def test_words_of_another_place_do_not_fit(page: Path, store: Path) -> None:
    write(page, task=3, attempt=4).close()
    raw = bytearray(page.read_bytes())
    task, attempt = status._AT["task"] * 8, status._AT["attempt"] * 8
    raw[task : task + 8], raw[attempt : attempt + 8] = raw[attempt : attempt + 8], raw[task : task + 8]
    with page.open("r+b") as file:
        file.write(raw)
    assert read_status(store, "w") is None


def test_a_page_of_zeros_is_no_page(page: Path, store: Path) -> None:
    page.write_bytes(bytes(PAGE_BYTES))
    page.chmod(0o600)
    assert read_status(store, "w") is None


@given(value=st.integers(-(2**70), 2**70))
def test_a_value_out_of_range_is_clamped(value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("clamp")
    (store / "agents" / "w").mkdir(parents=True)
    writer = write(store / "agents" / "w" / "status")
    writer.set("inbox_depth", value)
    writer.close()
    found = read_status(store, "w")
    assert found is not None
    assert found.inbox_depth == min(max(value, 0), status.VALUE_MAX)


def test_a_reader_beside_a_busy_writer_sees_only_what_was_written(page: Path, store: Path) -> None:
    writer = write(page)
    stop = threading.Event()

    def scribble() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            writer.set("task", number << 20)
            writer.set("done", number)

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        last = 0
        for _ in range(2000):
            found = read_status(store, "w")
            assert found is not None
            assert found.task & 0xFFFFF == 0
            assert found.done >= last
            last = found.done
    finally:
        stop.set()
        thread.join()
        writer.close()
