"""The ledger: what is said about deaths, when, and until when it is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.core.names import COORDINATOR as ROOT
from muster.core.orders import WorkerExited, WorkerList
from muster.supervise.ledger import SURVIVORS_AFTER_S, Ledger


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def _exit(worker: str, pid: int, survivors: list[int] | None = None) -> WorkerExited:
    return WorkerExited(worker=worker, incarnation=1, pid=pid, exit_status=None, signal=9, survivors=survivors or [])


def test_a_death_is_told_when_nothing_unknown_is_left(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    assert ledger.died(100, None, 9, now=0.0)
    assert ledger.settle([555], now=0.1) == []
    assert ledger.exits == {}
    assert ledger.settle([], now=0.2) == [_exit("a", 100)]
    assert ledger.settle([], now=0.3) == []
    assert ledger.listing(0).exited == [_exit("a", 100)]
    ledger.acknowledged("a", 1)
    assert ledger.listing(0).exited == []


def test_a_worker_is_dying_from_its_death_to_the_proof(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    assert not ledger.is_dying("a", 1)
    ledger.died(100, None, 9, now=0.0)
    assert ledger.find("a", 1) is None
    assert ledger.is_dying("a", 1)
    assert not ledger.is_dying("a", 2)
    ledger.settle([], now=0.1)
    assert not ledger.is_dying("a", 1)


def test_a_dead_worker_has_an_owner_until_its_exit_was_acknowledged(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.died(100, None, 9, now=0.0)
    assert ledger.owner_of("a", 1) == ROOT
    assert ledger.owner_of("a", 2) is None
    ledger.settle([], now=0.1)
    assert ledger.owner_of("a", 1) == ROOT
    ledger.acknowledged("a", 1)
    assert ledger.owner_of("a", 1) is None


def test_a_stranger_is_no_worker(ledger: Ledger) -> None:
    assert not ledger.died(4711, 0, None, now=0.0)
    assert ledger.settle([], now=0.0) == []


def test_survivors_are_told_once_and_their_end_again(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.died(100, None, 9, now=0.0)
    assert ledger.settle([555, 444], now=SURVIVORS_AFTER_S - 0.01) == []
    assert ledger.settle([555, 444], now=SURVIVORS_AFTER_S) == [_exit("a", 100, [444, 555])]
    assert ledger.settle([555], now=SURVIVORS_AFTER_S + 9) == []
    assert ledger.settle([], now=SURVIVORS_AFTER_S + 10) == [_exit("a", 100)]


def test_the_end_of_survivors_is_kept_although_their_existence_was_acknowledged_late(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.settle([], now=SURVIVORS_AFTER_S + 1)
    ledger.acknowledged("a", 1)  # of the first saying
    assert list(ledger.exits.values()) == [_exit("a", 100)]
    ledger.acknowledged("a", 1)
    assert ledger.exits == {}


def test_a_new_coordinator_acknowledges_once(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.settle([], now=SURVIVORS_AFTER_S + 1)
    assert ledger.listing(1).exited == [_exit("a", 100)]  # it never heard of the survivors
    ledger.acknowledged("a", 1)
    assert ledger.exits == {}


def test_a_worker_whose_tree_is_not_proven_gone_is_still_listed_as_alive(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=0.1)
    assert [(entry.worker, entry.incarnation) for entry in ledger.listing(1).alive] == [("a", 1)]
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.acknowledged("a", 1)  # that some survive is known, that they are gone is not
    assert [(entry.worker, entry.incarnation) for entry in ledger.listing(1).alive] == [("a", 1)]
    ledger.settle([], now=SURVIVORS_AFTER_S + 1)
    assert ledger.listing(1).alive == []


def test_known_survivors_do_not_delay_the_proof_of_a_later_death(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.started("b", 1, 200, 7)
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.died(200, None, 9, now=SURVIVORS_AFTER_S + 1)
    assert ledger.settle([555, 666], now=SURVIVORS_AFTER_S + 1) == []  # 666 may be b's
    assert ledger.settle([555], now=SURVIVORS_AFTER_S + 2) == [_exit("b", 200)]


def test_a_number_used_again_is_not_excused_by_its_former_owner(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    ledger.started("b", 1, 200, 7)
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.died(200, None, 9, now=SURVIVORS_AFTER_S + 1)
    ledger.settle([666], now=SURVIVORS_AFTER_S + 1)  # 555 is gone …
    assert ledger.settle([555], now=SURVIVORS_AFTER_S + 2) == []  # … so this is another process


# --------------------------------------------------------------------------- owners


def _end(ledger: Ledger, pid: int) -> None:
    ledger.died(pid, 0, None, now=0.0)
    ledger.settle([], now=0.0)


def _names(listing: WorkerList) -> tuple[set[str], set[str]]:
    return {entry.worker for entry in listing.alive}, {entry.worker for entry in listing.exited}


def test_each_home_is_listed_what_it_spawned_and_nothing_else(ledger: Ledger) -> None:
    ledger.started("team-1", 1, 10, 7)
    ledger.started("a", 1, 100, 7, "team-1")
    ledger.started("b", 4, 200, 7, "team-1")
    ledger.started("c", 1, 300, 7, "team-2")
    _end(ledger, 200)
    assert _names(ledger.listing(0)) == ({"team-1"}, set())
    assert _names(ledger.listing(0, "team-1")) == ({"a"}, {"b"})
    assert _names(ledger.listing(0, "team-2")) == ({"c"}, set())
    ledger.acknowledged("b", 4)
    assert ledger.listing(3, "team-1") == WorkerList(
        alive=[ledger.alive[100]],
        exited=[],
        coordinator_restarts=3,
        owner="team-1",
        last={"a": 1, "b": 4},
        incarnation=1,
    )


def test_a_listing_forgets_the_earlier_sayings_of_its_owner_only(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7, "team-1")
    ledger.died(100, None, 9, now=0.0)
    ledger.settle([555], now=SURVIVORS_AFTER_S)
    ledger.settle([], now=SURVIVORS_AFTER_S + 1)
    ledger.listing(1)  # the root asks; team-1 has still heard of the survivors
    ledger.acknowledged("a", 1)
    assert _names(ledger.listing(1, "team-1")) == (set(), {"a"})


def test_an_heir_answers_for_the_living_the_dying_and_the_exits_of_a_home_given_up(ledger: Ledger) -> None:
    for number, worker in enumerate(("living", "dying", "exited"), 1):
        ledger.started(worker, 1, number, 7, "team-1")
    _end(ledger, 3)
    ledger.died(2, 0, None, now=0.0)
    ledger.reown("team-1", ROOT)
    ledger.reown("team-1", ROOT)  # asked again: nothing changes
    assert {ledger.owner_of(worker, 1) for worker in ("living", "dying", "exited")} == {ROOT}
    assert _names(ledger.listing(0, "team-1")) == ({"living", "dying"}, {"exited"})
    assert _names(ledger.listing(0)) == (set(), set())


def test_what_an_heir_inherited_goes_to_its_own_heir(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7, "team-1")
    ledger.reown("team-1", "team-2")
    ledger.reown("team-2", "team-3")
    assert ledger.owner_of("a", 1) == "team-3"
    ledger.reown("team-3", "team-1")  # in a circle: home again
    assert ledger.owner_of("a", 1) == "team-1"


def test_a_home_that_is_started_again_answers_for_its_workers_again(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7, "team-1")
    ledger.reown("team-1", ROOT)
    ledger.reown("team-1", "team-1")
    assert ledger.owner_of("a", 1) == "team-1"


def test_nobody_starts_a_worker_of_another_home(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7, "team-1")
    assert not ledger.allows("team-2", "a", 2)
    assert not ledger.allows(ROOT, "a", 2)
    _end(ledger, 100)
    ledger.acknowledged("a", 1)
    assert not ledger.allows("team-2", "a", 2)
    assert ledger.allows("team-1", "a", 2)
    assert ledger.allows("team-2", "new", 1)


def test_a_worker_of_a_home_given_up_is_started_by_anybody_once_it_is_proven_dead(ledger: Ledger) -> None:
    ledger.started("a", 5, 100, 7, "team-1")
    ledger.reown("team-1", ROOT)
    assert not ledger.allows("team-2", "a", 6)
    ledger.died(100, 0, None, now=0.0)
    assert not ledger.allows("team-2", "a", 6)  # its tree may live
    ledger.settle([], now=0.0)
    assert not ledger.allows("team-2", "a", 5)
    assert ledger.allows("team-2", "a", 6)
    ledger.started("a", 6, 101, 7, "team-2")
    assert ledger.owner_of("a", 6) == "team-2"
    assert ledger.owner_of("a", 5) == ROOT, "the exit of the earlier life is still to be acknowledged by the heir"
    assert not ledger.allows("team-3", "a", 7)
    assert _names(ledger.listing(0, "team-1")) == (set(), {"a"})
    assert ledger.listing(0, "team-1").last == {}
    assert ledger.listing(0, "team-2").last == {"a": 6}


def test_no_worker_is_started_beside_its_living_or_dying_self(ledger: Ledger) -> None:
    ledger.started("a", 1, 100, 7)
    assert not ledger.allows(ROOT, "a", 2)
    ledger.died(100, 0, None, now=0.0)
    assert not ledger.allows(ROOT, "a", 2)
    ledger.settle([], now=0.0)
    assert ledger.allows(ROOT, "a", 2)


def test_no_incarnation_is_allowed_twice(ledger: Ledger) -> None:
    ledger.started("a", 2, 100, 7)
    _end(ledger, 100)
    ledger.acknowledged("a", 2)
    assert [number for number in range(1, 5) if ledger.allows(ROOT, "a", number)] == [3, 4]
    ledger.not_started("a", 3, 71)
    assert [number for number in range(1, 5) if ledger.allows(ROOT, "a", number)] == [4]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("die"), st.integers(1, 5)),
            st.tuples(st.just("settle"), st.sets(st.integers(500, 503))),
            st.tuples(st.just("seen"), st.integers(1, 5)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_no_exit_is_ever_lost(steps: list[tuple[str, object]]) -> None:
    """Whatever happens in between: in the end every death that was not acknowledged in full is in the listing."""
    ledger = Ledger()
    for number in range(1, 6):
        ledger.started("w", number, number, 0)
    now, dead, sayings = 0.0, set(), dict.fromkeys(range(1, 6), 0)
    settled: set[int] = set()
    for verb, what in steps:
        now += 2.0
        if verb == "die" and isinstance(what, int):
            if ledger.died(what, 0, None, now):
                dead.add(what)
        elif verb == "settle" and isinstance(what, set):
            for exit_ in ledger.settle(what, now):
                sayings[exit_.incarnation] += 1
                if not exit_.survivors:
                    assert exit_.incarnation not in settled, "the proof was told twice"
                    settled.add(exit_.incarnation)
        elif verb == "seen" and isinstance(what, int) and sayings[what]:
            sayings[what] -= 1
            ledger.acknowledged("w", what)
        elif verb == "restart":
            for exit_ in ledger.listing(0).exited:
                sayings[exit_.incarnation] = 1
            for number in sayings:
                if ("w", number) not in ledger.exits:
                    sayings[number] = 0
    for exit_ in ledger.settle([], now + 1):
        sayings[exit_.incarnation] += 1
        settled.add(exit_.incarnation)
    assert settled == dead
    unseen = {number for number, count in sayings.items() if count}
    assert {number for _, number in ledger.exits} == unseen
    assert set(ledger.alive) == set(range(1, 6)) - dead
