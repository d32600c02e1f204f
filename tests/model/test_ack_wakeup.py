"""Rule B, mirrored: how a sender that waits for an ack is woken.

The sender stores `want`, executes a barrier, reads `acked_base`, and sleeps on its own bell only if that is still below. The
recipient stores `acked_base`, executes a barrier, reads `want`, and rings iff c < want <= acked_base: c is the last base for
which this very process finished this check, 0 at its start. It makes the check once at its start, before any new ack: else a
wait that only its dead predecessor's last ack fulfilled would have to live from a timer.
"""

from __future__ import annotations

from typing import Any

import pytest

from .explorer import MEMORY_MODELS, PSO, SC, TSO, Model, Process, View, bound, check, refute
from .program import BLOCKED, Program, Script, Words, atomic, choose, fence, load, store

MESSAGES = bound(4, 5)
WANTS = bound((2, 4), (1, 3, 5))


def sleep(words: Words) -> Any:
    """Sleep while the own bell is silent, then drain it."""
    if not words["bell"]:
        return BLOCKED
    words["bell"] = 0
    return None


def ring(words: Words) -> None:
    if words["open"]:
        words["bell"] = 1


def close_bell(words: Words) -> None:
    words["open"], words["bell"] = False, 0


def waiter(broken: str) -> Program:
    def program() -> Script:
        yield atomic("open the bell", lambda words: words.__setitem__("open", True))
        for want in WANTS:
            yield store("want", want)
            if broken != "no barrier in the sender":
                yield fence()
            while (yield load("acked_base")) < want:
                if broken == "drain after the look":
                    yield atomic("drain", lambda words: words.__setitem__("bell", 0))
                yield atomic("asleep", sleep)

    return program


def must_ring(broken: str, checked: int, base: int, want: int) -> bool:
    if broken == "ring when the base equals want":
        return base == want
    return checked < want <= base


def acker(broken: str) -> Program:
    def program() -> Script:
        base = yield load("acked_base")
        checked = base if broken == "c starts at the cursor's base" else 0
        fresh = broken != "no check at the start"
        while True:
            if fresh:
                if broken != "no barrier in the recipient":
                    yield fence()
                want = yield load("want")
                if must_ring(broken, checked, base, want):
                    yield atomic(f"ring for {want}", ring)
                checked, want = base, 0
            if base == MESSAGES:
                return
            fresh = True
            base += yield choose(*range(1, min(2, MESSAGES - base) + 1))  # an ack may close a hole and free two at once
            yield store("acked_base", base)

    return program


def at_rest(view: View) -> str | None:
    if view.where("waiter") == "asleep" and view.where("recipient") != "dead" and view["want"] <= view["acked_base"]:
        return f"asleep with a silent bell: wants {view['want']}, acked_base is {view['acked_base']}"
    return None


def model(broken: str = "", *, crashes: tuple[int, int] = (1, 2)) -> Model:
    """`crashes`: of the waiting sender, of the recipient."""
    wait, ack = waiter(broken), acker(broken)
    words: dict[Any, Any] = {"want": 0, "acked_base": 0, "bell": 0, "open": False}
    processes = (
        Process("waiter", wait, wait, crashes[0], cleanup=close_bell),
        Process("recipient", ack, ack, crashes[1]),
    )
    return Model(f"ack wake-up {broken}".strip(), words, processes, at_rest)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_who_waits_for_an_ack_is_woken_whatever_kills_either_side(memory: str) -> None:
    check(model(), memory, states_min=5_000)


@pytest.mark.parametrize("memory", [TSO, PSO])
@pytest.mark.parametrize("side", ["sender", "recipient"])
def test_without_a_barrier_on_either_side_the_waiter_sleeps_on(memory: str, side: str) -> None:
    refute(model(f"no barrier in the {side}", crashes=(0, 0)), memory, saying="asleep with a silent bell")
    check(model(f"no barrier in the {side}", crashes=(0, 0)), SC, states_min=100)


def test_ringing_only_when_the_base_equals_want_misses_a_base_that_jumps_over_it() -> None:
    refute(model("ring when the base equals want", crashes=(0, 0)), SC, saying="asleep with a silent bell")


def test_a_check_that_starts_at_the_cursors_base_forgets_what_the_killed_process_owed() -> None:
    refute(model("c starts at the cursor's base", crashes=(0, 1)), SC, saying="asleep with a silent bell")


def test_without_a_check_at_its_start_a_recipient_with_nothing_left_to_ack_never_rings() -> None:
    refute(model("no check at the start", crashes=(0, 1)), SC, saying="asleep with a silent bell")


def test_draining_after_the_look_loses_the_ring() -> None:
    refute(model("drain after the look", crashes=(0, 0)), SC, saying="asleep with a silent bell")
