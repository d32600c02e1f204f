"""Rule C: the window, the acked ring and the attempts ring of a recipient's cursor.

All messages are committed already. The recipient runs up to two of them at a time, in any order of finishing, and may be killed
before every step. Message `seq` owns slot `seq % W` of both rings while it is in the window.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from .explorer import MEMORY_MODELS, PSO, SC, TSO, Model, Process, View, bound, check, refute
from .program import Broken, Op, Program, Script, Words, atomic, choose, die, load, store

ATTEMPTS_MAX = 2
CONCURRENCY = 2


def deliver_note(seq: int, counted: int) -> Any:
    def note(words: Words) -> None:
        delivered = words["delivered", seq] + 1
        words["delivered", seq] = delivered
        if delivered > counted:
            raise Broken(f"{seq} is delivered the {delivered}. time, but only {counted} attempts are counted")
        if delivered > ATTEMPTS_MAX:
            raise Broken(f"{seq} is delivered more than {ATTEMPTS_MAX} times")

    return note


def finalise_note(seq: int, verdict: str) -> Any:
    def note(words: Words) -> None:
        if words["verdict", seq]:
            raise Broken(f"{seq} is finalised twice")
        words["verdict", seq] = verdict

    return note


class Rules:
    """The recipient's moves, parametrised by what is broken in them. Constant, so programs may use it freely."""

    def __init__(self, window: int, messages: int, poison: tuple[int, ...], broken: str) -> None:
        self.window, self.messages, self.poison, self.broken = window, messages, poison, broken

    def attempts(self, seq: int) -> tuple[str, int]:
        return ("attempts", seq if self.broken.endswith("attempts apart") else seq % self.window)

    def finalised(self, slot: int, seq: int) -> bool:
        return slot == seq if "compared for equality" in self.broken else slot >= seq

    def ack(self, seq: int, verdict: str) -> Generator[Op, Any, None]:
        """Store the verdict in the slot of `seq`; a dead letter is stored before that."""
        early = self.broken == "ack before the dead letter"
        if verdict == "dead" and not early:
            yield atomic(f"dead letter {seq}", lambda words: words.__setitem__("letters", words["letters"] | {seq}))
        yield store(("acked", seq % self.window), (seq, verdict), note=finalise_note(seq, verdict))
        if verdict == "dead" and early:
            yield atomic(f"dead letter {seq}", lambda words: words.__setitem__("letters", words["letters"] | {seq}))

    def advance(self, base: int) -> Generator[Op, Any, int]:
        """Move `acked_base` over everything that is finalised; returns the new base."""
        moved = base
        while moved < self.messages:
            slot = yield load(("acked", (moved + 1) % self.window))
            if not self.finalised(slot[0], moved + 1):
                break
            moved += 1
        if moved > base:
            yield store("acked_base", moved)
        return moved

    def deliver(self, seq: int) -> Generator[Op, Any, bool]:
        """Count the attempt, then hand the message over; or dead-letter it. Returns whether it is in flight."""
        number, count = yield load(self.attempts(seq))
        if number != seq:
            count = 0
        if count >= ATTEMPTS_MAX:
            yield from self.ack(seq, "dead")
            return False
        if self.broken == "attempt counted after delivery":
            yield atomic(f"deliver {seq}", deliver_note(seq, count + 1))
        yield store(self.attempts(seq), (seq, count + 1))
        if self.broken != "attempt counted after delivery":
            yield atomic(f"deliver {seq}", deliver_note(seq, count + 1))
        return True

    def unfinished(self, base: int, taken: int) -> Generator[Op, Any, tuple[int, ...]]:
        """What was in flight when the last process ended."""
        left: tuple[int, ...] = ()
        seq = base + 1
        while seq <= taken:
            slot = yield load(("acked", seq % self.window))
            if not self.finalised(slot[0], seq):
                left = (*left, seq)
            seq += 1
        return left

    def recipient(self) -> Script:
        base = yield load("acked_base")
        taken = yield load("taken")
        base = yield from self.advance(base)
        again = yield from self.unfinished(base, taken)
        flying: tuple[int, ...] = ()
        above: tuple[int, ...] = ()  # finalised here, not yet below `acked_base`, which may follow as late as it likes
        while base < self.messages:
            what, seq = yield choose(*self.moves(base, taken, flying, again, above))
            if what == "advance":
                base = yield from self.advance(base)
                above = tuple(other for other in above if other > base)
                continue
            if what == "die":
                yield die()
            if what == "take":
                taken = seq
                yield store("taken", taken)
            if what != "ack" and (yield from self.deliver(seq)):
                flying = (*flying, seq)
                if self.broken == "no care after a crash":
                    again = without(again, seq)
            else:
                if what == "ack":
                    yield from self.ack(seq, "done")
                flying, again, above = without(flying, seq), without(again, seq), (*above, seq)

    def moves(
        self, base: int, taken: int, flying: tuple[int, ...], again: tuple[int, ...], above: tuple[int, ...]
    ) -> tuple[tuple[str, int], ...]:
        """What the recipient may do next: end a delivery, begin one, take a new message, move its base."""
        moves = tuple(("die" if seq in self.poison else "ack", seq) for seq in flying)
        careful = bool(again) and self.broken != "no care after a crash"
        room = len(flying) < (1 if careful else CONCURRENCY)
        in_window = taken < base + self.window or self.broken.startswith("window not enforced")
        if room and again:
            moves = (*moves, ("deliver", again[0]))
        elif room and taken < self.messages and in_window:
            moves = (*moves, ("take", taken + 1))
        return (*moves, ("advance", base + 1)) if base + 1 in above else moves


def without(seqs: tuple[int, ...], seq: int) -> tuple[int, ...]:
    return tuple(other for other in seqs if other != seq)


def peer(rules: Rules, seq: int) -> Program:
    """Asks once for the state of message `seq`, as a receipt does, from the ring alone."""

    def claim(words: Words, said: str) -> None:
        if words["verdict", seq] == "":
            raise Broken(f"the receipt of {seq} says {said}, but it is not finalised")
        if said not in ("unknown", words["verdict", seq]):
            raise Broken(f"the receipt of {seq} says {said}, the truth is {words['verdict', seq]}")

    def program() -> Script:
        number, verdict = yield load(("acked", seq % rules.window))
        if number > seq and rules.broken != "an overwritten slot means done":
            verdict = "unknown"
        if number >= seq:
            yield atomic(f"receipt says {verdict}", lambda words: claim(words, verdict))
        elif (yield load("acked_base")) >= seq:
            yield atomic("receipt says unknown", lambda words: claim(words, "unknown"))

    return program


def model(
    broken: str = "",
    *,
    window: int = 2,
    messages: int = 3,
    poison: tuple[int, ...] = (),
    crashes: int = 2,
    asks: int = 0,
) -> Model:
    """`asks`: a peer asks for the receipt of this message."""
    rules = Rules(window, messages, poison, broken)

    def at_rest(view: View) -> str | None:
        if view.where("recipient") == "dead":
            return None  # its restart goes on
        for seq in range(1, messages + 1):
            verdict = view["verdict", seq]
            if not verdict:
                return f"{seq} is skipped: never finalised"
            if verdict == "dead" and seq not in view["letters"]:
                return f"{seq} is dead, but its letter is lost"
            if poison and not crashes and verdict != ("dead" if seq in poison else "done"):
                return f"{seq} ended as {verdict}; poison is {poison}"
        return None if view["acked_base"] == messages else f"acked_base stays at {view['acked_base']}"

    words: dict[Any, Any] = {"taken": 0, "acked_base": 0, "letters": frozenset()}
    words |= {(ring, slot): (0, 0) for ring in ("acked", "attempts") for slot in range(messages + 1)}
    words |= {("verdict", seq): "" for seq in range(1, messages + 1)}
    words |= {("delivered", seq): 0 for seq in range(1, messages + 1)}
    processes = [Process("recipient", rules.recipient, rules.recipient, crashes)]
    if asks:
        processes.append(Process("peer", peer(rules, asks)))
    return Model(f"cursor {broken}".strip(), words, tuple(processes), at_rest)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
@pytest.mark.parametrize("window", [1, 2, 3])
def test_every_message_is_finalised_once_none_skipped_and_attempts_move_first(memory: str, window: int) -> None:
    short = {SC: (4, 3), TSO: (3, 2), PSO: (2, 2)}  # one process alone: memory models matter little here, and cost much
    long = {SC: (6, 3), TSO: (4, 3), PSO: (3, 2)}
    messages, crashes = bound(short, long)[memory]
    check(model(window=window, messages=messages, crashes=crashes), memory, states_min=1_500)


@pytest.mark.parametrize("poison", [(2,), (1, 3), (1, 2)])
def test_poison_is_dead_lettered_and_its_neighbours_are_unharmed(poison: tuple[int, ...]) -> None:
    check(model(window=3, messages=4, poison=poison, crashes=0), TSO, states_min=2_000)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_a_receipt_never_says_more_than_is_true(memory: str) -> None:
    window = bound(1 if memory == PSO else 2, 2)
    check(model(window=window, messages=window + 1, poison=(1,), crashes=1, asks=1), memory, states_min=2_000)


def test_without_the_window_a_later_ack_hides_an_unhandled_message() -> None:
    refute(model("window not enforced", crashes=1), SC, saying="1 is skipped")


def test_without_the_window_a_message_is_handled_and_finalised_twice() -> None:
    broken = "window not enforced, slot compared for equality, attempts apart"
    refute(replace(model(broken, crashes=1), at_rest=None), SC, saying="1 is finalised twice")


def test_an_attempt_counted_after_delivery_is_not_counted_when_the_delivery_kills() -> None:
    refute(model("attempt counted after delivery", crashes=1), SC, saying="only 1 attempts are counted")


def test_an_ack_before_the_dead_letter_loses_the_letter() -> None:
    refute(model("ack before the dead letter", crashes=3), SC, saying="its letter is lost")


def test_running_everything_at_once_after_a_crash_kills_the_poisons_neighbours() -> None:
    refute(model("no care after a crash", window=3, messages=3, poison=(2,), crashes=0), SC, saying="ended as dead")


def test_an_overwritten_slot_is_no_proof_that_the_message_was_handled() -> None:
    refute(model("an overwritten slot means done", poison=(1,), crashes=0, asks=1), SC, saying="the truth is dead")
