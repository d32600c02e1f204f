"""More agents and fewer while the fleet runs: who comes, who goes, and that no task notices."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.test_machine_recycling import drained, leave, restart
from tests.unit.test_machine_tasks import AT, assigned, ended, submit
from tests.unit.test_machine_workers import exited, killed, ready, recover, spawned

from muster.coordinator import events as ev
from muster.coordinator import scaling
from muster.coordinator.asks import Ask
from muster.coordinator.machine import Machine
from muster.coordinator.resizing import resized
from muster.coordinator.state import load, snapshot
from muster.core.protocol import Scale
from muster.core.spec import AgentSpec, ChildSpec, FleetSpec, kind_of, roster
from muster.errors import FleetNotRunningError, UnknownAgentError, UsageError


def fleet(count: int, *, per_worker: int = 1, kind: str = "k") -> Machine:
    """A running, ready standing fleet of `count` agents of one kind, named as fleet.toml names them."""
    ids = AgentSpec(name=kind, count=count).agent_ids()
    hosts = [ids[at : at + per_worker] for at in range(0, count, per_worker)]
    names = ids if per_worker == 1 else [f"worker-{n}" for n in range(1, len(hosts) + 1)]
    entries = [
        ev.WorkerPlan(name, [(agent, kind) for agent in hosted], "on_failure", ChildSpec(max_tasks=7))
        for name, hosted in zip(names, hosts, strict=True)
    ]
    machine = Machine()
    machine.apply(ev.FleetStarted(AT, ev.Plan(workers=entries, run=False, agents_per_worker=per_worker)))
    for agent in ids:
        join(machine, agent)
    return machine


def join(machine: Machine, agent: str) -> list[ev.Effect]:
    worker = machine.state.workers[machine.state.agents[agent].worker]
    return machine.apply(ev.AgentReady(machine.state.now_s, agent, worker.incarnation, 1))


def scale(machine: Machine, **counts: int) -> list[ev.Effect]:
    answer = scaling.RULES[Scale].judge(machine.state, Scale(counts=counts), Ask("operator", "", machine.state.now_s))
    facts = msgspec.msgpack.decode(msgspec.msgpack.encode(list(answer.facts)), type=list[ev.AnyFact])
    return [effect for fact in facts for effect in machine.apply(fact)]


def agents(machine: Machine) -> list[str]:
    return list(machine.state.agents)


def test_a_fleet_grows_by_the_next_numbers_supervised_like_the_others_and_they_get_work():
    machine = fleet(2)
    out = scale(machine, k=4)
    assert spawned(out) == [("k-3", 1), ("k-4", 1)]
    (resize,) = [e for e in out if isinstance(e, ev.FleetResized)]
    assert (resize.counts, resize.new) == ({"k": 4}, ["k-3", "k-4"])
    assert out.index(resize) < min(out.index(e) for e in out if isinstance(e, ev.SpawnWorker)), (
        "they read what it writes"
    )
    new = machine.state.workers["k-3"]
    assert (new.restart, new.child.max_tasks) == ("on_failure", 7)
    submit(machine, 1, 2)
    assert assigned(submit(machine, 3)) == []
    assert assigned(join(machine, "k-3")) == [(3, 1, "k-3")]


def test_a_fleet_shrinks_from_the_highest_number_and_what_they_hold_is_finished():
    machine = fleet(4)
    submit(machine, 1, 2, 3, 4)
    assert drained(scale(machine, k=2)) == ["k-3", "k-4"]
    assert assigned(submit(machine, 5)) == [], "nothing new for those who go"
    ended(machine, "k-3", 3)
    assert spawned(leave(machine, "k-3")) == []
    assert agents(machine) == ["k-1", "k-2", "k-4"]
    ended(machine, "k-4", 4)
    leave(machine, "k-4")
    assert agents(machine) == list(machine.state.workers) == ["k-1", "k-2"]
    assert (machine.state.counters.done, machine.state.counters.reassigned) == (2, 0)
    assert assigned(ended(machine, "k-1", 1)) == [(5, 1, "k-1")]


def test_one_that_dies_on_its_way_out_gives_its_task_back_and_is_not_started_again():
    machine = fleet(2)
    submit(machine, 1, 2)
    scale(machine, k=1)
    out = exited(machine, "k-2")
    assert spawned(out) == []
    assert agents(machine) == ["k-1"]
    assert assigned(ended(machine, "k-1", 1)) == [(2, 2, "k-1")]


def test_one_that_is_wanted_again_before_it_has_left_comes_back():
    machine = fleet(3)
    scale(machine, k=1)
    assert drained(scale(machine, k=2)) == [], "it is on its way out already"
    assert spawned(leave(machine, "k-2")) == [("k-2", 2)]
    assert spawned(leave(machine, "k-3")) == []
    assert agents(machine) == ["k-1", "k-2"]


def test_incarnations_never_repeat_although_a_worker_was_forgotten():
    machine = fleet(2)
    scale(machine, k=1)
    leave(machine, "k-2")
    assert spawned(scale(machine, k=2)) == [("k-2", 2)]
    scale(machine, k=1)
    exited(machine, "k-2", 2)
    out = machine.apply(ev.FleetStarted(AT + 9, fleet(2).state.plan))
    assert ("k-2", 3) in spawned(out), "nor in the next life of the store"


def test_a_kind_of_one_keeps_the_name_of_its_agent_when_it_grows_and_of_its_first_when_it_shrinks():
    machine = fleet(1)
    scale(machine, k=3)
    assert agents(machine) == ["k", "k-2", "k-3"]
    spec = resized(FleetSpec(name="f", store_id="", agents=(AgentSpec(name="k", command=("x",)),)), {"k": 3})
    assert roster(spec) == ["k", "k-2", "k-3"]
    assert roster(resized(spec, {"k": 1})) == ["k"]
    machine = fleet(3)
    scale(machine, k=1)
    for name in ("k-2", "k-3"):
        leave(machine, name)
    assert agents(machine) == ["k-1"]
    assert roster(resized(FleetSpec(name="f", store_id="", agents=(AgentSpec(name="k", count=3),)), {"k": 1})) == [
        "k-1"
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_a_resized_kind_includes_exactly_its_agents(count):
    for kind in (AgentSpec(name="k", count=count).resized(2), AgentSpec(name="k", count=count)):
        names = ["k", *(f"k-{n}" for n in range(6)), "k-01", "x-1", "k-"]
        assert [name for name in names if kind.includes(name)] == kind.agent_ids()


def test_an_agent_that_is_one_too_many_is_still_known_by_its_kind():
    kind, other = AgentSpec(name="k", count=3).resized(1), AgentSpec(name="k-3", command=("x",))
    spec = FleetSpec(name="f", store_id="", agents=(kind, other))
    assert [kind_of(spec, name).name for name in ("k-1", "k-2", "k-3", "k-40")] == ["k", "k", "k-3", "k"]
    for stranger in ("k", "k-0", "k-02", "k-3-1", "x-2"):
        with pytest.raises(KeyError):
            kind_of(spec, stranger)


def test_quarantined_and_waiting_workers_are_forgotten_at_once():
    machine = fleet(3)
    for incarnation in range(1, 7):
        exited(machine, "k-3", incarnation)
        if machine.state.workers["k-3"].state == "waiting":
            machine.apply(ev.TimePassed(machine.state.workers["k-3"].restart_at_s))
    assert machine.state.workers["k-3"].state == "quarantined"
    exited(machine, "k-2", 1)
    exited(machine, "k-2", 2)
    assert machine.state.workers["k-2"].state == "waiting"
    out = scale(machine, k=1)
    assert (agents(machine), killed(out), drained(out)) == (["k-1"], [], [])


def test_agents_that_share_a_worker_go_one_by_one_and_the_others_stay():
    machine = fleet(4, per_worker=4)
    submit(machine, 1, 2, 3, 4)
    assert drained(scale(machine, k=2)) == ["k-3", "k-4"]
    ended(machine, "k-3", 3)
    machine.apply(ev.AgentDrained(AT, "k-3", 1))
    assert agents(machine) == ["k-1", "k-2", "k-4"]
    assert machine.state.workers["worker-1"].agents == ["k-1", "k-2", "k-4"]
    ended(machine, "k-4", 4)
    machine.apply(ev.AgentDrained(AT, "k-4", 1))
    assert assigned(submit(machine, 5)) == []
    assert assigned(ended(machine, "k-2", 2)) == [(5, 1, "k-2")]


def test_an_agent_that_goes_from_a_living_worker_leaves_its_locks_to_others():
    machine = fleet(2, per_worker=2)
    for name in ("k-2", "k-1"):
        machine.apply(ev.LockAsked(AT, name, f"lock-of-{name}-0000", ["door"], 60.0, None, "", []))
    scale(machine, k=1)
    machine.apply(ev.AgentDrained(AT, "k-2", 1))
    assert [(lock.agent, lock.token > 0) for lock in machine.state.locks.locks.values()] == [("k-1", True)]


def test_new_agents_that_share_workers_get_workers_of_their_own():
    machine = fleet(4, per_worker=2)
    assert spawned(scale(machine, k=7)) == [("worker-3", 1), ("worker-4", 1)]
    assert machine.state.workers["worker-3"].agents == ["k-5", "k-6"]
    assert machine.state.workers["worker-4"].agents == ["k-7"]


def test_an_agent_that_drained_out_of_a_living_worker_comes_back_with_all_of_it():
    machine = fleet(2, per_worker=2)
    submit(machine, 1, 2)
    scale(machine, k=1)
    assert drained(scale(machine, k=2)) == ["k-1", "k-2"], "its process must start anew to take it in again"
    for agent, number in (("k-1", 1), ("k-2", 2)):
        ended(machine, agent, number)
        machine.apply(ev.AgentDrained(AT, agent, 1))
    assert spawned(exited(machine, "worker-1", status=0, signal=None)) == [("worker-1", 2)]
    assert agents(machine) == ["k-1", "k-2"]


def test_what_a_dead_coordinator_decided_is_carried_out_by_the_next():
    machine = fleet(2)
    scale(machine, k=3)
    out = recover(machine, [("k-1", 1), ("k-2", 1)])
    (resize,) = [e for e in out if isinstance(e, ev.FleetResized)]
    assert (resize.counts, resize.new) == ({"k": 3}, ["k-1", "k-2", "k-3"])
    assert spawned(out) == [("k-3", 2)], "whether it was forked is not known: its number is not used again"
    assert out.index(resize) < out.index(next(e for e in out if isinstance(e, ev.SpawnWorker)))


def test_scaling_in_the_middle_of_a_rolling_restart_leaves_no_loose_end():
    machine = fleet(3)
    restart(machine)
    scale(machine, k=1)
    assert machine.state.supervision.waiting == {}
    leave(machine, "k-1")
    for name in ("k-2", "k-3"):
        leave(machine, name)
    ready(machine, "k-1", 2)
    assert (agents(machine), machine.state.supervision.away) == (["k-1"], [])


def test_the_same_order_again_changes_nothing():
    machine = fleet(2)
    scale(machine, k=3)
    before = snapshot(machine.state)
    assert spawned(scale(machine, k=3)) == []
    assert snapshot(machine.state) == before


def test_a_change_of_size_survives_a_snapshot():
    machine = fleet(4)
    scale(machine, k=2)
    copy = Machine(load(snapshot(machine.state)))
    for each in (machine, copy):
        leave(each, "k-4")
    assert agents(copy) == agents(machine) == ["k-1", "k-2", "k-3"]
    assert snapshot(copy.state) == snapshot(machine.state)


@pytest.mark.parametrize(
    ("counts", "error"),
    [({}, UsageError), ({"k": 0}, UsageError), ({"k": 10_001}, UsageError), ({"j": 2}, UnknownAgentError)],
)
def test_an_order_that_makes_no_sense_is_refused(counts, error):
    with pytest.raises(error):
        scale(fleet(2), **counts)


def test_a_fleet_that_is_ending_is_not_scaled():
    machine = fleet(2)
    machine.apply(ev.StopRequested(AT, "drain", ""))
    with pytest.raises(FleetNotRunningError):
        scale(machine, k=3)
