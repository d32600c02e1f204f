"""An agent's log: bounded, rotated while it is written; and what `muster logs` reads of it while that happens."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.agent import log as agent_log
from muster.agent.log import FILES, AgentLog, Streams
from muster.fleet import logs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_log, "LOG_BYTES_MAX", 1000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "agents" / "a"
    found.mkdir(parents=True)
    return found


def line(number: int) -> bytes:
    return b"line %06d\n" % number  # 12 bytes


def shown(entries: Iterator[dict[str, object]]) -> list[object]:
    return [entry["line"] for entry in entries]


@pytest.mark.usefixtures("small")
def test_a_log_keeps_its_newest_files_and_nothing_older(folder: Path) -> None:
    log = AgentLog(folder)
    for number in range(1000):
        log.write(line(number))
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert all((folder / name).stat().st_size <= 1012 for name in FILES)
    kept = b"".join((folder / name).read_bytes() for name in reversed(FILES))
    assert kept.splitlines(keepends=True)[-1] == line(999)
    assert kept.splitlines(keepends=True) == [line(number) for number in range(1000 - len(kept) // 12, 1000)]
    assert len(kept) > 3000


def test_an_agent_that_says_nothing_has_no_log(folder: Path) -> None:
    AgentLog(folder).look()
    assert os.listdir(folder) == []


@pytest.mark.usefixtures("small")
def test_what_is_read_while_files_are_rotated_comes_once_and_in_order(tmp_path: Path, folder: Path) -> None:
    log = AgentLog(folder)
    written = 0

    def is_over() -> bool:  # called before each look
        nonlocal written
        for _ in range(200):  # 2.4 kB: two rotations between two looks
            log.write(line(written))
            written += 1
        return written >= 1000

    entries = logs.entries(tmp_path, "a", follow=True, ended=is_over)
    assert shown(entries) == [line(number).decode().strip() for number in range(1000)]


@pytest.mark.usefixtures("small")
def test_logs_of_an_agent_that_is_down_are_read_oldest_first(tmp_path: Path, folder: Path) -> None:
    log = AgentLog(folder)
    for number in range(250):
        log.write(line(number))
    entries = logs.entries(tmp_path, "a", follow=False, ended=lambda: True)
    assert shown(entries) == [line(number).decode().strip() for number in range(250)]


def test_another_file_under_the_same_inode_is_read_from_its_beginning(tmp_path: Path, folder: Path) -> None:
    """File systems give the number of a removed file to the next one."""
    log = folder / "log"
    log.write_bytes(b"old\n")
    first = True

    def is_over() -> bool:
        nonlocal first
        if first:
            first = False
            return False
        log.write_bytes(b"new 1\nnew 2\n")  # written over: the inode stays
        return True

    assert shown(logs.entries(tmp_path, "a", follow=True, ended=is_over)) == ["old", "new 1", "new 2"]


def test_a_new_life_is_followed_from_its_own_beginning(tmp_path: Path, folder: Path) -> None:
    log = AgentLog(folder)
    log.write(b"old\n")
    after = logs.marks(tmp_path)
    log.write(b"new\n")
    assert shown(logs.entries(tmp_path, None, follow=False, ended=lambda: True, after=after)) == ["new"]


@pytest.mark.usefixtures("small")
def test_a_store_without_room_for_a_new_file_goes_on_with_the_old_one(folder: Path) -> None:
    log = AgentLog(folder)
    log.write(line(0))
    (folder / "log.new").symlink_to("nowhere")  # as good as no room: it cannot be opened
    for number in range(1, 200):
        log.write(line(number))
    assert (folder / "log").read_bytes() == b"".join(line(number) for number in range(200))
    assert not (folder / "log.1").exists()


def test_what_a_thread_prints_goes_to_the_agent_that_it_works_for(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for each in folders:
        each.mkdir()
    logged = [AgentLog(each) for each in folders]
    streams = Streams(logged[0])

    def work(number: int) -> None:
        streams.work_for(logged[number])
        for _ in range(100):
            print("words of", number, file=streams)
        print("last words of", number, end="", file=streams)
        streams.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    print("words of nobody", file=streams)
    for thread in threads:
        thread.join()
    assert (folders[0] / "log").read_text() == "words of nobody\n"
    for number in (1, 2):
        assert (folders[number] / "log").read_text() == f"words of {number}\n" * 100 + f"last words of {number}"
