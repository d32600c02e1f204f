"""Workers that crash, get old or are not ready: real processes, seen through the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from muster.testing import eventually

from .cli_world import PATIENCE_S, World, a_world

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        yield one


def up(world: World, fleet: str) -> None:
    (world.work / "fleet.toml").write_text(fleet)
    started = world.muster("up", "-d")
    assert started.returncode == 0, started.stderr


def down(world: World) -> None:
    ended = world.muster("down")
    assert ended.returncode == 0, ended.stderr
    eventually(lambda: not world.marked(), PATIENCE_S, "no process is left")


def status(world: World) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(world.muster("status", "--json").stdout)
    return told


def agent(world: World, name: str) -> dict[str, Any]:
    return next(row for row in status(world)["agents"] if row["agent"] == name)


def events(world: World, name: str) -> list[dict[str, Any]]:
    """The notes of that name, oldest first."""
    (store,) = [path for path in world.root.iterdir() if not path.name.startswith(".")]
    notes = [json.loads(line) for line in (store / "events.jsonl").read_text().splitlines()]
    return [note for note in notes if note["event"] == name]


CRASHING = """
[fleet]
name = "harbour"
profile = "development"

[agents.mole]
handler = "moles:work"
restarts = "3/1m"
restart_delay = "50ms"

[agents.pilot]
command = ["sh", "-c", "echo pilot {input}"]
"""

#: Does its work until a file says that it is to crash, as soon as it starts.
MOLES = """
import os, pathlib, signal
with open("starts", "a") as log:
    log.write("start\\n")
if pathlib.Path("crash").exists():
    os.kill(os.getpid(), signal.SIGKILL)
def work(text):
    return text
"""


def test_a_crash_loop_is_quarantined_after_exactly_its_restarts_and_the_rest_works_on(world: World) -> None:
    (world.work / "moles.py").write_text(MOLES)
    up(world, CRASHING)
    try:
        (world.work / "starts").unlink()  # of the check before the fleet began, and of the first worker
        (world.work / "crash").touch()
        os.kill(world.pid_of("worker", "mole"), signal.SIGKILL)
        eventually(lambda: agent(world, "mole")["state"] == "quarantined", PATIENCE_S, "the mole is set aside")
        assert (world.work / "starts").read_text().count("start") == 3, "three restarts and not one more"
        mole = agent(world, "mole")
        assert (mole["restarts"], mole["pid"], mole["verdict"]) == (3, None, "unhealthy")
        assert any("died 4 times within 60 s, last it died by signal 9" in text for text in mole["evidence"])
        (note,) = events(world, "worker.quarantined")
        assert note["worker"] == "mole"
        reply = world.muster("ask", "coordinator", "ship", "--type", "task@pilot", "--json")
        assert json.loads(reply.stdout)["body"]["stdout"] == "pilot ship\n", "the other kind works on"
    finally:
        down(world)


SLEEPY = """
[fleet]
name = "harbour"
profile = "development"

[agents.sleeper]
handler = "sleepers:work"
ready_timeout = "1s"
"""

#: The first worker hangs before it is ready, later ones do not.
SLEEPERS = """
import os, pathlib, time
def first():
    try:
        pathlib.Path("started").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
if "MUSTER_AGENT" in os.environ and first():
    time.sleep(3600)
def work(text):
    return text
"""


def test_a_worker_that_hangs_before_it_is_ready_is_killed_and_started_again(world: World) -> None:
    (world.work / "sleepers.py").write_text(SLEEPERS)
    up(world, SLEEPY)
    try:
        eventually(lambda: agent(world, "sleeper")["state"] == "ready", PATIENCE_S, "the second start got ready")
        (note,) = events(world, "worker.not_ready")
        assert (note["worker"], note["timeout_s"]) == ("sleeper", 1.0)
        assert agent(world, "sleeper")["incarnation"] == 2
    finally:
        down(world)


HARBOUR = """
[fleet]
name = "harbour"
profile = "development"
retries = 0

[agents.crane]
count = {count}
command = ["sh", "-c", "echo {input} $MUSTER_ATTEMPT >> begun; sleep 0.2; echo {input} >> ended"]
"""


class Load:
    """Tasks that are sent while something else happens; at the end each has run exactly once."""

    def __init__(self, world: World) -> None:
        self.world, self.sent = world, 0

    def send(self, count: int) -> None:
        numbers = range(self.sent + 1, self.sent + count + 1)
        body = json.dumps({"tasks": [[number, f"box-{number}"] for number in numbers]})
        done = self.world.muster("send", "coordinator", "-t", "task.submit", "--json-body", body)
        assert done.returncode == 0, done.stderr
        self.sent += count

    def assert_each_ran_once(self) -> None:
        expected = sorted(f"box-{number}" for number in range(1, self.sent + 1))
        ended = self.world.work / "ended"
        eventually(lambda: status(self.world)["tasks"]["done"] == self.sent, PATIENCE_S, f"{self.sent} tasks are done")
        assert sorted(ended.read_text().split()) == expected, "nothing lost, nothing twice"
        begun = (self.world.work / "begun").read_text().splitlines()
        assert sorted(line.split()[0] for line in begun) == expected, "nothing was begun twice"
        told = status(self.world)
        assert (told["tasks"]["failed"], told["tasks"]["dead"], told["counters"]["reassigned"]) == (0, 0, 0)


def test_a_rolling_restart_of_ten_agents_under_load_loses_nothing_and_repeats_nothing(world: World) -> None:
    up(world, HARBOUR.replace("{count}", "10"))
    try:
        load = Load(world)
        load.send(300)
        before = {row["agent"]: row["pid"] for row in status(world)["agents"]}
        restarting = world.start("restart", "crane", "--json")
        seen: list[int] = []
        open_tasks: list[int] = []

        def is_over() -> bool:
            told = status(world)
            seen.append(sum(row["state"] in ("ready", "busy") for row in told["agents"]))
            open_tasks.append(told["tasks"]["queued"] + told["tasks"]["running"])
            if restarting.poll() is not None:
                return True
            load.send(60)
            return False

        eventually(is_over, 2 * PATIENCE_S, "the rolling restart is over")
        assert min(open_tasks) > 0, f"it was under load all the time: {open_tasks}"
        done = world.finish(restarting)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["is_done"], len(told["workers"]), told["quarantined"]) == (True, 10, [])
        after = {row["agent"]: row for row in status(world)["agents"]}
        assert all(after[name]["pid"] not in (None, pid) for name, pid in before.items()), (
            "every worker is another process"
        )
        assert all(row["restarts"] == 0 for row in after.values()), "a replacement uses up no restart"
        assert min(seen) >= 9, f"at most one of ten was away at a time: {seen}"
        load.assert_each_ran_once()
        assert len(events(world, "worker.recycling")) == 10
        assert events(world, "worker.exited") == []
    finally:
        down(world)


def test_a_rolling_restart_goes_on_although_the_coordinator_is_killed_in_the_middle(world: World) -> None:
    up(world, HARBOUR.replace("{count}", "6"))
    try:
        load = Load(world)
        load.send(120)
        before = {row["agent"]: row["pid"] for row in status(world)["agents"]}
        restarting = world.start("restart", "--json")
        eventually(lambda: len(events(world, "worker.recycling")) >= 2, PATIENCE_S, "it has begun")
        os.kill(world.pid_of("coordinator"), signal.SIGKILL)
        done = world.finish(restarting)
        assert done.returncode == 0, done.stderr
        after = {row["agent"]: row["pid"] for row in status(world)["agents"]}
        assert all(after[name] != pid for name, pid in before.items())
        load.assert_each_ran_once()
    finally:
        down(world)


LONG = """
[fleet]
name = "harbour"
profile = "development"
grace = "1s"

[agents.crane]
count = 2
command = ["sh", "-c", "echo {input} $MUSTER_AGENT >> begun; test -e quick || sleep 600; echo {input} >> ended"]
"""


def test_a_restart_with_a_grace_hands_back_what_takes_longer(world: World) -> None:
    up(world, LONG)
    try:
        load = Load(world)
        load.send(1)
        begun = world.work / "begun"
        eventually(begun.exists, PATIENCE_S, "the task runs")
        (world.work / "quick").touch()
        first = begun.read_text().split()[1]
        done = world.muster("restart", first, "--grace", "100ms")
        assert done.returncode == 0, done.stderr
        eventually(lambda: status(world)["tasks"]["done"] == 1, PATIENCE_S, "it was done elsewhere")
        assert (world.work / "ended").read_text() == "box-1\n"
        assert status(world)["counters"]["handed_back"] == 1
    finally:
        down(world)


def test_down_in_the_middle_of_a_restart_that_waits_for_long_work_is_as_quick_as_ever(world: World) -> None:
    up(world, LONG)
    load = Load(world)
    load.send(2)
    eventually(lambda: status(world)["tasks"]["running"] == 2, PATIENCE_S, "both run")
    restarting = world.start("restart", "--wait", "1m")
    eventually(lambda: events(world, "worker.recycling"), PATIENCE_S, "one is asked to leave when it is done")
    began = time.monotonic()
    down(world)
    took_s = time.monotonic() - began
    assert took_s < PATIENCE_S, f"the grace of a second counts, not the ten minutes of the task: {took_s:.1f} s"
    done = world.finish(restarting)
    assert done.returncode == 1
    assert "coming to its end" in done.stderr or "not running" in done.stderr, done.stderr


def test_a_fleet_of_teams_is_restarted_by_its_teams(world: World) -> None:
    up(world, HARBOUR.replace("{count}", "4") + "\n[teams]\nagents_per_team = 2\n")
    try:
        load = Load(world)
        load.send(60)
        told = json.loads(world.muster("restart", "--json").stdout)
        assert (sorted(told["workers"]), told["is_done"]) == ([f"crane-{n}" for n in range(1, 5)], True)
        assert {row["incarnation"] for row in status(world)["agents"]} == {2}
        assert world.muster("restart", "crane-3").returncode == 0
        rows = {row["agent"]: row["incarnation"] for row in status(world)["agents"]}
        assert rows == {"crane-1": 2, "crane-2": 2, "crane-3": 3, "crane-4": 2}
        assert status(world)["supervision"]["recycled"] == 5
        refused = world.muster("scale", "crane=5")
        assert (refused.returncode, "fixed size" in refused.stderr) == (2, True)
        load.assert_each_ran_once()
    finally:
        down(world)


def test_workers_are_replaced_after_their_tasks_and_at_their_age_without_losing_any(world: World) -> None:
    up(world, HARBOUR.replace("{count}", "3") + 'max_tasks = 5\nmax_age = "4s"\n')
    try:
        load = Load(world)
        load.send(60)
        load.assert_each_ran_once()
        reasons = [note["reason"] for note in events(world, "worker.recycling")]
        assert reasons.count("max_tasks") >= 6, (
            "sixty tasks by three workers, at most five and a few in hand for each life"
        )
        eventually(
            lambda: "max_age" in [note["reason"] for note in events(world, "worker.recycling")],
            PATIENCE_S,
            "one gets old",
        )
        told = status(world)
        assert told["supervision"]["recycled"] >= 6
        assert (told["counters"]["worker_deaths"], told["counters"]["restarts"]) == (0, 0)
    finally:
        down(world)


HOARDERS = """
[fleet]
name = "harbour"
profile = "development"
metrics_interval = "1s"

[agents.hoarder]
handler = "hoarders:work"
max_rss = "80MB"
"""


def test_a_worker_that_hoards_memory_is_replaced_and_its_successor_is_small_again(world: World) -> None:
    (world.work / "hoarders.py").write_text(
        "import time\nhoard = []\ndef work(megabytes):\n    hoard.append(b'x' * (int(megabytes) << 20))\n    time.sleep(2)\n"
    )
    up(world, HOARDERS)
    try:
        asked = world.muster("ask", "coordinator", "100", "--type", "task", "--json")
        assert json.loads(asked.stdout)["body"]["outcome"] == "done"
        eventually(lambda: agent(world, "hoarder")["incarnation"] == 2, PATIENCE_S, "it is replaced")
        eventually(lambda: agent(world, "hoarder")["state"] == "ready", PATIENCE_S, "and ready again")
        (note,) = events(world, "worker.recycling")
        assert note["reason"].startswith("max_rss: ")
        assert agent(world, "hoarder")["restarts"] == 0
    finally:
        down(world)


def test_a_fleet_grows_and_shrinks_under_load(world: World) -> None:
    up(world, HARBOUR.replace("{count}", "4"))
    try:
        load = Load(world)
        load.send(150)
        grown = world.muster("scale", "crane=8", "--json")
        assert grown.returncode == 0, grown.stderr
        told = json.loads(grown.stdout)
        assert (told["before"], told["after"], told["is_done"]) == ({"crane": 4}, {"crane": 8}, True)
        names = [row["agent"] for row in status(world)["agents"]]
        assert names == [f"crane-{n}" for n in range(1, 9)]
        load.send(100)
        shrunk = world.muster("scale", "crane=2")
        assert (shrunk.returncode, shrunk.stdout.splitlines()[0]) == (0, "crane: 8 → 2 agents")
        left = status(world)
        assert [row["agent"] for row in left["agents"]] == ["crane-1", "crane-2"]
        assert (left["verdict"], left["supervision"]["scaled"]) == ("healthy", {"crane": 2})
        assert sum(row["role"] == "worker" for row in world.ps()) == 2, "the others have ended"
        load.assert_each_ran_once()
        assert world.muster("send", "crane-8", "for later").returncode == 0, "its inbox stays"
        os.kill(world.pid_of("coordinator"), signal.SIGKILL)
        eventually(lambda: status(world).get("coordinator_restarts") == 1, PATIENCE_S, "a new coordinator")
        assert [row["agent"] for row in status(world)["agents"]] == ["crane-1", "crane-2"], "it knows the new size"
        assert world.muster("scale", "crane=3").returncode == 0
        third = agent(world, "crane-3")
        assert third["incarnation"] == 2, "incarnations never repeat"
    finally:
        down(world)


@pytest.mark.parametrize(
    ("words", "status_of", "said"),
    [
        (("scale", "crain=3"), 2, "did you mean 'crane'"),
        (("scale", "crane=0"), 2, "1 to 10,000"),
        (("scale", "crane"), 2, "KIND=COUNT"),
        (("restart", "crane-9"), 2, "crane-9"),
        (("restart", "--grace", "soon"), 2, "--grace"),
    ],
)
def test_a_wrong_order_is_one_sentence_and_changes_nothing(
    world: World, words: tuple[str, ...], status_of: int, said: str
) -> None:
    up(world, HARBOUR.replace("{count}", "2"))
    try:
        refused = world.muster(*words)
        assert (refused.returncode, refused.stdout) == (status_of, "")
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert [row["incarnation"] for row in status(world)["agents"]] == [1, 1]
    finally:
        down(world)


TALKERS = """
[fleet]
name = "harbour"
profile = "development"

[agents.talker]
count = 1
command = ["sh", "-c", "PYTHON -m muster.cli.entry send {input} hello 2>> said || echo refused >> said"]
"""


def test_agents_that_joined_earlier_may_write_to_those_that_came_later(world: World) -> None:
    up(world, TALKERS.replace("PYTHON", sys.executable))
    try:
        assert world.muster("scale", "talker=2").returncode == 0
        reply = world.muster("ask", "coordinator", "talker-2", "--type", "task@talker", "--json")
        assert json.loads(reply.stdout)["body"]["agent"] == "talker", "the one that was there first"
        assert not (world.work / "said").exists() or (world.work / "said").read_text() == ""
        depths = {row["agent"]: row["inbox_depth"] for row in json.loads(world.muster("ls", "--json").stdout)}
        assert depths["talker-2"] == 1
    finally:
        down(world)


HOOKED = """
[fleet]
name = "harbour"
profile = "development"

[agents.crane]
command = ["sh", "-c", "echo {input}"]

[hooks.sweep]
command = ["sh", "-c", "echo $MUSTER_HOOK $MUSTER_STORE_ID >> swept; echo all clean"]
every = "1s"

[hooks.stuck]
command = ["PYTHON", "stuck.py"]
every = "1s"
timeout = "1s"
"""

#: Ignores SIGTERM, and so does a grandchild that has left its session, its parent and its environment.
STUCK = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("stuck.pids", "a") as log:
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
    log.write(f"{os.getpid()}\\n")
    log.flush()
time.sleep(3600)
"""


def test_hooks_run_on_their_schedule_and_one_that_overruns_is_killed_with_all_that_it_started(world: World) -> None:
    (world.work / "stuck.py").write_text(STUCK)
    up(world, HOOKED.replace("PYTHON", sys.executable))
    try:

        def told() -> dict[str, Any]:
            return dict(status(world).get("supervision", {}).get("hooks", {}))

        eventually(lambda: told().get("stuck") and told().get("sweep"), PATIENCE_S, "both hooks have run")
        hooks = told()
        assert (hooks["sweep"]["outcome"], hooks["sweep"]["detail"]) == ("done", "all clean")
        assert (hooks["stuck"]["outcome"], hooks["stuck"]["detail"]) == ("timeout", "was killed after 1 s")
        pids = [int(word) for word in (world.work / "stuck.pids").read_text().split()][:2]
        assert len(pids) == 2
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids), "nothing of the hook is left"
        name, store_id = (world.work / "swept").read_text().splitlines()[0].split()
        assert (name, store_id) == ("sweep", status(world)["store_id"])
        eventually(lambda: len(events(world, "hook.ended")) >= 4, PATIENCE_S, "they run again and again")
        notes = events(world, "hook.ended")
        assert {note["hook"] for note in notes} == {"sweep", "stuck"}
        ends = [datetime.fromisoformat(note["at"]).timestamp() for note in notes if note["hook"] == "sweep"]
        assert all(later - earlier >= 0.99 for earlier, later in pairwise(ends)), f"never sooner than it should: {ends}"
    finally:
        down(world)


def test_a_hook_that_runs_while_the_coordinator_is_killed_leaves_nothing(world: World) -> None:
    (world.work / "stuck.py").write_text(STUCK)
    up(world, HOOKED.replace("PYTHON", sys.executable).replace('timeout = "1s"', 'timeout = "1h"'))
    try:
        pids = world.work / "stuck.pids"
        eventually(lambda: pids.exists() and len(pids.read_text().split()) >= 2, PATIENCE_S, "the hook runs")
        os.kill(world.pid_of("coordinator"), signal.SIGKILL)
        first = [int(word) for word in pids.read_text().split()][:2]
        eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in first), PATIENCE_S, "it is gone")
    finally:
        down(world)
