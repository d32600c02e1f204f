"""A worker's life: joining, assignments, roll calls, draining, full inboxes, and every way to end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from pathlib import Path

from muster.agent.status import read_status
from muster.agent.worker import EXIT_CANNOT_START, EXIT_ORPHANED
from muster.core import limits
from muster.core.protocol import (
    Cancel,
    Drain,
    Drained,
    HealthChanged,
    MetricsSnapshot,
    Ping,
    Pong,
    Ready,
    Refused,
    Result,
    RollCall,
)
from muster.core.spec import AgentSpec
from muster.supervise import tree
from muster.testing import eventually, eventually_async

from .worker_world import PATIENCE_S, World, one_agent

SLEEP = ("sh", "-c", "sleep 600")


async def test_a_worker_says_that_it_is_ready(tmp_path: Path) -> None:
    async with World(tmp_path / "world", AgentSpec(name="w", command=("true",), slots=3)) as world:
        ready = await world.started(incarnation=7)
        assert (ready.incarnation, ready.pid, ready.slots, ready.holding, ready.nonce) == (
            7,
            world.pids["w"],
            3,
            [],
            None,
        )


async def test_one_worker_hosts_many_agents(tmp_path: Path) -> None:
    async with World(tmp_path / "world", AgentSpec(name="w", count=5, command=("true",)), agents_per_worker=5) as world:
        world.start()
        assert {(await world.expect_from(Ready))[0] for _ in range(5)} == {f"w-{n}" for n in range(1, 6)}
        for number in range(1, 6):
            world.assign(f"w-{number}", number)
        assert {(await world.expect_from(Result))[0] for _ in range(5)} == {f"w-{n}" for n in range(1, 6)}
        for number in range(1, 6):
            await world.drained(f"w-{number}")
        assert await world.exited() == 0


async def test_slots_bound_what_runs_at_once(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP, slots=2) as world:
        for number in (1, 2, 3):
            world.assign("w", number)
        world.post("w", RollCall(nonce=5))
        ready = await world.expect(Ready)
        assert (ready.nonce, ready.holding) == (5, [(1, 1), (2, 1), (3, 1)])
        assert len(world.below()) == 2 or len(world.below()) == 4  # sh may or may not have executed sleep in its place
        world.post("w", Cancel(number=1, attempt=1))
        assert (await world.expect(Result)).number == 1
        world.post("w", RollCall(nonce=6))
        assert (await world.expect(Ready)).holding == [(2, 1), (3, 1)]


async def test_an_assignment_is_acked_when_it_is_noted_not_when_it_ends(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        world.assign("w", 1)
        world.post("w", RollCall(nonce=1))
        await world.expect(Ready)
        await eventually_async(lambda: world.coordinator.depth("w") == 0, PATIENCE_S)
        assert world.below()


async def test_an_assignment_of_another_incarnation_is_refused(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        world.assign("w", 1, incarnation=0)
        refused = await world.expect(Refused)
        assert (refused.number, refused.attempt, refused.incarnation, refused.reason) == (1, 1, 1, "stale")
        assert (await world.run("w", 2)).outcome == "done"


async def test_an_attempt_runs_once_however_often_it_is_assigned(tmp_path: Path) -> None:
    record = tmp_path / "runs"
    async with one_agent(tmp_path, command=("sh", "-c", f"echo $MUSTER_TASK.$MUSTER_ATTEMPT >> {record}")) as world:
        for attempt in (1, 1, 2):
            world.assign("w", 1, attempt=attempt)
        world.assign("w", 1, attempt=1)
        assert [(await world.expect(Result)).attempt for _ in range(2)] == [1, 2]
        world.assign("w", 1, attempt=2)
        assert (await world.run("w", 9)).outcome == "done"
        assert record.read_text().split() == ["1.1", "1.2", "9.1"]


async def test_verbs_are_believed_from_the_coordinator_alone(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        friend, operator = await world.open("friend"), await world.open("operator")
        world.assign("w", 1)
        receipts = [
            friend.post_struct("w", Drain(now=True), priority="control"),
            operator.post_struct("w", Cancel(number=1, attempt=1)),
            operator.post("w", {"number": 1, "attempt": 1}, type="task.cancel", priority="control"),
        ]
        await eventually_async(
            lambda: [each.state for each in receipts if each.control] == ["dead", "dead"], PATIENCE_S
        )
        world.post("w", RollCall(nonce=1))
        assert (await world.expect(Ready)).holding == [(1, 1)]
        assert receipts[1].state == "stored", "normal messages of others are not even taken"


async def test_a_verb_nobody_understands_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        bad = world.coordinator.post("w", {"number": "x"}, type="task.assign")
        unknown = world.coordinator.post("w", {}, type="task.dance")
        assert (await world.run("w", 1)).outcome == "done"
        assert (bad.state, unknown.state) == ("dead", "dead")


async def test_a_ping_is_answered(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        reply = await world.coordinator.ask("w", Ping(sent_ns=5), type="agent.ping", timeout_s=PATIENCE_S)
        assert (reply.type, reply.decode(Pong).sent_ns) == ("agent.pong", 5)


# --------------------------------------------------------------------------- leaving


async def test_draining_finishes_what_runs_and_hands_back_the_rest(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with one_agent(tmp_path, command=("sh", "-c", f"while ! test -e {gate}; do sleep 0.02; done")) as world:
        world.assign("w", 1)
        world.assign("w", 2)
        world.post("w", RollCall(nonce=1))
        await world.expect(Ready)
        world.post("w", Drain(), priority="control")
        refused = await world.expect(Refused)
        assert (refused.number, refused.reason) == (2, "drain")
        world.assign("w", 3)
        assert (await world.expect(Refused)).number == 3
        gate.touch()
        assert (await world.expect(Result)).outcome == "done"
        await world.expect(Drained)
        assert await world.exited() == 0
        page = world.status("w")
        assert page is not None and page.state == "stopped"
        assert await world.coordinator.receive(timeout_s=0.05) is None, "drained is the last word"
        assert not (world.store / "sockets" / "w").exists()


async def test_draining_now_ends_what_runs(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        world.post("w", Drain(now=True), priority="control")
        assert (await world.expect(Result)).outcome == "cancelled"
        await world.expect(Drained)
        assert await world.exited() == 0


async def test_draining_ends_at_its_deadline(tmp_path: Path) -> None:
    async with one_agent(
        tmp_path, command=("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"), kill_grace_s=0.1
    ) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        world.post("w", Drain(deadline_s=0.3), priority="control")
        result = await world.expect(Result)
        assert (result.outcome, result.signal) == ("cancelled", signal.SIGKILL)
        await world.expect(Drained)
        assert await world.exited() == 0


async def test_the_last_of_a_drains_time_is_for_ending_politely(tmp_path: Path) -> None:
    script = "trap 'sleep 0.1; echo cleaned up; exit 0' TERM; while :; do sleep 0.05; done"
    async with one_agent(tmp_path, command=("sh", "-c", script)) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        began = time.monotonic()
        world.post("w", Drain(deadline_s=6.0), priority="control")
        result = await world.expect(Result)
        assert time.monotonic() - began >= 5.3, "nine tenths are for the work"
        assert (result.outcome, result.exit_status, result.stdout) == ("cancelled", 0, b"cleaned up\n")
        await world.expect(Drained)


async def test_sigterm_drains(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with one_agent(tmp_path, command=("sh", "-c", f"while ! test -e {gate}; do sleep 0.02; done")) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        os.kill(world.pids["w"], signal.SIGTERM)
        world.page("w", lambda page: page.state == "draining")
        gate.touch()
        assert (await world.expect(Result)).outcome == "done"
        await world.expect(Drained)
        assert await world.exited() == 0


async def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP, fleet={"grace_s": 300.0}) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        os.kill(world.pids["w"], signal.SIGTERM)
        world.page("w", lambda page: page.state == "draining")
        os.kill(world.pids["w"], signal.SIGTERM)
        assert (await world.expect(Result)).outcome == "cancelled"
        await world.expect(Drained)
        assert await world.exited() == 0


async def test_ctrl_c_is_not_the_workers_business_but_its_commands_hear_it(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("sh", "-c", "kill -INT $PPID; kill -INT $$; sleep 600")) as world:
        assert (await world.run("w", 1)).signal == signal.SIGINT
        assert (await world.run("w", 2)).signal == signal.SIGINT


async def test_when_the_spawner_dies_trees_and_worker_end_at_once(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    async with one_agent(tmp_path, command=("sh", "-c", f"(setsid sleep 600 & echo $! > {mark}); sleep 600")) as world:
        world.assign("w", 1)
        eventually(lambda: mark.exists() and mark.read_text().strip(), PATIENCE_S)
        below = world.below()
        assert len(below) >= 2
        world.cut_lifeline("w")
        assert await world.exited() == EXIT_ORPHANED
        assert not any(Path(f"/proc/{pid}").exists() for pid in below)


async def test_a_worker_that_was_killed_restarts_with_clean_hands(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        world.assign("w", 1)
        eventually(world.below, PATIENCE_S)
        os.kill(world.pids["w"], signal.SIGKILL)
        assert await world.exited() == -signal.SIGKILL
        assert tree.kill_orphans((), 5.0) == []
        world.start(incarnation=2)
        ready = await world.expect(Ready)
        assert (ready.incarnation, ready.holding) == (2, [])
        page = read_status(world.store, "w")
        assert page is not None and (page.incarnation, page.pid, page.running) == (2, world.pids["w"], 0)


async def test_an_identity_in_use_is_said_and_not_taken(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        first = world.pids.pop("w")
        world.start(incarnation=2)
        assert await world.exited() == EXIT_CANNOT_START
        world.pids["w"] = first
        assert (await world.run("w", 1)).outcome == "done"
        assert "already in use" in (world.store / "agents" / "w" / "log").read_text()


# --------------------------------------------------------------------------- pressure


async def test_results_wait_for_room_and_none_is_lost(tmp_path: Path) -> None:
    """The coordinator's inbox is full while tasks end: results come later, in order, each once."""
    async with World(tmp_path / "world", AgentSpec(name="w", command=("true",))) as world:
        world.start()
        await world.expect(Ready)
        # Fill the lane with refusals, which the coordinator does not take meanwhile.
        for number in range(limits.LANE_CREDIT):
            world.assign("w", number + 1, incarnation=0)
            if number % 200 == 199:
                expected = number + 1
                eventually(lambda e=expected: world.coordinator.depth() >= e, PATIENCE_S)  # type: ignore[misc]
        for number in (5001, 5002, 5003):
            world.assign("w", number)
        world.page("w", lambda page: page.done >= 1)
        assert world.coordinator.depth() == limits.LANE_CREDIT
        for _ in range(limits.LANE_CREDIT):
            await world.expect(Refused)
        found = [(await world.expect(Result)).number for _ in range(3)]
        assert found == [5001, 5002, 5003]


async def test_messages_for_the_command_stay_in_their_lanes_until_asked_for(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        friend = await world.open("friend")
        receipts = [friend.post("w", number) for number in range(10)]
        for number in range(1, 6):
            assert (await world.run("w", number)).outcome == "done"
        assert {receipt.state for receipt in receipts} == {"stored"}


# --------------------------------------------------------------------------- health and metrics


async def test_metrics_come_while_there_is_something_to_tell_and_then_no_more(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("sh", "-c", "sleep 0.02"), fleet={"metrics_interval_s": 0.1}) as world:
        for number in range(1, 6):
            assert (await world.run("w", number)).outcome == "done"
        told: dict[str, float] = {}
        count = 0
        while told.get("muster_attempts_done_total", 0) < 5:
            snapshot = await world.expect(MetricsSnapshot)
            assert snapshot.incarnation == 1
            for name, by in snapshot.counters.items():
                told[name] = told.get(name, 0) + by
            count += snapshot.histograms.get("muster_attempt_seconds", (0, 0.0, {}))[0]
            if snapshot.gauges:
                assert snapshot.gauges.get("muster_worker_pss_bytes", 1) > 0
        assert count == 5
        assert told["muster_messages_sent_total"] >= 6
        # One more may come for what the snapshots above caused; then there is silence.
        await world.coordinator.receive(timeout_s=3)
        assert await world.coordinator.receive(timeout_s=4) is None


async def test_last_metrics_come_before_the_last_word(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",), fleet={"metrics_interval_s": 600.0}) as world:
        await world.run("w", 1)
        world.post("w", Drain(), priority="control")
        snapshot = await world.expect(MetricsSnapshot)
        assert snapshot.counters["muster_attempts_done_total"] == 1
        await world.expect(Drained)


async def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",), fleet={"metrics": False, "metrics_interval_s": 0.01}) as world:
        await world.run("w", 1)
        await world.drained("w")
        assert not [kind for kind in world.seen if isinstance(kind[1], dict) and "counters" in kind[1]]


async def test_a_status_page_follows_the_agent(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        page = world.page("w")
        assert page.state in ("ready", "starting")
        assert (page.pid, page.incarnation, page.start_time) == (
            world.pids["w"],
            1,
            tree.start_time_of(world.pids["w"]),
        )
        world.assign("w", 4, attempt=2)
        page = world.page("w", lambda found: found.running)
        assert (page.state, page.task, page.attempt) == ("busy", 4, 2)
        assert page.child_pid in world.below()
        assert page.child_start_time == tree.start_time_of(page.child_pid)
        world.post("w", Cancel(number=4, attempt=2))
        await world.expect(Result)
        page = world.page("w", lambda found: not found.running)
        assert (page.state, page.task, page.child_pid, page.done, page.failed) == ("ready", 0, 0, 0, 1)
        assert world.page("w", lambda found: found.pss_bytes).pss_bytes > 1 << 20
        assert page.fds > 5


async def test_a_worker_says_when_it_is_unwell_and_when_it_is_well_again(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=SLEEP) as world:
        world.assign("w", 1)
        pid = world.pids["w"]
        world.page("w", lambda found: found.child_pid)
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 4, hard))
        changed = await world.expect(HealthChanged)
        assert changed.verdict in ("degraded", "unhealthy")
        assert changed.incarnation == 1
        assert "file descriptors" in changed.evidence[0]
        assert world.page("w").verdict == changed.verdict
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        well = await world.expect(HealthChanged)
        while well.evidence:
            well = await world.expect(HealthChanged)
        assert well.verdict == "healthy"


async def test_an_idle_worker_costs_nothing(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        await world.run("w", 1)
        # In ns, as the scheduler counts them: the ticks of `stat` fall on whoever runs when the clock strikes.
        clock = Path(f"/proc/{world.pids['w']}/schedstat")

        def spent_ms() -> float:
            return int(clock.read_text().split()[0]) / 1e6

        await asyncio.sleep(1)
        windows: list[float] = []
        while len(windows) < 3 and (not windows or windows[-1] > 20):  # a busy machine only ever adds to a window
            before = spent_ms()
            await asyncio.sleep(4)
            windows.append(spent_ms() - before)
        assert min(windows) <= 20, "at most 20 ms of CPU in 4 s"


async def test_the_coordinator_can_be_away_while_tasks_end(tmp_path: Path) -> None:
    """Results stored while no coordinator lives are there for the next one, before the answer to its roll call."""
    async with one_agent(tmp_path, command=("true",)) as world:
        world.assign("w", 1)
        await world.coordinator.close()
        world.page("w", lambda page: page.done == 1)
        world.coordinator = await world.open("coordinator")
        world.post("w", RollCall(nonce=3))
        assert (await world.expect(Result)).number == 1
        ready = await world.expect(Ready)
        assert (ready.nonce, ready.holding) == (3, [])
