"""A command that cleared its environment is still found by the session that its agent's status page names."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from muster.agent.status import StatusWriter
from muster.bus.store import add_agent, create_store
from muster.supervise import leftovers, platform
from muster.testing.waiting import eventually


def store_with_page(tmp_path: Path, child_pid: int, child_start: int, worker: tuple[int, int]) -> Path:
    store = create_store(tmp_path / "fleet")
    add_agent(store, "w-1")
    page = StatusWriter(store / "agents" / "w-1" / "status")
    page.begin(state=1, pid=worker[0], start_time=worker[1], incarnation=1, started_ms=1, heartbeat_ms=1, progress_ms=1)
    page.set("child_pid", child_pid)
    page.set("child_start_time", child_start)
    page.close()
    return store


def is_ended(pid: int) -> bool:
    stat = platform.stat_of(pid)
    return stat is None or stat.state == "Z"


def test_members_of_a_dead_leaders_session_are_found_and_killed_and_others_are_not(tmp_path: Path) -> None:
    script = "env -i sleep 300 & echo $!; exit 0"
    leader = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True, env={"PATH": os.environ["PATH"]}
    )
    leader_start = platform.start_time_of(leader.pid)
    assert leader_start is not None
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    leader.wait()
    leader.stdout.close()
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        worker = (4_000_000, 17)  # dead since long, but of this boot
        store = store_with_page(tmp_path, leader.pid, leader_start, worker)
        assert leftovers.find_leftovers(store, "no-such-mark") == [], (
            "a page without a record of this boot is not believed"
        )
        (store / leftovers.RECORD).write_text(f"{worker[0]} {worker[1]} {platform.boot_id()}\n")
        assert [pid for pid, _ in leftovers.find_leftovers(store, "no-such-mark")] == [member]
        assert leftovers.reap_leftovers(store, "no-such-mark") == [member]
        eventually(lambda: is_ended(member), what="end of the member")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        for pid in (member,):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
