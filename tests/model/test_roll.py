"""Rule S, rolling: prepare the new segment under a temporary name, seal the old one, then rename.

A segment holds two frames of one word each, or one long frame of two; behind them there is always room for a commit word, and
so for the seal. A segment is named after its first number. The directory is one word that system calls change; a segment's
header is a mapped store like any other, so under PSO it may become visible later than the name.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .explorer import MEMORY_MODELS, SC, Model, Process, View, bound, check, refute
from .program import BLOCKED, Interrupted, Op, Program, Script, Words, atomic, fence, load, store

LENGTHS = (1, 2, 1, 1, 2)  # the second does not fit behind the first; the third would
MESSAGES = bound(4, 5)
CAPACITY = 2
SEAL = "SEAL"


def slot(first: int, at: int) -> tuple[str, int, int]:
    return ("word", first, at)


def header(first: int) -> tuple[str, int]:
    return ("header", first)


def next_message(words: Words) -> int | None:
    number: int = words["sent"]
    if number == MESSAGES:
        return None
    words["sent"] = number + 1
    return number


def make_segment(words: Words, first: int) -> None:
    words["dir"] = tuple(sorted({*words["dir"], first}))


def roll(first: int, at: int, seq: int, broken: str) -> Generator[Op, Any, None]:
    """Put segment `seq` behind the segment `first`, whose next free word is `at`. Repeated after a crash, it does no harm."""
    yield store(header(seq), "valid")
    if not broken:
        yield store(slot(first, at), SEAL)
    yield atomic(f"rename {seq}", lambda words: make_segment(words, seq))
    if broken:
        yield store(slot(first, at), SEAL)


def send(first: int, at: int, seq: int, message: int, broken: str) -> Generator[Op, Any, tuple[int, int, int]]:
    """Walk on from the cached tail (`at` in segment `first`, next number `seq`), then append; returns the new tail."""
    while True:
        word = yield load(slot(first, at))
        if word == 0:
            if at + LENGTHS[message] <= CAPACITY:
                break
            yield from roll(first, at, seq, broken)
            first, at = seq, 0
        elif word == SEAL:
            directory = yield load("dir")
            if seq not in directory:  # whoever sealed it did not come to the rename
                yield store(header(seq), "valid")
                yield atomic(f"rename {seq}", lambda words: make_segment(words, seq))
            first, at = seq, 0
        else:
            at, seq = at + word[1], seq + 1
    yield store(slot(first, at + LENGTHS[message]), 0)
    yield fence()
    yield store(slot(first, at), (message, LENGTHS[message]))
    yield fence()
    yield atomic(f"accepted {message}", lambda words: words.__setitem__("accepted", (*words["accepted"], message)))
    return first, at + LENGTHS[message], seq + 1


def writer(broken: str) -> Program:
    """A process that starts at the last segment's name and its first word; a signal handler may raise anywhere in it."""

    def program() -> Script:
        directory = yield atomic("list segments", lambda words: words["dir"])
        first = seq = directory[-1]
        at = 0
        while True:
            try:
                message = yield atomic("next message", next_message)
                if message is None:
                    return
                first, at, seq = yield from send(first, at, seq, message, broken)
            except Interrupted:
                message = None

    return program


def reader(broken: str) -> Program:
    """Follows the seals. With `reader follows names` it leaves a silent tail as soon as a newer segment exists."""

    def look(first: int, at: int, seq: int) -> Op:
        def act(words: Words) -> Any:
            word = words[slot(first, at)]
            if broken.endswith("reader follows names") and word == 0 and seq in words["dir"] and seq != first:
                return SEAL
            if word == SEAL and (seq not in words["dir"] or words[header(seq)] == 0):
                return BLOCKED  # a sealed segment without a successor means "not yet"
            return word or BLOCKED

        return atomic(f"look at {seq}", act)

    def program() -> Script:
        first = seq = 1
        at = 0
        while True:
            word = yield look(first, at, seq)
            if word == SEAL:
                first, at = seq, 0
            else:
                message, length = word
                at, seq = at + length, seq + 1
                yield atomic(f"read {message}", lambda words: words.__setitem__("read", (*words["read"], message)))

    return program


def at_rest(view: View) -> str | None:
    if not set(view["accepted"]) <= set(view["read"]):
        return f"stuck: accepted {view['accepted']}, read {view['read']}"
    if list(view["read"]) != sorted(set(view["read"])):
        return f"read out of order or twice: {view['read']}"
    return None


def model(broken: str = "", *, crashes: int = 2, interrupts: int = 1) -> Model:
    words: dict[Any, Any] = {"dir": (1,), "sent": 0, "accepted": (), "read": ()}
    for first in range(1, MESSAGES + 2):
        words[header(first)] = "valid" if first == 1 else 0
        words |= {slot(first, at): 0 for at in range(CAPACITY + 1)}
    write = writer(broken)
    processes = (Process("writer", write, write, crashes, interrupts), Process("reader", reader(broken)))
    return Model(f"roll {broken}".strip(), words, processes, at_rest)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_a_reader_is_never_stuck_at_a_roll_and_never_skips(memory: str) -> None:
    check(model(interrupts=bound(1, 2)), memory, states_min=4_000)


def test_renaming_before_sealing_leaves_the_reader_waiting_for_a_seal_for_ever() -> None:
    refute(model("rename before the seal", interrupts=0), SC, saying="stuck")


def test_renaming_before_sealing_lets_a_small_frame_into_the_segment_that_the_reader_has_left() -> None:
    refute(model("rename before the seal, reader follows names", crashes=0), SC, saying="stuck")
