"""Rule S, rolling: prepare the new segment under a temporary name, seal the old one, then rename.

A segment holds two frames of one word each, or one long frame of two; behind them there is always room for a commit word, and
so for the seal. A segment is named after its first number. The directory is one word that system calls change; a segment's
header is a mapped store like any other, so under PSO it may become visible later than the name. A writer that was interrupted inside
a roll may roll again and replace the empty successor; whoever has that open must notice that it has no link any more.
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


File = tuple[int, int]  # first number, and how often a file of that name was replaced: the inode


def slot(file: File, at: int) -> tuple[str, File, int]:
    return ("word", file, at)


def header(file: File) -> tuple[str, File]:
    return ("header", file)


def next_message(words: Words) -> int | None:
    number: int = words["sent"]
    if number == MESSAGES:
        return None
    words["sent"] = number + 1
    return number


def linked(directory: tuple[File, ...], first: int) -> File | None:
    """The file that the name of segment `first` stands for."""
    return next((file for file in directory if file[0] == first), None)


def rename(file: File) -> Op:
    """Give the prepared file its name; what had that name before is unlinked, and stays readable for who has it open."""

    def act(words: Words) -> None:
        words["dir"] = tuple(sorted({file, *(other for other in words["dir"] if other[0] != file[0])}))

    return atomic(f"rename to {file[0]}", act)


def roll(old: File, at: int, seq: int, broken: str) -> Generator[Op, Any, File]:
    """Put segment `seq` behind the segment `old`, whose next free word is `at`. Repeated after a crash, it does no harm."""
    file = (seq, 0)
    yield store(header(file), "valid")
    if not broken.startswith("rename before the seal"):
        yield store(slot(old, at), SEAL)
    yield rename(file)
    if broken.startswith("rename before the seal"):
        yield store(slot(old, at), SEAL)
    return file


def successor(seq: int, broken: str) -> Generator[Op, Any, File]:
    """The segment behind a seal: what is there, or a new one where whoever sealed did not come to the rename."""
    file = linked((yield load("dir")), seq)
    if file is not None and "renews" in broken and (yield load(slot(file, 0))) == 0:
        file = (seq, file[1] + 1) if file[1] == 0 else file
        yield store(header(file), "valid")
        yield rename(file)
    if file is None:
        file = (seq, 0)
        yield store(header(file), "valid")
        yield rename(file)
    return file


def send(file: File, at: int, seq: int, message: int, broken: str) -> Generator[Op, Any, tuple[File, int, int]]:
    """Walk on from the cached tail (`at` in `file`, next number `seq`), then append; returns the new tail."""
    while True:
        word = yield load(slot(file, at))
        if word == 0:
            if at + LENGTHS[message] <= CAPACITY:
                break
            file, at = (yield from roll(file, at, seq, broken)), 0
        elif word == SEAL:
            file, at = (yield from successor(seq, broken)), 0
        else:
            at, seq = at + word[1], seq + 1
    yield store(slot(file, at + LENGTHS[message]), 0)
    yield fence()
    yield store(slot(file, at), (message, LENGTHS[message]))
    yield fence()
    yield atomic(f"accepted {message}", lambda words: words.__setitem__("accepted", (*words["accepted"], message)))
    return file, at + LENGTHS[message], seq + 1


def writer(broken: str) -> Program:
    """A process that starts at the last segment's name and its first word; a signal handler may raise anywhere in it."""

    def program() -> Script:
        file = yield atomic("list segments", lambda words: words["dir"][-1])
        seq = file[0]
        at = 0
        while True:
            try:
                message = yield atomic("next message", next_message)
                if message is None:
                    return
                file, at, seq = yield from send(file, at, seq, message, broken)
            except Interrupted:
                message = None

    return program


def reader(broken: str) -> Program:
    """Follows the seals. With `reader follows names` it leaves a silent tail as soon as a newer segment exists."""

    def look(file: File, at: int, seq: int) -> Op:
        def act(words: Words) -> Any:
            word = words[slot(file, at)]
            following = linked(words["dir"], seq)
            if broken.endswith("reader follows names") and word == 0 and following not in (None, file):
                return SEAL
            if word == 0 and file not in words["dir"] and not broken.endswith("reader never reopens"):
                return "no link"
            if word == SEAL and (following is None or words[header(following)] == 0):
                return BLOCKED  # a sealed segment without a successor means "not yet"
            return word or BLOCKED

        return atomic(f"look at {seq}", act)

    def program() -> Script:
        file = (1, 0)
        seq = 1
        at = 0
        while True:
            word = yield look(file, at, seq)
            if word in (SEAL, "no link"):  # either way the next frame is the first of the segment of its number
                file, at = (yield atomic(f"open {seq}", lambda words: linked(words["dir"], seq))), 0
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
    words: dict[Any, Any] = {"dir": ((1, 0),), "sent": 0, "accepted": (), "read": ()}
    for file in ((first, times) for first in range(1, MESSAGES + 2) for times in range(2 if "renews" in broken else 1)):
        words[header(file)] = "valid" if file == (1, 0) else 0
        words |= {slot(file, at): 0 for at in range(CAPACITY + 1)}
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


def test_a_writer_that_renews_an_empty_successor_is_survived_by_a_reader_that_looks_for_the_link() -> None:
    check(model("renews", crashes=1), SC, states_min=4_000)


def test_a_reader_that_never_asks_whether_its_segment_is_still_linked_waits_in_a_renewed_one_for_ever() -> None:
    refute(model("renews, reader never reopens", crashes=0), SC, saying="stuck")
