"""Rule P: many senders of one identity, one consumer of it.

The senders of a lane take its lock for each send; each has its own cached tail. The consumer holds the inbox lock for life.
A lock is the kernel's: it is released when its owner is dead and what that had stored is visible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .explorer import PSO, SC, TSO, Model, Process, View, bound, check, refute
from .program import BLOCKED, Interrupted, Op, Program, Script, Words, atomic
from .test_append import WORDS, next_message, reader, send
from .test_cursor import Rules


def lock(name: str, owner: str) -> Op:
    def act(words: Words) -> Any:
        if words[name]:
            return BLOCKED
        words[name] = owner
        return None

    return atomic(f"take {name}", act)


def unlock(name: str) -> Op:
    return atomic(f"release {name}", lambda words: words.__setitem__(name, ""), after_stores=True)


def released(name: str, owner: str) -> Callable[[Words], None]:
    """What the kernel does with the lock of the dead."""

    def clean_up(words: Words) -> None:
        if words[name] == owner:
            words[name] = ""

    return clean_up


def sender(owner: str, broken: str) -> Program:
    def program() -> Script:
        tail = 0
        while (message := (yield atomic("next message", next_message))) is not None:
            if broken != "no lane lock":
                yield lock("lane.lock", owner)
            try:
                tail = yield from send(tail, message, broken)
            except Interrupted:
                message = None
            if broken != "no lane lock":
                yield unlock("lane.lock")

    return program


def senders(broken: str = "", *, crashes: int = 1, interrupts: int = 1) -> Model:
    """Two processes that send through one lane; the first may be killed or interrupted."""

    def at_rest(view: View) -> str | None:
        at, committed = 0, []
        while at < WORDS - 1 and (word := view[at]):
            committed.append(word[0])
            at += 1 + word[1]
        if view["read"] != tuple(committed) or len(set(committed)) < len(committed):
            return f"read {view['read']}, the segment says {committed}"
        if not set(view["accepted"]) <= set(committed):
            return f"accepted {view['accepted']}, the segment says {committed}"
        return None

    words: dict[Any, Any] = dict.fromkeys(range(WORDS), 0) | {"sent": 0, "accepted": (), "read": (), "lane.lock": ""}
    one, two = sender("one", broken), sender("two", broken)
    processes = (
        Process("one", one, one, crashes, interrupts, cleanup=released("lane.lock", "one")),
        Process("two", two, cleanup=released("lane.lock", "two")),
        Process("reader", reader("")),
    )
    return Model(f"senders {broken}".strip(), words, processes, at_rest)


def consumers(broken: str = "", *, crashes: int = 1) -> Model:
    """Two consumers of one inbox; the second waits for the lock, and goes on where the first was killed."""
    rules = Rules(window=2, messages=2, poison=(), broken="")

    def consumer(owner: str) -> Program:
        def program() -> Script:
            if broken != "no inbox lock":
                yield lock("inbox.lock", owner)
            yield from rules.recipient()
            if broken != "no inbox lock":
                yield unlock("inbox.lock")

        return program

    def at_rest(view: View) -> str | None:
        if view.where("one") == view.where("two") == "dead":
            return None
        unfinished = [seq for seq in (1, 2) if not view["verdict", seq]]
        return f"nobody finalises {unfinished}" if unfinished else None

    words: dict[Any, Any] = {"taken": 0, "acked_base": 0, "letters": frozenset(), "inbox.lock": ""}
    words |= {(ring, slot): (0, 0) for ring in ("acked", "attempts") for slot in range(2)}
    words |= {("verdict", seq): "" for seq in (1, 2)} | {("delivered", seq): 0 for seq in (1, 2)}
    processes = tuple(
        Process(name, consumer(name), consumer(name), crashes, cleanup=released("inbox.lock", name))
        for name in ("one", "two")
    )
    return Model(f"consumers {broken}".strip(), words, processes, at_rest)


@pytest.mark.parametrize("memory", bound([PSO], [SC, TSO, PSO]))  # PSO allows whatever the others allow
def test_processes_that_share_a_lane_lose_and_overwrite_nothing(memory: str) -> None:
    check(senders(interrupts=bound(0, 1)), memory, states_min=5_000)


@pytest.mark.parametrize("memory", [SC, TSO])
def test_a_second_consumer_goes_on_where_a_killed_one_ended(memory: str) -> None:
    check(consumers(crashes=bound(1, 2)), memory, states_min=1_000)


def test_without_the_lane_lock_two_senders_write_into_one_frame() -> None:
    refute(senders("no lane lock", crashes=0, interrupts=0), SC, saying="not whole")


def test_a_second_process_with_a_cached_tail_overwrites_a_committed_frame() -> None:
    refute(senders("cached tail without the walk", crashes=0, interrupts=0), SC, saying="not whole")


def test_without_the_inbox_lock_two_consumers_handle_the_same_message() -> None:
    refute(consumers("no inbox lock", crashes=0), SC, saying="1 is delivered the 2. time")
