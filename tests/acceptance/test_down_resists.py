"""A standing fleet whose commands do everything not to be ended: however it goes down, nothing is left, in time, and nothing is lost.

Each command ignores SIGTERM and SIGHUP, has a child in a session of its own, another that forked twice, left its session, cleared its
environment and ignores signals, too, and all of them hold the write end of a pipe that the test reads: its end is the kernel's own word
that the last of them is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from muster.fleet.farewell import sentence
from muster.supervise.platform import process_ids
from muster.testing import eventually

from .place import PATIENCE_S, PYTHON, Muster, Place

AGENTS = 4
GRACE_S = 1.0
#: The promise is grace + 1 s. The rest is for two cores that others use, too; `make fleet` measures on idle ones.
SLACK_S = 4.0
RESIST = f"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
pipe = os.open(sys.argv[2], os.O_WRONLY)
os.set_inheritable(pipe, True)
sleeper = ["python", "-I", "-S", "-c", "import time; time.sleep(600)"]
if os.fork() == 0:
    os.setsid()
    os.execv({PYTHON[0]!r}, sleeper)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execve({PYTHON[0]!r}, sleeper, dict())
os.wait3(0)
open(os.path.join(sys.argv[3], sys.argv[1]), "w").close()
time.sleep(600)
"""
FLEET = """
[fleet]
name = "harbour"
grace = "{grace}s"
orphans = "{orphans}"
orphan_grace = "0.2s"

[agents.pilot]
count = {agents}
command = {command}
"""


class Harbour:
    """The fleet, up, with all agents at work and one task more than agents."""

    def __init__(
        self, place: Place, *, orphans: str = "stop", grace_s: float = GRACE_S, terminal: bool = False
    ) -> None:
        self.place = place
        (place.work / "busy").mkdir()
        self.pipe = place.work / "pipe"
        os.mkfifo(self.pipe)
        self.read_end = os.open(self.pipe, os.O_RDONLY | os.O_NONBLOCK)
        script = place.script("resist.py", RESIST)
        command = [*PYTHON, script, "{}", str(self.pipe), str(place.work / "busy")]
        place.script(
            "fleet.toml", FLEET.format(grace=grace_s, orphans=orphans, agents=AGENTS, command=json.dumps(command))
        )
        self.front = place.start("up", terminal=terminal)
        eventually(lambda: b"is up" in self.front.output, PATIENCE_S, "the fleet is up")
        for number in range(AGENTS + 1):
            place.carry_out("send", "coordinator", f"task-{number}", "--type", "task")
        place.carry_out("send", "pilot-1", "for later")
        eventually(lambda: len(os.listdir(place.work / "busy")) == AGENTS, PATIENCE_S, "every agent is at work")
        self.front.ping()

    def wait_for_the_last(self, within_s: float) -> float:
        """Seconds until nobody holds the pipe any more."""
        began = time.monotonic()
        poll = select.poll()
        poll.register(self.read_end, select.POLLIN)
        found = poll.poll(within_s * 1000)
        assert found, f"after {within_s} s somebody still holds the pipe: {self.place.processes()}"
        assert os.read(self.read_end, 1) == b""
        return time.monotonic() - began

    def assert_gone(self) -> None:
        assert not self.place.processes()
        assert not [pid for pid in process_ids() if _holds(pid, str(self.pipe))]

    def close(self) -> None:
        os.close(self.read_end)


def _holds(pid: int, path: str) -> bool:
    try:
        return (
            any(os.readlink(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))
            and pid != os.getpid()
        )
    except OSError:
        return False


@pytest.fixture
def harbour(request: pytest.FixtureRequest, place: Place) -> Iterator[Harbour]:
    found = Harbour(place, **getattr(request, "param", {}))
    yield found
    found.close()


def down(front: Muster) -> None:
    assert front.place.start("down").end() == 0


def ctrl_c(front: Muster) -> None:
    front.type(b"\x03")


def close_the_terminal(front: Muster) -> None:
    front.hang_up()


def terminate(front: Muster) -> None:
    front.process.send_signal(signal.SIGTERM)


def kill_the_front(front: Muster) -> None:
    front.process.kill()


@pytest.mark.parametrize("harbour", [{"terminal": True}], indirect=True)
@pytest.mark.parametrize("end", [down, ctrl_c, close_the_terminal, terminate, kill_the_front])
def test_it_ends_within_its_grace_and_a_second_and_nothing_is_lost(
    harbour: Harbour, end: Callable[[Muster], None]
) -> None:
    began = time.monotonic()
    end(harbour.front)
    harbour.wait_for_the_last(GRACE_S + 1 + SLACK_S)
    harbour.front.end(GRACE_S + 1 + SLACK_S)
    eventually(lambda: not harbour.place.processes(), SLACK_S, "no process is left")
    took_s = time.monotonic() - began
    assert took_s <= GRACE_S + 1 + SLACK_S
    harbour.assert_gone()
    assert_kept(harbour.place)


def assert_kept(place: Place) -> None:
    """The next life has every task and every message of the one before."""
    again = place.carry_out("up", "-d")
    told = json.loads(place.carry_out("status", "--json", "--timeout", "20s").output)
    assert "tasks" in told, (told, again.output, again.errors)
    assert told["tasks"]["submitted"] == AGENTS + 1
    assert told["tasks"]["done"] == told["tasks"]["failed"] == told["tasks"]["dead"] == 0
    ended = place.carry_out("down", "--json", "--now")
    left = json.loads(ended.output)
    assert (left["kept_tasks"], left["finished"], left["failed"]) == (AGENTS + 1, 0, 0)
    assert left["unread_kept"] == 1
    assert not place.processes()


@pytest.mark.parametrize("harbour", [{"terminal": True, "grace_s": 600.0}], indirect=True)
def test_a_second_signal_ends_it_at_once(harbour: Harbour) -> None:
    harbour.front.type(b"\x03")
    eventually(lambda: b"fleet.stopping" in harbour.front.output, PATIENCE_S, "the first one was heard")
    harbour.front.type(b"\x03")
    harbour.wait_for_the_last(1 + SLACK_S)
    harbour.front.end(1 + SLACK_S)
    harbour.assert_gone()
    assert_kept(harbour.place)


def test_the_last_line_in_front_says_what_became_of_the_work(harbour: Harbour) -> None:
    harbour.front.process.send_signal(signal.SIGTERM)
    harbour.front.end(GRACE_S + 1 + SLACK_S)
    last = harbour.front.output.decode().splitlines()[-1]
    assert last.startswith("harbour is down (")
    assert last.endswith(f"kept for the next start: {AGENTS + 1} tasks and 1 unread message")
    assert f"{AGENTS} workers had to be killed" in last or "handed back" in last


def test_a_killed_coordinator_is_replaced_and_the_fleet_goes_down_in_time_all_the_same(harbour: Harbour) -> None:
    first = harbour.front.coordinator()
    assert first
    os.kill(first, signal.SIGKILL)
    eventually(lambda: harbour.front.coordinator() not in (None, first), PATIENCE_S, "another coordinator")
    down(harbour.front)
    harbour.wait_for_the_last(SLACK_S)
    harbour.front.end(SLACK_S)
    harbour.assert_gone()
    assert_kept(harbour.place)


def test_after_the_spawner_was_killed_the_next_start_finds_the_rest(harbour: Harbour) -> None:
    told = harbour.front.ping()
    assert told
    os.kill(told["pid"], signal.SIGKILL)
    harbour.front.end()
    # Workers and what hangs below them end by themselves; what else is there ends by the next start.
    assert_kept(harbour.place)
    harbour.wait_for_the_last(0.0)
    harbour.assert_gone()


def kill_coordinators(harbour: Harbour) -> None:
    """Kill every coordinator that is started, until none is started any more."""
    killed: set[int] = set()

    def is_given_up() -> bool:
        told = harbour.front.ping()
        if told is None:
            return True
        pid = told["coordinator"]["pid"]
        if pid and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return told["coordinator"]["restarts"] >= 10 and not pid

    eventually(is_given_up, 60.0, "the coordinator is given up")


@pytest.mark.timeout(120)
def test_with_the_orphan_policy_stop_a_fleet_whose_coordinator_cannot_live_is_ended_whole(harbour: Harbour) -> None:
    kill_coordinators(harbour)
    harbour.wait_for_the_last(2 + SLACK_S)
    assert harbour.front.end() == 1
    harbour.assert_gone()
    assert_kept(harbour.place)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("harbour", [{"orphans": "keep"}], indirect=True)
def test_with_the_orphan_policy_keep_its_workers_go_on_and_can_be_ended(harbour: Harbour) -> None:
    before = harbour.front.workers()
    kill_coordinators(harbour)
    told = harbour.front.ping()
    assert told is not None
    assert told["coordinator"]["pid"] is None
    assert harbour.front.workers() == before, "all of them live"
    assert not select.select([harbour.read_end], [], [], 0)[0], "and so does their work"
    down(harbour.front)  # a coordinator is started for it
    harbour.wait_for_the_last(SLACK_S)
    harbour.front.end(SLACK_S)
    harbour.assert_gone()
    assert_kept(harbour.place)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"unread_kept": 0}, "x is down (1.2s); its coordinator was gone, so nobody says what was finished"),
        (
            {"finished": 3, "failed": 0, "handed_back": 2, "killed_workers": 0, "kept_tasks": 1, "unread_kept": 2},
            "x is down (1.2s): 3 finished, 2 handed back; kept for the next start: 1 task and 2 unread messages",
        ),
        (
            {"finished": 0, "failed": 0, "handed_back": 0, "killed_workers": 1, "kept_tasks": 0, "unread_kept": 0},
            "x is down (1.2s); 1 worker had to be killed",
        ),
    ],
)
def test_a_shutdown_is_told_in_one_sentence(facts: dict[str, int], said: str) -> None:
    assert sentence("x", 1.2, facts) == said
