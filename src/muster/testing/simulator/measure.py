"""What one step costs on this machine: the real machine, log and lanes, timed alone in one process.

The figures feed the cost model. They are processor time without anybody else in the way: caches are warm, nobody competes.
"""

from __future__ import annotations

import gc
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.coordinator import events as ev
from muster.coordinator.effects import Post
from muster.coordinator.log import EventLog
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.names import COORDINATOR
from muster.core.protocol import Assign, Result, TaskInput
from muster.security.keys import Keyring, load_master

#: Tasks that one measurement of the machine goes through, and messages of one of the lanes.
TASKS, MESSAGES = 4000, 4000
_decoder: msgspec.msgpack.Decoder[list[ev.AnyFact]] = msgspec.msgpack.Decoder(list[ev.AnyFact])
_encode = msgspec.msgpack.Encoder().encode


class Machinery(msgspec.Struct):
    """What a coordinator with so many below it costs. Times in µs of processor time."""

    below: int
    #: One task from its coming to its recorded end: decisions, then encoding of its facts; bytes of them.
    task_us: float
    encode_us: float
    task_bytes: float
    #: One fact of a replay.
    replay_us: float
    #: The answer of one of those below to a roll call.
    answer_us: float
    #: Memory for each below; loading a snapshot of the state with OPEN_TASKS open ones, and its size.
    below_bytes: float
    load_ms: float
    snapshot_bytes: int


class Costs(msgspec.Struct):
    """What messages and the log cost. µs of processor time."""

    send_us: float
    receive_us: float
    #: One append of the log, whatever it holds, and each kilobyte.
    append_us: float
    append_kb_us: float


#: Open tasks in the snapshot that is loaded: what the goal for recovery names.
OPEN_TASKS = 5000


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    gc.disable()
    begun = time.process_time()
    value = call()
    took = time.process_time() - begun
    gc.enable()
    return took, value


def _start(plan: ev.Plan, slots: int) -> tuple[Machine, list[ev.AnyFact]]:
    """A machine all of whose agents are ready, and the facts that made it so."""
    machine = Machine()
    facts: list[ev.AnyFact] = [ev.FleetStarted(1.0, plan)]
    for entry in plan.workers:
        facts.append(ev.WorkerStarted(2.0, entry.worker, 1, 1, 1))
        facts += [ev.AgentReady(3.0, agent, 1, slots) for agent, _ in entry.agents]
    for fact in facts:
        machine.apply(fact)
    return machine, facts


def _come(plan: ev.Plan, first: int, count: int, now_s: float) -> list[ev.AnyFact]:
    """Facts by which tasks come to a coordinator: in batches to the root, one by one to a team."""
    if plan.upstream:
        return [ev.TasksEntrusted(now_s, [TaskInput(n, f"input {n}", attempt=1)]) for n in range(first, first + count)]
    tasks = [TaskInput(n, f"input {n}") for n in range(first, first + count)]
    return [ev.TasksSubmitted(now_s, tasks[at : at + 100]) for at in range(0, count, 100)]


def machinery(plan: ev.Plan, slots: int = 1) -> Machinery:
    """Measure a coordinator with this plan; `slots` of each of those below it."""
    machine, _ = _start(plan, slots)
    is_team = {entry.worker: entry.is_team for entry in plan.workers}
    come = _come(plan, 1, TASKS, 10.0)
    done: list[ev.AnyFact] = []

    def work() -> None:
        """Everything comes, is assigned, and ends; as in life a few at a time."""
        now_s = 10.0
        waiting: list[Post] = []
        todo = iter(come)
        while True:
            fact = next(todo, None)
            if fact is not None:
                waiting += [effect for effect in machine.apply(fact) if isinstance(effect, Post)]
            elif not waiting:
                return
            ended, waiting = waiting, []
            for post in ended:
                now_s += 1e-5
                body = post.body
                assert isinstance(body, Assign)
                incarnation = 0 if is_team.get(post.to) else 1
                end = ev.TaskEnded(now_s, post.to, body.number, body.attempt, incarnation, "done", 0)
                done.append(end)
                waiting += [effect for effect in machine.apply(end) if isinstance(effect, Post)]

    took, _ = _timed(work)
    facts = [*come, *done]
    encode_s, raw = _timed(lambda: [_encode([fact]) for fact in facts])
    return _weigh(plan, slots, took, (encode_s, raw))


def _weigh(plan: ev.Plan, slots: int, took: float, encoded: tuple[float, list[bytes]]) -> Machinery:
    encode_s, raw = encoded
    twin, facts = _start(plan, slots)
    replay_s, _ = _timed(lambda: [twin.apply(fact) for part in raw for fact in _decoder.decode(part)])
    answers = [fact for fact in facts if isinstance(fact, ev.AgentReady)]
    alive = [(entry.worker, 1, 1, 1) for entry in plan.workers]
    twin.apply(ev.Recovered(1000.0, alive, [], 1))
    called = [msgspec.structs.replace(fact, at_s=1001.0, nonce=twin.state.roll) for fact in answers]
    answer_s, _ = _timed(lambda: [twin.apply(fact) for fact in called])
    for fact in _come(plan, TASKS + 1, OPEN_TASKS, 1002.0):
        twin.apply(fact)
    stored = snapshot(twin.state)
    load_s, _ = _timed(lambda: load(stored))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = _start(plan, slots)[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del kept
    below = len(answers)
    return Machinery(
        below=below, task_us=took / TASKS * 1e6, encode_us=encode_s / TASKS * 1e6, task_bytes=sum(map(len, raw)) / TASKS,
        replay_us=replay_s / len(raw) * 1e6, answer_us=answer_s / below * 1e6, below_bytes=grown / below,
        load_ms=load_s * 1e3, snapshot_bytes=len(stored),
    )  # fmt: skip


def costs() -> Costs:
    """Measure lanes and log in a store of their own, in memory where the system has such a place."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="muster-cost-", dir=place) as directory:
        store = create_store(Path(directory) / "store")
        for agent in ("agent", COORDINATOR):
            add_agent(store, agent)
        master = load_master(store)
        ours, theirs = (
            Bus(LanesTransport(store, agent, Keyring.from_master(master, agent))) for agent in ("agent", COORDINATOR)
        )
        result = Result(number=1, attempt=1, incarnation=1, outcome="done", exit_status=0)
        sending = receiving = 0.0
        for _ in range(MESSAGES // 100):
            sending += _timed(lambda: [ours.post_struct(COORDINATOR, result) for _ in range(100)])[0]
            receiving += _timed(lambda: _receive(theirs, 100))[0]
        log = EventLog(Path(directory) / "log")
        one: list[ev.AnyFact] = [ev.TimePassed(1.0)]
        many: list[ev.AnyFact] = [ev.TaskEnded(1.0, "agent-1", n, 1, 1, "done", 0) for n in range(200)]
        few_s, _ = _timed(lambda: _append(log, one, 500))
        many_s, _ = _timed(lambda: _append(log, many, 100))
        log.close()
        for bus in (ours, theirs):
            bus.transport.close()
        append_us = few_s / 500 * 1e6
        kilobytes = len(_encode(many)) / 1024
        per_kb = max(0.0, (many_s / 100 * 1e6 - append_us) / kilobytes)
        return Costs(sending / MESSAGES * 1e6, receiving / MESSAGES * 1e6, append_us, per_kb)


def _append(log: EventLog, facts: list[ev.AnyFact], times: int) -> None:
    for _ in range(times):
        log.append(facts)


def _receive(bus: Bus, count: int) -> None:
    for _ in range(count):
        delivery = bus.receive_nowait()
        assert delivery is not None, "what was sent is there"
        delivery.decode(Result)
        delivery.ack()
