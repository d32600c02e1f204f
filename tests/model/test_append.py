"""Rule F: how a frame is appended, and why a reader never sees half of one.

A segment is a row of words. A frame is a commit word (who, how many body words) and its body; the word behind it is the next
commit word, 0 until something is committed there. The first message is longer than the second, so that what a killed writer
left of its body lies where the commit word after the second one will be.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .explorer import MEMORY_MODELS, PSO, SC, TSO, Model, Process, View, bound, check, refute
from .program import Broken, Interrupted, Op, Program, Script, Words, atomic, await_word, fence, load, store

BODY_WORDS = (2, 1, 1, 2, 1)
MESSAGES = bound(4, 5)
WORDS = sum(1 + length for length in BODY_WORDS[:MESSAGES]) + 1


def next_message(words: Words) -> int | None:
    """The caller's next message; a message whose send was cut off is not sent again."""
    number: int = words["sent"]
    if number == MESSAGES:
        return None
    words["sent"] = number + 1
    return number


def frame_words(word: tuple[Any, ...]) -> int:
    """How many words the frame with this commit word takes."""
    if len(word) != 2:
        raise Broken("the rest of a body was read as a commit word")
    return 1 + int(word[1])


def send(tail: int, message: int, broken: str) -> Generator[Op, Any, int]:
    """Append one frame, as rule F says; returns the new tail."""
    if broken != "cached tail without the walk":
        while word := (yield load(tail)):
            tail += frame_words(word)
    length = BODY_WORDS[message]
    following = tail + 1 + length
    if broken not in ("next word not zeroed", "next word zeroed after the commit"):
        yield store(following, 0)
    for part in range(length):
        yield store(tail + 1 + part, (message, "body", part))
    if broken != "no barrier":
        yield fence()
    yield store(tail, (message, length))
    if broken == "next word zeroed after the commit":
        yield store(following, 0)
    yield fence()  # `send` returns: the caller counts on it
    yield atomic(f"accepted {message}", lambda words: words.__setitem__("accepted", (*words["accepted"], message)))
    return following


def writer(broken: str) -> Program:
    """Sends until the messages run out. Between commit and return a signal handler may raise: the tail stays behind."""

    def program() -> Script:
        tail = 0
        while True:
            try:
                message = yield atomic("next message", next_message)
                if message is None:
                    return
                tail = yield from send(tail, message, broken)
            except Interrupted:
                message = None

    return program


def reader(broken: str) -> Program:
    """Reads the commit word, then the body, in two reads."""

    def program() -> Script:
        at = 0
        while at < WORDS - 1:
            early = 0
            if broken == "one read over commit word and body":
                early = yield load(at + 1)
            word = yield await_word(at, lambda word: word != 0, "waiting")
            following = at + frame_words(word)
            message = word[0]
            part = 0
            while at + 1 + part < following:
                seen = (
                    early if early == 0 and broken.startswith("one read") and part == 0 else (yield load(at + 1 + part))
                )
                if seen != (message, "body", part):
                    raise Broken("a frame was read that is not whole")
                part += 1
            yield atomic(f"read {message}", lambda words: words.__setitem__("read", (*words["read"], message)))
            at = following

    return program


def at_rest(view: View) -> str | None:
    committed: tuple[int, ...] = ()
    at = 0
    while at < WORDS - 1 and (word := view[at]):
        committed = (*committed, word[0])
        at += 1 + word[1]
    if view["read"] != committed:
        return f"read {view['read']}, but the segment says {committed}"
    if not set(view["accepted"]) <= set(committed):
        return f"accepted {view['accepted']}, but the segment says {committed}"
    return None if list(committed) == sorted(committed) else f"committed out of order: {committed}"


def model(broken: str = "", *, crashes: int = 2, interrupts: int = 1) -> Model:
    words: dict[Any, Any] = dict.fromkeys(range(WORDS), 0)
    words |= {"sent": 0, "accepted": (), "read": ()}
    write = writer(broken)
    processes = (Process("writer", write, write, crashes, interrupts), Process("reader", reader(broken)))
    return Model(f"append {broken}".strip(), words, processes, at_rest)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_a_reader_sees_whole_frames_in_order_whatever_kills_or_interrupts_the_writer(memory: str) -> None:
    check(model(interrupts=bound(1, 2)), memory, states_min=4_000 if memory == SC else 10_000)


def test_a_next_word_that_is_not_zeroed_turns_a_dead_writers_body_into_a_commit_word() -> None:
    refute(model("next word not zeroed"), SC, saying="the rest of a body was read as a commit word")


def test_a_next_word_zeroed_only_after_the_commit_is_too_late() -> None:
    refute(model("next word zeroed after the commit"), SC, saying="the rest of a body was read as a commit word")


def test_without_a_barrier_the_commit_word_overtakes_the_body_where_stores_may() -> None:
    refute(model("no barrier", crashes=0, interrupts=0), PSO, saying="not whole")
    check(
        model("no barrier"), TSO, states_min=1_000
    )  # x86 keeps stores in order: there the barrier costs, and adds nothing


def test_a_cached_tail_without_the_walk_overwrites_a_committed_frame() -> None:
    refute(model("cached tail without the walk", crashes=0), SC, saying="not whole")


def test_a_restarted_writer_without_the_walk_overwrites_the_first_frame() -> None:
    refute(model("cached tail without the walk", interrupts=0), SC, saying="not whole")


def test_one_read_over_commit_word_and_body_mixes_a_new_commit_with_an_old_body() -> None:
    refute(model("one read over commit word and body", crashes=0, interrupts=0), SC, saying="not whole")
