"""The coordinator on a real bus: what is on disk when, what comes again after a crash, what ends how."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket

import msgspec
import pytest
from tests.unit.coordinator_world import CoordinatorWorld

from muster.bus.bus import Bus
from muster.bus.store import read_spec
from muster.bus.transports.lanes.appendlog import AppendLog
from muster.coordinator import main as main_module
from muster.coordinator import shell as shell_module
from muster.coordinator.outputs import OutputFlow
from muster.coordinator.recording import Recording
from muster.coordinator.results import ResultsFile
from muster.coordinator.shell import Shell
from muster.core import limits
from muster.core.orders import StopFleet
from muster.core.protocol import (
    TYPE_OF,
    Done,
    FleetStatus,
    InputEnd,
    Ready,
    Scale,
    StatusAsk,
    Stop,
    Submit,
    TaskInput,
)
from muster.core.spec import roster
from muster.errors import CoordinatorRunningError, InboxFullError, StoreFullError


def keep(kept, value, answer):
    """Note `value` and give `answer`, in one expression."""
    kept.append(value)
    return answer


@pytest.fixture
async def make(tmp_path):
    worlds = []

    def build(**options):
        worlds.append(CoordinatorWorld(tmp_path, **options))
        return worlds[-1]

    yield build
    for world in worlds:
        await world.close()


async def test_a_run_ends_with_a_line_an_output_and_a_report_for_every_task(make):
    world = make()
    coordinator = world.start()
    await world.operate()
    world.submit(20)
    assert await coordinator == 0
    await world.until(lambda: world.finished == 0)
    assert sorted(world.recorded()) == list(range(1, 21))
    assert sorted(output.number for output in world.outputs) == list(range(1, 21))
    assert world.lines()[0]["stdout"].startswith("out i")
    assert (world.ended.reason, world.ended.exit_status) == ("complete", 0)
    report = json.loads(world.report.read_bytes())
    assert report == json.loads(json.dumps(world.ended.report))
    for key in (
        "agents tasks done failed delivered_ratio duplicates reassigned restarts ready_s duration_s task_latency_ms message_rtt_ms "
        "pss_mb_per_agent"
    ).split():
        assert key in report
    assert (report["tasks"], report["done"], report["failed"]) == (20, 20, 0)
    assert (report["delivered_ratio"], report["duplicates"]) == (1.0, 0)


async def test_a_failed_task_is_tried_again_and_its_last_attempt_is_recorded(make):
    world = make(agents=1)
    world.work = lambda assign: {"outcome": "failed", "exit_status": 3, "stderr": b"no\n", "stderr_bytes": 3}
    coordinator = world.start()
    await world.operate()
    world.submit(2)
    assert await coordinator == 1
    assert sorted((line["task"], line["attempt"], line["exit_status"], line["stderr"]) for line in world.lines()) == [
        (1, 2, 3, "no\n"),
        (2, 2, 3, "no\n"),
    ]
    assert [output.ok for output in world.outputs] == [False, False]


async def test_a_worker_that_dies_with_a_task_costs_an_attempt_and_no_result(make):
    world = make(agents=2)
    hold = {1}
    world.work = lambda assign: None if assign.attempt == 1 and assign.number in hold else {}
    coordinator = world.start()
    await world.operate()
    world.submit(6)
    await world.until(lambda: any((1, 1) in agent.holding for agent, _ in world.agents.values()))
    (victim,) = [name for name, (agent, _) in world.agents.items() if (1, 1) in agent.holding]
    await world.kill(victim)
    assert await coordinator == 0
    assert sorted(world.recorded()) == [1, 2, 3, 4, 5, 6]
    assert [line["attempt"] for line in world.lines() if line["task"] == 1] == [2]
    assert world.ended.report["reassigned"] >= 1  # one that waited behind it, too


async def test_a_result_stored_before_its_worker_died_counts(make, monkeypatch):
    world = make(agents=1)
    world.work = lambda assign: None if assign.number == 1 else {}
    coordinator = world.start()
    await world.operate()
    world.submit(1)
    await world.until(lambda: world.agents and world.agents["w"][0].holding)
    agent = world.agents["w"][0]
    take = OutputFlow.end
    ends: list[int] = []
    monkeypatch.setattr(OutputFlow, "end", lambda self, number, *rest: take(self, keep(ends, number, number), *rest))
    agent.end((1, 1))  # stored, but the coordinator has had no turn since
    await world.kill("w")
    assert await coordinator == 0
    assert ends == [1]
    assert world.lines()[0]["attempt"] == 1
    assert world.ended.report["reassigned"] == 0


class Died(Exception):
    pass


STEPS = [(Recording, "record"), (Shell, "post"), (Shell, "_carry_out")]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", [1, 2, 4])
async def test_a_coordinator_that_dies_in_a_turn_is_followed_by_one_that_loses_and_doubles_nothing(
    make, monkeypatch, step, when
):
    world = make(agents=3)
    real, calls = getattr(*step), 0

    def dying(self, *args):
        nonlocal calls
        calls += 1
        if calls == when:
            raise Died
        return real(self, *args)

    monkeypatch.setattr(*step, dying)
    first = world.start()
    await world.operate()
    world.submit(60)
    with pytest.raises(Died):
        await first
    assert await world.start() == 0
    assert sorted(world.recorded()) == list(range(1, 61))
    assert sorted({output.number for output in world.outputs}) == list(range(1, 61))
    assert world.ended.report["coordinator_restarts"] == 1
    assert world.ended.report["duplicates"] == 0


async def test_a_line_that_was_not_written_before_the_crash_is_written_when_its_result_comes_again(make, monkeypatch):
    world = make(agents=1)
    real, calls = ResultsFile.append, 0

    def dying(self, lines):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Died
        real(self, lines)

    monkeypatch.setattr(ResultsFile, "append", dying)
    first = world.start()
    await world.operate()
    world.submit(5)
    with pytest.raises(Died):
        await first
    recorded = len(world.recorded())
    assert await world.start() == 0
    assert recorded < 5
    assert sorted(world.recorded()) == [1, 2, 3, 4, 5]
    assert world.ended.report["stale_refused"] == 0


async def test_a_results_file_on_a_full_disk_ends_the_run_and_claims_nothing(make, monkeypatch):
    world = make(agents=1)
    real, left = os.write, 400

    def full(fd, data):
        nonlocal left
        if os.readlink(f"/proc/self/fd/{fd}") != str(world.results):
            return real(fd, data)
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, bytes(data[:left]))
        left -= written
        return written

    monkeypatch.setattr(os, "write", full)
    coordinator = world.start()
    await world.operate()
    world.submit(30)
    assert await coordinator == 1
    assert (world.ended.reason, world.ended.exit_status) == ("error", 1)
    assert "No space left" in world.ended.error
    recorded = world.recorded()
    assert len(recorded) < 30
    assert {output.number for output in world.outputs} <= set(recorded)
    assert world.ended.report["done"] == len(recorded)


async def test_a_results_file_that_cannot_be_opened_starts_nothing(make, tmp_path):
    world = make(run={"results": str(tmp_path / "missing" / "r.jsonl")})
    await world.operate()
    assert await world.start() == 1
    assert world.agents == {}
    assert world.ended.reason == "error"
    assert "cannot write the results file" in world.ended.error


async def test_a_full_store_delays_the_log_and_everything_behind_it_and_loses_nothing(make, monkeypatch):
    world = make(agents=1)
    real, refused = AppendLog.append, 0
    released: list[int] = []

    def append(self, records):
        nonlocal refused
        if self.last_seq > 3 and refused < 3:
            refused += 1
            raise StoreFullError("full")
        return real(self, records)

    monkeypatch.setattr(AppendLog, "append", append)
    monkeypatch.setattr(AppendLog, "release_reserve", lambda self: keep(released, 1, True))
    monkeypatch.setattr(shell_module, "LOG_RETRY_S", 0.01)
    coordinator = world.start()
    await world.operate()
    world.submit(10)
    assert await coordinator == 0
    assert (refused, released) == (3, [1])
    assert sorted(world.recorded()) == list(range(1, 11))


async def test_an_assignment_that_finds_no_room_is_kept_and_sent_in_its_order(make, monkeypatch):
    world = make(agents=1)
    real, refused = Bus.post, 0

    def post(self, to, body=None, **envelope):
        nonlocal refused
        if envelope.get("type") == "task.assign" and refused < 5:
            refused += 1
            raise (StoreFullError, InboxFullError)[refused % 2]("full")
        return real(self, to, body, **envelope)

    monkeypatch.setattr(Bus, "post", post)
    coordinator = world.start()
    await world.operate()
    world.submit(6)
    assert await coordinator == 0
    assert refused == 5
    assert [number for number, _ in world.agents["w"][0].seen] == [1, 2, 3, 4, 5, 6]


async def test_an_input_that_fits_no_assignment_fails_and_holds_up_nobody(make):
    world = make(agents=1)
    coordinator = world.start()
    await world.operate()
    empty = len(msgspec.msgpack.encode(Submit(tasks=[TaskInput(1, "")])))
    huge = TaskInput(1, "x" * (limits.BODY_BYTES_MAX - empty - 8))
    world.operator.post_struct("coordinator", Submit(tasks=[huge]))
    world.submit(2, start=2)
    assert await coordinator == 1
    assert {line["task"]: line["outcome"] for line in world.lines()} == {1: "dead", 2: "done", 3: "done"}
    (line,) = [line for line in world.lines() if line["task"] == 1]
    assert "bytes" in line["error"]["message"]


async def test_a_second_coordinator_on_the_same_store_is_refused_and_told_who_holds_it(make, monkeypatch):
    world = make(agents=1, run=False)
    world.start()
    await world.until(lambda: "w" in world.agents)
    monkeypatch.setattr(main_module, "IDENTITY_WAIT_S", 0.05)
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, pytest.raises(CoordinatorRunningError, match=rf"by process {os.getpid()} since 20\d\d-"):
        fd = theirs.detach()
        try:
            await main_module._coordinate(world.store, fd)
        finally:
            os.close(fd)


async def test_outputs_come_in_input_order_when_asked_also_over_a_crash(make, monkeypatch):
    world = make(agents=3, run={"keep_order": True})
    world.work = lambda assign: None if assign.number == 1 else {"stdout": f"{assign.number}\n".encode()}
    first = world.start()
    await world.operate()
    world.submit(9)
    held = world.store / "coordinator" / "held"
    await world.until(
        lambda: len(os.listdir(held)) == 8 if held.exists() else False, "eight outputs wait for the first"
    )
    assert world.outputs == []
    monkeypatch.setattr(Shell, "turn", lambda self: (_ for _ in ()).throw(Died))
    (holder,) = [agent for agent, _ in world.agents.values() if agent.holding]
    holder.end((1, 1), stdout=b"1\n")
    with pytest.raises(Died):
        await first
    monkeypatch.undo()
    assert await world.start() == 0
    assert [output.stdout for output in world.outputs] == [f"{n}\n".encode() for n in range(1, 10)]
    assert os.listdir(held) == []


async def test_outputs_are_dropped_and_the_run_goes_on_when_nobody_reads(make):
    world = make(agents=2)
    world.work = lambda assign: {"stdout": b"x" * 1000}
    coordinator = world.start()
    world.operator = await Bus.open(world.store, "operator", world.keyring("operator"))
    for start in range(1, 1300, 200):
        world.submit(200, start=start, end=False)
    world.operator.post_struct("coordinator", InputEnd(total=1400))
    await world.operator.close()
    world.operator = None
    assert await coordinator == 0
    report = json.loads(world.report.read_bytes())
    assert report["done"] == 1400
    assert report["outputs_dropped"] > 0
    assert len(set(world.recorded())) == 1400


async def test_only_the_operator_ends_the_input_or_the_fleet(make):
    world = make(agents=1)
    coordinator = world.start()
    await world.operate()
    await world.until(lambda: "w" in world.agents and hasattr(world.agents["w"][0], "bus"))
    bus = world.agents["w"][0].bus
    receipts = [bus.post_struct("coordinator", InputEnd(total=0)), bus.post_struct("coordinator", Stop(mode="now"))]
    await world.until(lambda: [receipt.state for receipt in receipts] == ["dead", "dead"])
    world.submit(3)
    assert await coordinator == 0
    assert len(world.recorded()) == 3


async def test_a_message_of_an_unknown_type_or_shape_becomes_a_dead_letter(make):
    world = make(agents=1)
    coordinator = world.start()
    await world.operate()
    receipts = [
        world.operator.post("coordinator", {"x": 1}, type="greeting"),
        world.operator.post("coordinator", {"tasks": 7}, type="task.submit"),
        world.operator.post("coordinator", {"tasks": [[0, "x"]]}, type="task.submit"),
    ]
    await world.until(lambda: {receipt.state for receipt in receipts} == {"dead"})
    world.submit(1)
    assert await coordinator == 0


async def test_status_is_answered_from_what_is_so_now(make):
    world = make(agents=2, run=False)
    world.work = lambda assign: None
    world.start()
    world.operator = await Bus.open(world.store, "operator", world.keyring("operator"))
    world.submit(3, end=False)
    await world.until(lambda: sum(len(agent.holding) for agent, _ in world.agents.values()) == 2)
    reply = await world.operator.ask("coordinator", StatusAsk(), type="fleet.status", timeout_s=5)
    status = reply.decode(FleetStatus)
    assert (status.fleet, status.state, status.coordinator_pid) == ("test", "running", os.getpid())
    assert (status.tasks["running"], status.tasks["queued"], status.tasks["submitted"]) == (2, 1, 3)
    assert [(agent.agent, agent.state) for agent in status.agents] == [("w-1", "busy"), ("w-2", "busy")]
    assert sorted(agent.task for agent in status.agents) == [1, 2]


async def test_a_stop_hands_unfinished_tasks_back_and_the_next_life_runs_them(make):
    world = make(agents=1, run=False)
    world.work = lambda assign: None
    first = world.start()
    world.operator = await Bus.open(world.store, "operator", world.keyring("operator"))
    world.submit(2, end=False)
    await world.until(lambda: world.agents and world.agents["w"][0].holding)
    world.say(StopFleet(mode="drain", reason="down"))
    assert await first == 0
    assert world.alive == {}
    done: list[int] = []
    world.work = lambda assign: keep(done, assign.number, {})
    world.restarts = -1
    second = world.start()
    await world.until(lambda: done == [1, 2])
    world.say(StopFleet(mode="now", reason="down"))
    assert await second == 0


async def test_a_coordinator_that_dies_while_an_agent_too_many_is_leaving_is_followed_by_one_that_lets_it_leave(
    make, monkeypatch
):
    world = make(agents=3, run=False)
    world.work = lambda assign: None
    first = world.start()
    world.operator = await Bus.open(world.store, "operator", world.keyring("operator"))
    world.submit(3, end=False)
    await world.until(lambda: [len(agent.holding) for agent, _ in world.agents.values()] == [1, 1, 1])
    busy, _ = world.agents["w-3"]
    orders: list[str] = []
    monkeypatch.setattr(busy, "take", lambda delivery: orders.append(delivery.type))  # it is not done yet
    done = await world.operator.ask("coordinator", Scale(counts={"w": 2}), type=TYPE_OF[Scale], timeout_s=5)
    assert done.decode(Done).ok
    await world.until(lambda: "agent.drain" in orders)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = world.start()
    await world.until(lambda: second.done() or "agent.roll_call" in orders)
    assert not second.done(), second.exception()
    monkeypatch.undo()
    busy.bus.post_struct("coordinator", Ready(incarnation=1, pid=1, slots=1, holding=busy.holding, nonce=1))
    await world.until(lambda: "w-3" not in world.alive and not world.exits)
    status = (await world.operator.ask("coordinator", StatusAsk(), type="fleet.status", timeout_s=5)).decode(
        FleetStatus
    )
    assert [agent.agent for agent in status.agents] == ["w-1", "w-2"]
    assert roster(read_spec(world.store)) == ["w-1", "w-2"]


async def test_a_coordinator_whose_spawner_is_gone_ends_at_once_and_kills_nobody(make):
    world = make(agents=1, run=False)
    coordinator = world.start()
    await world.until(lambda: "w" in world.agents)
    world.hang_up()
    assert await coordinator == 1
    assert world.kills == []
    world.agents["w"][1].cancel()


async def test_a_second_run_of_failed_tasks_leaves_one_line_for_each(make):
    world = make(agents=1)
    world.results.write_text('{"task":1,"input":"i1","outcome":"failed"}\n{"task":2,"input":"i2","outcome":"done"}\n')
    coordinator = world.start()
    await world.operate()
    world.submit(1)
    assert await coordinator == 0
    assert [(line["task"], line["outcome"]) for line in world.lines()] == [(2, "done"), (1, "done")]
    assert world.ended.report["tasks"] == 1
