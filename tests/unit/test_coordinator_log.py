"""The event log: what was appended is replayed, snapshots change nothing but the time it takes."""

from __future__ import annotations

import pytest
from tests.unit.test_machine_tasks import AT

from muster.bus.transports.lanes.appendlog import AppendLog
from muster.coordinator import events as ev
from muster.coordinator import log as module
from muster.coordinator.log import EventLog
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.protocol import TaskInput
from muster.errors import CorruptStoreError, StoreFullError, StoreVersionError


def history(tasks: int = 20) -> list[ev.AnyFact]:
    plan = ev.Plan(workers=[ev.WorkerPlan(f"w-{n}", [(f"w-{n}", "k")]) for n in (1, 2)])
    facts: list[ev.AnyFact] = [
        ev.FleetStarted(AT, plan),
        ev.AgentReady(AT, "w-1", 1, 1),
        ev.AgentReady(AT, "w-2", 1, 1),
    ]
    facts.append(ev.TasksSubmitted(AT, [TaskInput(n, f"in {n}") for n in range(1, tasks + 1)]))
    machine = Machine()
    for fact in facts:
        machine.apply(fact)
    while machine.state.held > 1:
        agent = next(agent for agent in machine.state.agents.values() if agent.held)
        number, attempt = next(iter(agent.held.items()))
        facts.append(ev.TaskEnded(machine.state.now_s + 0.01, agent.name, number, attempt, 1, "done", 0))
        machine.apply(facts[-1])
    return facts


def after(facts) -> bytes:
    machine = Machine()
    for fact in facts:
        machine.apply(fact)
    return snapshot(machine.state)


def test_a_replay_gives_the_same_state_and_names_what_was_recorded(tmp_path):
    facts = history()
    log = EventLog(tmp_path / "c")
    for at in range(0, len(facts), 3):
        log.append(facts[at : at + 3])
    log.close()
    machine, records = EventLog(tmp_path / "c").recover()
    assert snapshot(machine.state) == after(facts)
    assert len(records) == machine.state.counters.done > 15
    assert all(record.outcome == "done" for record in records)


@pytest.mark.parametrize("cut", [1, 4, 10, 20])
def test_a_snapshot_anywhere_gives_the_same_state_and_only_later_records(tmp_path, cut):
    facts = history()
    log = EventLog(tmp_path / "c")
    machine = Machine()
    for at, fact in enumerate(facts, 1):
        machine.apply(fact)
        log.append([fact])
        if at == cut:
            assert log.write_snapshot(machine.state)
    log.close()
    recovered, records = EventLog(tmp_path / "c").recover()
    assert snapshot(recovered.state) == after(facts)
    assert len(records) == sum(isinstance(fact, ev.TaskEnded) for fact in facts[cut:])


def test_a_snapshot_that_was_not_finished_is_ignored(tmp_path):
    facts = history()
    log = EventLog(tmp_path / "c")
    log.append(facts)
    log.close()
    (tmp_path / "c" / "snapshot.tmp").write_bytes(b"half a snap")
    machine, _ = EventLog(tmp_path / "c").recover()
    assert snapshot(machine.state) == after(facts)


def test_a_damaged_snapshot_is_an_error_and_not_a_guess(tmp_path):
    log = EventLog(tmp_path / "c")
    log.append(history())
    log.write_snapshot(Machine().state)
    log.close()
    path = tmp_path / "c" / "snapshot"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptStoreError):
        EventLog(tmp_path / "c").recover()


def test_a_snapshot_of_another_format_is_refused():
    import msgspec

    raw = msgspec.msgpack.decode(snapshot(Machine().state))
    raw[0] = 999
    with pytest.raises(ValueError, match="999"):
        load(msgspec.msgpack.encode(raw))


def test_a_record_that_is_no_list_of_facts_is_refused(tmp_path):
    log = EventLog(tmp_path / "c")
    log.append(history())
    log.close()
    raw = AppendLog(tmp_path / "c" / "log")
    raw.append([b"\x91\x92\xcc\xff\x00"])
    raw.close()
    with pytest.raises(StoreVersionError):
        EventLog(tmp_path / "c").recover()


def test_a_large_submission_is_split_into_records_that_stand_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECORD_BYTES", 2000)
    fact = ev.TasksSubmitted(AT, [TaskInput(n, "x" * 100) for n in range(1, 101)])
    facts = [history(0)[0], fact, ev.InputEnded(AT, 100)]
    log = EventLog(tmp_path / "c")
    log.append(facts)
    log.close()
    records = list(AppendLog(tmp_path / "c" / "log").replay())
    assert len(records) > 5
    assert max(len(raw) for _, raw in records) < 4000
    machine, _ = EventLog(tmp_path / "c").recover()
    assert snapshot(machine.state) == after(facts)


def test_what_a_full_store_refused_is_written_by_a_later_flush_in_order(tmp_path, monkeypatch):
    facts = history()
    log = EventLog(tmp_path / "c")
    real = AppendLog.append
    room = 1

    def append(self, records):
        nonlocal room
        for record in records:
            if room <= 0:
                raise StoreFullError("full")
            room -= 1
            real(self, [record])
        return self.last_seq

    monkeypatch.setattr(AppendLog, "append", append)
    monkeypatch.setattr(module, "RECORD_BYTES", 100)
    with pytest.raises(StoreFullError):
        log.append(facts)
    room = 2
    with pytest.raises(StoreFullError):
        log.flush()
    room = 10**6
    log.flush()
    log.close()
    machine, _ = EventLog(tmp_path / "c").recover()
    assert snapshot(machine.state) == after(facts)


def test_a_hundred_thousand_finished_tasks_fit_in_a_small_snapshot():
    machine = Machine()
    machine.apply(history(0)[0])
    machine.apply(ev.AgentReady(AT, "w-1", 1, 1))
    for start in range(1, 100_001, 5000):
        machine.apply(ev.TasksSubmitted(AT, [TaskInput(n, "in") for n in range(start, start + 5000)]))
        while machine.state.held:
            number, attempt = next(iter(machine.state.agents["w-1"].held.items()))
            machine.apply(ev.TaskEnded(AT, "w-1", number, attempt, 1, "done", 0))
    assert machine.state.counters.done == 100_000
    assert len(snapshot(machine.state)) < 300_000
