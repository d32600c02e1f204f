"""The explorer itself, on litmus tests whose answers are known from the literature on memory models."""

from __future__ import annotations

import pytest

from . import test_bell, test_cursor, test_roll
from .explorer import MEMORY_MODELS, PSO, SC, TSO, Explorer, Model, Process, View, check, refute
from .program import (
    Broken,
    Interrupted,
    Program,
    Script,
    atomic,
    await_word,
    choose,
    die,
    fence,
    load,
    store,
)


def store_buffering(*, barrier: bool) -> Model:
    """SB: each of two processes stores its word, then reads the other's. Can both read 0?"""

    def one(mine: str, other: str) -> Program:
        def program() -> Script:
            yield store(mine, 1)
            if barrier:
                yield fence()
            seen = yield load(other)
            yield store(f"{mine} saw", seen)

        return program

    def at_rest(view: View) -> str | None:
        return "both read 0" if view["x saw"] == view["y saw"] == 0 else None

    return Model(
        f"store buffering, barrier={barrier}",
        {"x": 0, "y": 0, "x saw": None, "y saw": None},
        (Process("first", one("x", "y")), Process("second", one("y", "x"))),
        at_rest,
    )


def message_passing(*, barrier: bool, crashes: int = 0) -> Model:
    """MP: one process stores a body, then a flag; can the other see the flag without the body?"""

    def writer() -> Script:
        yield store("body", 1)
        if barrier:
            yield fence()
        yield store("flag", 1)

    def reader() -> Script:
        yield await_word("flag", lambda flag: flag == 1)
        body = yield load("body")
        if body != 1:
            raise Broken("flag without body")

    return Model(
        f"message passing, barrier={barrier}",
        {"body": 0, "flag": 0},
        (Process("writer", writer, crashes=crashes), Process("reader", reader)),
    )


def test_sequential_consistency_never_lets_both_read_zero() -> None:
    check(store_buffering(barrier=False), SC, states_min=20)


@pytest.mark.parametrize("memory", [TSO, PSO])
def test_a_store_buffer_lets_both_read_zero_and_a_barrier_forbids_it(memory: str) -> None:
    refute(store_buffering(barrier=False), memory, saying="both read 0")
    check(store_buffering(barrier=True), memory, states_min=30)


def test_only_pso_lets_a_flag_overtake_its_body() -> None:
    check(message_passing(barrier=False), SC, states_min=5)
    check(message_passing(barrier=False), TSO, states_min=8)
    check(message_passing(barrier=True), PSO, states_min=8)
    found = refute(message_passing(barrier=False), PSO, saying="flag without body")
    assert len(found.trace) == 5, str(found)  # two stores, the flush of the flag, two reads: nothing shorter exists


def test_a_killed_writers_stores_become_visible_in_every_order_of_the_memory_model() -> None:
    check(message_passing(barrier=False, crashes=1), TSO, states_min=10)
    found = refute(message_passing(barrier=False, crashes=1), PSO, saying="flag without body")
    assert found.trace, str(found)

    def at_rest(view: View) -> str | None:
        return "a store was lost" if view.where("writer") == "dead" and view["x"] != view["y"] else None

    def writer() -> Script:
        yield store("x", 1)
        yield store("y", 1)
        yield die()

    check(Model("stores of the dead", {"x": 0, "y": 0}, (Process("writer", writer),), at_rest), PSO, states_min=5)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_a_restart_sees_the_dead_ones_stores_and_finds_its_lock_free(memory: str) -> None:
    def first() -> Script:
        yield atomic("lock", lambda words: words.__setitem__("lock", "first"))
        yield store("x", 1)
        yield store("y", 1)
        yield die()

    def second() -> Script:
        if (yield load("lock")) is not None:
            raise Broken("the lock outlived its owner")
        if (yield load("y")) != 1:
            raise Broken("started before the stores were visible")
        yield store("y", 2)

    def at_rest(view: View) -> str | None:
        restarted = view.where("one") == "done"
        return "the restart did not happen last" if restarted and (view["x"], view["y"]) != (1, 2) else None

    process = Process("one", first, second, cleanup=lambda words: words.__setitem__("lock", None))
    check(Model("restart", {"x": 0, "y": 0, "lock": None}, (process,), at_rest), memory, states_min=8)


def idle() -> Script:
    """A process that does one invisible thing."""
    yield choose(0)


def test_an_interrupt_skips_the_step_and_keeps_the_variables() -> None:
    def program() -> Script:
        kept = 7
        try:
            yield store("x", 1)
        except Interrupted:
            yield store("kept", kept)

    def at_rest(view: View) -> str | None:
        return None if (view["x"], view["kept"]) in {(1, 0), (0, 7)} else "neither stored nor kept"

    model = Model("interrupt", {"x": 0, "kept": 0}, (Process("one", program, interrupts=1),), at_rest)
    assert check(model, SC, states_min=4).steps == 3


def test_a_process_that_waits_for_ever_is_seen_at_rest_and_a_timer_fires_only_then() -> None:
    def waiter() -> Script:
        yield await_word("x", lambda x: x == 1, "waiting")

    def timer() -> Script:
        yield atomic("timer", lambda words: words.__setitem__("x", 1), when_idle=True)

    def at_rest(view: View) -> str | None:
        return "stuck" if view.where("waiter") == "waiting" else None

    refute(Model("waits", {"x": 0}, (Process("waiter", waiter),), at_rest), SC, saying="stuck")
    both = (Process("waiter", waiter), Process("timer", timer), Process("busy", idle))
    found = check(Model("waits with a timer", {"x": 0}, both, at_rest), SC, states_min=4)
    assert found.states == found.steps + 1, str(found)  # one path only: the timer comes last


SMALL = {
    "store buffering": store_buffering(barrier=False),
    "message passing": message_passing(barrier=False, crashes=1),
    "bell": test_bell.model(sends=((1, 1),), crashes=(1, 0)),
    "bell, broken": test_bell.model("no barrier in the recipient", crashes=(0, 0)),
    "cursor": test_cursor.model(window=1, messages=2, crashes=1),
    "roll, broken": test_roll.model("rename before the seal", interrupts=0),
}


@pytest.mark.parametrize("memory", [SC, TSO])
@pytest.mark.parametrize("name", SMALL)
def test_merging_equal_local_states_changes_no_verdict(name: str, memory: str) -> None:
    merged = Explorer(SMALL[name], memory).explore()
    unmerged = Explorer(SMALL[name], memory, merge=False).explore()
    print(f"{merged.states} states merged, {unmerged.states} unmerged")
    assert (merged.complaint is None, len(merged.trace)) == (unmerged.complaint is None, len(unmerged.trace))
    assert merged.states <= unmerged.states


def test_a_variable_that_is_no_plain_value_is_refused() -> None:
    def program() -> Script:
        seen: list[int] = []
        yield store("x", 1)
        seen.append(1)

    with pytest.raises(TypeError, match="no plain value"):
        check(Model("list", {"x": 0}, (Process("one", program),)), SC, states_min=1)


def test_an_atomic_step_on_a_word_in_the_own_buffer_is_refused() -> None:
    def program() -> Script:
        yield store("x", 1)
        yield await_word("x", lambda x: x == 1)

    with pytest.raises(RuntimeError, match="stored and not flushed"):
        check(Model("own buffer", {"x": 0}, (Process("one", program),)), TSO, states_min=1)
