"""Rule R: a read of eight bytes is not one load, and a read of a frame has no order.

A word that a peer reads is stored in one piece, but copied out in two halves, high and low, in either order, each at its own
moment. A frame is copied out word by word, in either order.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .explorer import MEMORY_MODELS, SC, Model, Process, View, bound, check, refute
from .program import Broken, Op, Program, Script, Words, atomic, await_word, choose, fence, load, store

HALF = 2  # a half of the word holds one binary digit, so that every second step of the base changes both
BASE_MAX = bound(5, 9)
READS = bound(2, 3)


def recipient() -> Script:
    """Acks one message after the other."""
    base = 0
    while base < BASE_MAX:
        base += 1
        yield store("acked_base", base)


def torn_read() -> Generator[Op, Any, tuple[int, int]]:
    """What one pread of `acked_base` gives: the value of its two halves, and its check."""
    order = yield choose("high first", "low first")
    one = yield load("acked_base")
    other = yield load("acked_base")
    check_of = yield load("acked_base")
    high, low = (one, other) if order == "high first" else (other, one)
    return high // HALF * HALF + low % HALF, check_of


def believe(base: int) -> Op:
    """The sender unlinks what lies below `base`: the words of the model know whether that is finalised."""

    def act(words: Words) -> None:
        if base > words["acked_base"]:
            raise Broken(f"believes that {base} is acked, the base is {words['acked_base']}")

    return atomic(f"unlink up to {base}", act)


def reclaimer(checked: bool, twice: bool) -> Program:
    def valid_read() -> Generator[Op, Any, int]:
        while True:
            base, check_of = yield from torn_read()
            if base == check_of or not checked:
                return int(base)

    def program() -> Script:
        done = 0
        while done < READS:
            base = yield from valid_read()
            if not twice or base == (yield from valid_read()):
                yield believe(base)
            done, base = done + 1, 0

    return program


def torn_words(*, checked: bool, twice: bool) -> Model:
    processes = (Process("recipient", recipient), Process("sender", reclaimer(checked, twice)))
    return Model(f"torn words, checked={checked}, twice={twice}", {"acked_base": 0}, processes)


FRAMES = 2
IDENTICAL_READS = 3


def writer() -> Script:
    for seq in range(1, FRAMES + 1):
        yield store(("body", seq), f"body {seq}")
        yield fence()
        yield store(("commit", seq), seq)


def damager() -> Script:
    """Real damage: the body of a committed frame changes."""
    yield await_word(("commit", 1), bool)
    yield store(("body", 1), "garbage")


def batch_reader(patience: int) -> Program:
    """Reads frame and commit word in one read; a frame is damaged after `patience` identical reads that fail the check."""

    def read(seq: int) -> Generator[Op, Any, tuple[int, Any]]:
        first = yield choose("commit", "body")
        one = yield load((first, seq))
        other = yield load(("body" if first == "commit" else "commit", seq))
        return (one, other) if first == "commit" else (other, one)

    def program() -> Script:
        seq = 1
        while seq <= FRAMES:
            last: Any = None
            same = 0
            while same < patience:
                commit, body = yield from read(seq)
                if not commit:
                    yield await_word(("commit", seq), bool)
                    continue
                if body == f"body {seq}":
                    break
                same = same + 1 if (commit, body) == last else 1
                last = (commit, body)
            last, commit, body, verdict, same = None, 0, 0, "read" if same < patience else "damaged", 0
            yield atomic(f"{verdict} {seq}", lambda words: words.__setitem__("seen", (*words["seen"], (seq, verdict))))
            seq, verdict = seq + 1, ""

    return program


def frames(*, patience: int, damaged: bool) -> Model:
    def at_rest(view: View) -> str | None:
        if tuple(seq for seq, _ in view["seen"]) != tuple(range(1, FRAMES + 1)):
            return f"stuck or skipped: {view['seen']}"
        wrong = [seq for seq, verdict in view["seen"] if verdict == "damaged" and not (damaged and seq == 1)]
        return f"a good frame was called damaged: {wrong}" if wrong else None

    words: dict[Any, Any] = {"seen": ()}
    words |= {(part, seq): 0 for part in ("commit", "body") for seq in range(1, FRAMES + 1)}
    processes = [Process("writer", writer), Process("reader", batch_reader(patience))]
    if damaged:
        processes.append(Process("damage", damager))
    return Model(f"frames, patience={patience}, damaged={damaged}", words, tuple(processes), at_rest)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
@pytest.mark.parametrize(("checked", "twice"), [(True, False), (True, True), (False, True)])
def test_a_word_that_is_checked_or_read_twice_is_never_believed_torn(memory: str, checked: bool, twice: bool) -> None:
    # Reading twice is enough for a word that only grows, even where sixteen bits of check should ever collide.
    check(torn_words(checked=checked, twice=twice), memory, states_min=500)


def test_an_unchecked_word_is_believed_torn_and_unlinks_what_is_not_acked() -> None:
    refute(torn_words(checked=False, twice=False), SC, saying="believes that 3 is acked, the base is 2")


@pytest.mark.parametrize("memory", MEMORY_MODELS)
@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
def test_only_damage_is_called_damage_and_the_reader_goes_on_behind_it(memory: str, damaged: bool) -> None:
    check(frames(patience=IDENTICAL_READS, damaged=damaged), memory, states_min=60)


def test_a_failed_check_taken_for_damage_quarantines_a_good_frame() -> None:
    refute(frames(patience=1, damaged=False), SC, saying="a good frame was called damaged")
