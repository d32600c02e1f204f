"""Locks in the machine: one line, tokens, deadlocks, time, proofs of death."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_machine_tasks import fleet

from muster.coordinator import events as ev
from muster.coordinator.asks import Ask, refusal
from muster.coordinator.lives import LIVE
from muster.coordinator.locks.asks import RULES
from muster.coordinator.locks.facts import SECOND_LOOK_S
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core import limits
from muster.core.globs import conflict
from muster.core.protocol import Done, LockAcquire, LockListAsk, LockRelease, LockRenew
from muster.errors import MusterError


class Fleet:
    """A machine, and what it told those who ask."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or fleet(3)
        self.told: dict[str, Done] = {}
        self.effects: list[ev.Effect] = []
        self.asks = 0

    def apply(self, fact: ev.AnyFact) -> None:
        self.effects = self.machine.apply(fact)
        for effect in self.effects:
            if isinstance(effect, ev.Post) and effect.answers:
                assert isinstance(effect.body, Done)
                self.told[effect.answers] = effect.body

    def ask(self, agent: str, body: Any) -> Done | None:
        """As the shell does it; None: a later fact answers, see `told`, under the number of this ask."""
        self.asks += 1
        state = self.machine.state
        try:
            answer = RULES[type(body)].judge(state, body, Ask(agent, str(self.asks), state.now_s))
        except MusterError as error:
            return refusal(error)
        for fact in answer.facts:
            self.apply(fact)
        reply = answer.reply(self.machine.state)
        assert reply is None or isinstance(reply, Done)
        return reply

    def lock(self, agent: str, lock_id: str, *names: str, **more: Any) -> Done | None:
        more = {"ttl_s": 10.0, "wait_s": None, "patient": True, **more}
        return self.ask(agent, LockAcquire(lock_id=lock_id.ljust(16, "."), names=list(names), **more))

    def release(self, agent: str, lock_id: str) -> None:
        self.ask(agent, LockRelease(lock_id=lock_id.ljust(16, ".")))

    def renew(self, agent: str, lock_id: str) -> Done:
        reply = self.ask(agent, LockRenew(lock_id=lock_id.ljust(16, ".")))
        assert reply is not None
        return reply

    def held(self) -> list[str]:
        return [lock.lock_id.rstrip(".") for lock in self.machine.state.locks.locks.values() if lock.token]

    def wait(self, seconds: float) -> None:
        """Time passes as the shell lets it: only at moments that the machine named."""
        end_s = self.machine.state.now_s + seconds
        while (due_s := self.machine.due_s()) is not None and due_s <= end_s:
            self.apply(ev.TimePassed(due_s))
        self.machine.state.now_s = end_s


def token(reply: Done | None) -> int:
    assert reply is not None, "nothing was answered"
    assert reply.ok, reply.message
    number: int = reply.facts["token"]
    return number


def test_all_names_of_a_lock_are_had_at_once_or_none_is() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "one", "a")
    assert fleet.lock("w-2", "both", "a", "b") is None
    assert fleet.held() == ["one"]
    late = fleet.lock("w-3", "late", "b", wait_s=0.0)
    assert late is not None
    assert late.message == "'b' is wanted by w-2, who came first"
    fleet.release("w-1", "one")
    assert fleet.held() == ["both"]


def test_a_glob_that_waits_is_not_starved_by_names_that_come_later() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "name", "src/a.py")
    assert fleet.lock("w-2", "tree", "src/**") is None
    assert fleet.lock("w-3", "other", "src/b.py") is None, "it conflicts with the glob that came first"
    assert token(fleet.lock("w-3", "far", "docs/b.md")) == 2
    fleet.release("w-1", "name")
    assert fleet.held() == ["tree", "far"]
    fleet.release("w-2", "tree")
    assert fleet.held() == ["other", "far"]


def test_tokens_grow_from_lock_to_lock_also_over_a_snapshot() -> None:
    fleet = Fleet()
    tokens = []
    for _ in range(3):
        tokens.append(token(fleet.lock("w-1", "x", "n")))
        fleet.release("w-1", "x")
        fleet = Fleet(Machine(load(snapshot(fleet.machine.state))))
    assert tokens == [1, 2, 3]


def test_asking_again_changes_nothing_and_is_told_the_same() -> None:
    fleet = Fleet()
    first = fleet.lock("w-1", "x", "n", patient=False)
    assert fleet.lock("w-1", "x", "n", patient=False) == first
    assert token(fleet.lock("w-1", "x", "n")) == token(first)
    waiting = fleet.lock("w-2", "y", "n", patient=False)
    assert waiting is not None
    assert (waiting.facts["state"], waiting.facts["holder"]) == ("waiting", "w-1")
    assert fleet.lock("w-2", "y", "n") is None
    patient = str(fleet.asks)
    fleet.release("w-1", "x")
    assert token(fleet.told[patient]) == 2


def test_nobody_can_renew_or_release_what_another_holds() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.release("w-2", "x")
    assert fleet.held() == ["x"]
    assert fleet.renew("w-2", "x").code == "lock.lost"
    other = fleet.lock("w-2", "x", "n")
    assert other is not None
    assert other.code == "lock.lost", "an id belongs to who used it first"


def test_a_lease_that_is_not_renewed_ends_and_the_next_in_line_has_it() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-2", "y", "n")
    fleet.wait(9.9)
    assert token(fleet.renew("w-1", "x")) == 1
    fleet.wait(9.9)
    assert fleet.held() == ["x"]
    fleet.wait(0.1 + SECOND_LOOK_S)
    assert fleet.held() == ["y"]
    assert fleet.renew("w-1", "x").code == "lock.lost"


def test_a_renewal_that_is_read_between_the_two_looks_saves_the_lease() -> None:
    """The coordinator was stopped for long: the timer is due before what was stored meanwhile has been read."""
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-2", "y", "n")
    fleet.apply(ev.TimePassed(fleet.machine.state.now_s + 3600))
    fleet.renew("w-1", "x")
    fleet.wait(9.9)
    assert fleet.held() == ["x"]
    fleet.wait(1.0)
    assert fleet.held() == ["y"]


def test_a_jump_of_the_clock_over_a_restart_ends_no_lease() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-2", "y", "n", wait_s=5.0)
    later = fleet.machine.state.now_s + 3600
    fleet.apply(ev.Recovered(later, [(f"w-{n}", 1, 100 + n, 1) for n in (1, 2, 3)], [], 1))
    fleet.wait(4.9)
    assert fleet.held() == ["x"]
    assert len(fleet.machine.state.locks) == 2, "who waits has the whole time again"
    fleet.wait(0.2)
    assert len(fleet.machine.state.locks) == 1
    fleet.wait(5.5)
    assert fleet.held() == []


def test_a_grant_that_may_not_have_been_told_is_told_again_by_the_next_coordinator() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-2", "y", "n")
    patient = str(fleet.asks)
    fleet.release("w-1", "x")
    fleet.told.clear()
    alive = [(f"w-{n}", 1, 100 + n, 1) for n in (1, 2, 3)]
    fleet.apply(ev.Recovered(fleet.machine.state.now_s, alive, [], 1))
    assert token(fleet.told.pop(patient)) == 2
    fleet.renew("w-2", "y")
    fleet.apply(ev.Recovered(fleet.machine.state.now_s, alive, [], 2))
    assert fleet.told == {}, "who has renewed knows it"


def test_waiting_ends_with_a_sentence_when_its_time_is_over() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "a", "b", ttl_s=60.0)
    assert fleet.lock("w-2", "y", "b", wait_s=3.0) is None
    patient = str(fleet.asks)
    fleet.wait(3.1)
    told = fleet.told[patient]
    assert told.code == "lock.timeout"
    assert told.message == "not free within 3 s: 'b' is held by w-1, for 3 s"
    assert len(fleet.machine.state.locks) == 1


def test_the_exit_of_its_worker_frees_an_agents_locks_and_those_it_waits_for() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-1", "z", "n")
    fleet.lock("w-2", "y", "n")
    fleet.apply(ev.WorkerExited(fleet.machine.state.now_s, "w-1", 1, None, 9, 2))
    assert fleet.held() == ["x"], "two processes of its tree live: it is not proven dead"
    fleet.apply(ev.HoldersGone(fleet.machine.state.now_s, [(0, 0)]))
    assert fleet.held() == ["x"]
    fleet.apply(ev.WorkerExited(fleet.machine.state.now_s, "w-1", 1, None, 9))
    assert fleet.held() == ["y"]
    assert len(fleet.machine.state.locks) == 1


def test_a_process_of_its_own_is_watched_and_its_proven_death_frees_its_locks() -> None:
    fleet = Fleet()
    fleet.lock("alice", "x", "n", pid=7, start_time=70, namespace=1)
    assert ev.WatchHolder(7, 70, 1) in fleet.effects
    fleet.lock("bob", "y", "n", pid=8, start_time=80, namespace=1)
    fleet.apply(ev.HoldersGone(fleet.machine.state.now_s, [(7, 71)]))
    assert fleet.held() == ["x"], "another process with the same number is another process"
    fleet.apply(ev.HoldersGone(fleet.machine.state.now_s, [(7, 70)]))
    assert fleet.held() == ["y"]


def test_locks_of_the_living_survive_the_next_life_of_a_store() -> None:
    fleet = Fleet()
    fleet.lock("alice", "x", "n", pid=7, start_time=70, namespace=1)
    fleet.lock("w-1", "w", "m")
    machine = Fleet(Machine(load(snapshot(fleet.machine.state))))
    machine.apply(ev.FleetStarted(machine.machine.state.now_s + 9999, machine.machine.state.plan))
    assert machine.held() == ["x"], "w-1 is proven dead, alice is not"
    machine.wait(11)
    assert machine.held() == []


@pytest.mark.parametrize("wait_s", [None, 60.0])
def test_the_request_that_would_close_a_circle_is_refused_and_names_it(wait_s: float | None) -> None:
    fleet = Fleet()
    fleet.lock("w-1", "a", "A")
    fleet.lock("w-2", "b", "B")
    fleet.lock("w-3", "c", "C")
    ids = {name: name.ljust(16, ".") for name in "abc"}
    assert fleet.lock("w-1", "a2", "B", within=[ids["a"]], wait_s=wait_s) is None
    assert fleet.lock("w-2", "b2", "C", within=[ids["b"]], wait_s=wait_s) is None
    told = fleet.lock("w-3", "c2", "A", within=[ids["c"]], wait_s=wait_s)
    assert told is not None
    assert told.code == "lock.deadlock"
    for word in ("'A' (held by w-1)", "'B' (wanted by w-1)", "'C' (wanted by w-2)"):
        assert word in told.message, told.message
    fleet.release("w-3", "c")
    assert fleet.held() == ["a", "b", "b2"]


def test_who_waits_for_what_it_holds_itself_is_refused() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "a", "src/**")
    told = fleet.lock("w-1", "a2", "src/x", within=["a".ljust(16, ".")])
    assert told is not None
    assert told.code == "lock.deadlock"
    assert "itself" in told.message


def test_two_tasks_of_one_agent_wait_for_each_other_in_peace() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "a", "n")
    assert fleet.lock("w-1", "b", "n") is None
    fleet.release("w-1", "a")
    assert fleet.held() == ["b"]


@pytest.mark.parametrize(
    "more",
    [
        {"ttl_s": 0.5}, {"ttl_s": float("nan")}, {"ttl_s": 1e9}, {"wait_s": -1.0}, {"wait_s": float("nan")}, {"names": []},
        {"names": ["a/../b"]}, {"names": ["["]}, {"names": [f"n{n}" for n in range(limits.LOCK_NAMES_MAX + 1)]}, {"lock_id": "short"},
    ],
)  # fmt: skip
def test_what_cannot_be_locked_is_refused_in_a_sentence_and_changes_nothing(more: dict[str, Any]) -> None:
    fleet = Fleet()
    told = fleet.ask("w-1", LockAcquire(**{"lock_id": "x" * 16, "names": ["n"], "ttl_s": 10.0, **more}))
    assert told is not None
    assert told.code == "usage"
    assert len(fleet.machine.state.locks) == 0


def test_an_agent_has_a_bounded_number_of_locks() -> None:
    fleet = Fleet()
    for n in range(limits.LOCKS_PER_AGENT_MAX):
        token(fleet.lock("w-1", f"x{n}", f"n{n}"))
    told = fleet.lock("w-1", "more", "more")
    assert told is not None
    assert told.code == "lock.table_full"
    token(fleet.lock("w-2", "other", "other"))
    token(fleet.lock("w-1", "x0", "n0"))


def test_an_agent_has_a_bounded_number_of_globs() -> None:
    fleet = Fleet()
    globs = [f"n{n}/*" for n in range(limits.LOCK_GLOBS_PER_AGENT_MAX)]
    for at in range(0, len(globs), limits.LOCK_NAMES_MAX):
        token(fleet.lock("w-1", f"x{at}", *globs[at : at + limits.LOCK_NAMES_MAX]))
    told = fleet.lock("w-1", "more", "more/*")
    assert told is not None
    assert told.code == "lock.table_full"
    token(fleet.lock("w-1", "plain", "plain"))
    token(fleet.lock("w-2", "other", "other/*"))


def test_the_list_says_who_holds_and_who_waits_for_whom() -> None:
    fleet = Fleet()
    fleet.lock("w-1", "x", "n")
    fleet.lock("w-2", "y", "n", wait_s=30.0)
    fleet.machine.state.now_s += 2
    told = fleet.ask("operator", LockListAsk())
    assert told is not None
    rows = [
        (row["agent"], row["state"], row["token"], row["since_s"], row["left_s"], row["waits_for"])
        for row in told.facts["locks"]
    ]
    assert rows == [("w-1", "held", 1, 2.0, 8.0, None), ("w-2", "waiting", None, 2.0, 28.0, "w-1")]


# --------------------------------------------------------------------------- any order of anything

NAMES = ["a", "b", "src/x", "src/y", "src/*", "src/**", "?", "[ab]"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["lock", "lock", "lock", "nested", "nested", "try", "release", "die", "restart"]),
        st.sampled_from(["w-1", "w-2", "w-3", "alice"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        st.integers(0, 3),
    ),
    max_size=25,
)


class Model:
    """What should be so, in the plainest words: a list in order of arrival, and who is blocked by whom."""

    def __init__(self) -> None:
        self.line: list[tuple[str, str, list[str], list[str]]] = []  # id, agent, names, within

    def blocked(self, at: int) -> list[str]:
        names = self.line[at][2]
        return [
            lock_id
            for lock_id, _, others, _ in self.line[:at]
            if any(conflict(one, other) for one in names for other in others)
        ]

    def held(self) -> list[str]:
        return [entry[0] for at, entry in enumerate(self.line) if not self.blocked(at)]

    def ends(self) -> bool:
        """Whether all get their turn if everybody lets go as soon as nothing that it waits for is left."""
        left = Model()
        left.line = list(self.line)
        while left.line:
            held = left.held()
            waited_within = {inner for entry in left.line if entry[0] not in held for inner in entry[3]}
            done = [lock_id for lock_id in held if lock_id not in waited_within]
            if not done:
                return False
            left.line = [entry for entry in left.line if entry[0] not in done]
        return True


@settings(max_examples=300, deadline=None)
@given(steps)
def test_whatever_happens_locks_are_held_by_the_first_in_line_and_nobody_waits_for_ever(steps: list[Any]) -> None:
    fleet, model, last_token = Fleet(), Model(), 0
    for number, (what, agent, names, pick) in enumerate(steps):
        lock_id = f"lock-{number}".ljust(16, ".")
        mine = [entry for entry in model.line if entry[1] == agent and entry[0] in model.held()]
        if what in ("lock", "nested", "try"):
            within = [mine[pick % len(mine)][0]] if what == "nested" and mine else []
            wait_s = 0.0 if what == "try" else None
            told = fleet.lock(agent, lock_id, *names, within=within, wait_s=wait_s, pid=len(agent), start_time=5)
            model.line.append((lock_id, agent, names, within))
            if what == "try" and model.blocked(len(model.line) - 1):
                assert told is not None
                assert told.code == "lock.held"
                model.line.pop()
            elif not model.ends():
                assert told is not None
                assert told.code == "lock.deadlock"
                model.line.pop()
            elif not model.blocked(len(model.line) - 1):
                assert token(told) > last_token
            else:
                assert told is None
        elif what == "release" and mine:
            gone = mine[pick % len(mine)][0]
            fleet.release(agent, gone)
            model.line = [entry for entry in model.line if entry[0] != gone]
        elif what == "die":
            dead = [agent]
            worker = fleet.machine.state.workers.get(agent)
            if worker is not None and worker.state in LIVE:
                fleet.apply(ev.WorkerExited(fleet.machine.state.now_s, agent, worker.incarnation, None, 9))
            else:  # whoever spoke for it was a process of its own; those of w-1, w-2 and w-3 are one
                fleet.apply(ev.HoldersGone(fleet.machine.state.now_s, [(len(agent), 5)]))
                dead = [agent] if agent == "alice" else ["w-1", "w-2", "w-3"]
            model.line = [entry for entry in model.line if entry[1] not in dead]
        elif what == "restart":
            fleet.machine = Machine(load(snapshot(fleet.machine.state)))
        table = fleet.machine.state.locks
        assert [lock.lock_id for lock in table.locks.values() if lock.token] == model.held()
        assert [lock.lock_id for lock in table.locks.values()] == [entry[0] for entry in model.line]
        tokens = [lock.token for lock in table.locks.values() if lock.token]
        assert len(set(tokens)) == len(tokens)
        last_token = max([last_token, *tokens])
