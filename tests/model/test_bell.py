"""Rule B: who rings when, so that no wake-up is lost, whatever dies.

A lane is reduced to two words: `commit`, the last committed number, and `taken`, the last number that the recipient took
(None: no cursor yet). The bell is a bounded pipe of lane names; what does not fit is dropped, as EAGAIN does, and so is what
nobody has open for reading. The sender rings iff c <= taken < s: s its last committed number, c the last number for which this
very process finished this check (0 at its start).

Two claims, kept apart:
  * No wake-up is lost: when nothing moves any more, every number up to the last one whose check was *finished by anybody* is
    taken. This holds without any timer.
  * A number whose sender was killed between commit and check, with no later check finished, waits for one of the two timers:
    the re-ring of that sender's next process, or the recipient's sweep. With either, everything committed is taken. Without the
    sender's return and without the sweep it is not; a test shows that as well, so that nobody takes the timers for decoration.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .explorer import MEMORY_MODELS, PSO, SC, TSO, Model, Process, View, bound, check, refute
from .program import BLOCKED, Broken, Op, Program, Script, Words, atomic, await_word, fence, load, store

BELL_MAX = 2
TWO_LANES = ((1, 1), (1,))


def next_send(lane: str, sizes: tuple[int, ...]) -> Op:
    """How many messages the caller's next send has; 0 when there is none. A send cut off by a crash is not repeated."""

    def act(words: Words) -> int:
        number: int = words["sent", lane]
        if number == len(sizes):
            return 0
        words["sent", lane] = number + 1
        return sizes[number]

    return atomic(f"next send of {lane}", act)


def push(words: Words, lane: str) -> None:
    if words["open"] and len(words["bell"]) < BELL_MAX:
        words["bell"] = (*words["bell"], lane)


def finish_check(lane: str, last: int, rings: bool) -> Op:
    """Ring or not, and book (for the claims only) that the check for everything up to `last` is finished, as callers believe."""

    def act(words: Words) -> None:
        if rings:
            push(words, lane)
        words["checked", lane] = max(words["checked", lane], last)

    return atomic(f"{'ring' if rings else 'no ring'} for {lane} {last}", act)


def must_ring(broken: str, done: int, taken: int | None, first: int, last: int) -> bool:
    if taken is None:
        return True
    if broken == "ring when the recipient had caught up":
        return taken == last - 1
    if broken == "batch: taken == first - 1":
        return taken == first - 1
    return done <= taken < last


def sender(
    lane: str, sizes: tuple[int, ...], broken: str, *, shared_as: str = "", rings_again: bool = False
) -> Program:
    """Commits, executes a barrier, reads `taken`, rings or not. `shared_as`: its name on the lock of a shared lane."""

    def commit(size: int) -> Generator[Op, Any, tuple[int, int]]:
        if shared_as:
            yield atomic("lock", lambda words: BLOCKED if words["lock"] else words.__setitem__("lock", shared_as))
        first = last = (yield load(("commit", lane))) + 1
        yield store(("commit", lane), last)
        while last < first + size - 1:
            last += 1
            yield store(("commit", lane), last)
        if shared_as:
            yield atomic("unlock", lambda words: words.__setitem__("lock", None), after_stores=True)
        return first, last

    def repeat(last: int) -> Generator[Op, Any, int]:
        """The caller sends a message again that is committed already: no second copy, but the check is due as ever."""
        if broken == "a repeated message is not checked":
            yield finish_check(lane, last, rings=False)
            return last
        yield fence()
        taken = yield load(("taken", lane))
        yield finish_check(lane, last, must_ring(broken, 0, taken, last, last))
        return last

    def program() -> Script:
        done = 0
        if broken.startswith("a repeated message") and (last := (yield load(("commit", lane)))):
            done, last = (yield from repeat(last)), 0
        if broken == "c starts at the lane's tail":
            done = yield load(("commit", lane))
        while size := (yield next_send(lane, sizes)):
            first, last = yield from commit(size)
            if broken != "no barrier in the sender":
                yield fence()
            taken = yield load(("taken", lane))
            yield finish_check(lane, last, must_ring(broken, done, taken, first, last))
            done, taken = last, 0
        while rings_again:
            yield atomic("re-ring timer", lambda words: ring_again(words, lane), when_idle=True)

    return program


def only_unchecked(words: Words, lane: str) -> bool:
    """Whether a timer finds something in `lane`. It may find only what a killed sender left unchecked."""
    taken = words["taken", lane] or 0
    if taken < words["checked", lane]:
        raise Broken(f"a timer found a lost wake-up: {lane} taken {taken}, checked {words['checked', lane]}")
    return bool(taken < words["commit", lane])


def ring_again(words: Words, lane: str) -> Any:
    """A sender whose lane has untaken messages rings again every second."""
    if not words["open"] or not only_unchecked(words, lane):
        return BLOCKED
    push(words, lane)
    return None


def sweep(words: Words, lanes: tuple[str, ...]) -> Any:
    """The recipient's own timer, which makes it look at every lane."""
    found = words["open"] and tuple(lane for lane in lanes if only_unchecked(words, lane))
    if not found:
        return BLOCKED
    words["bell"] = found
    return None


def drain(words: Words) -> Any:
    """Sleep while the bell is empty, then take everything out of it."""
    names = words["bell"]
    if not names:
        return BLOCKED
    words["bell"] = ()
    return names


def take(lane: str, broken: str) -> Generator[Op, Any, None]:
    """Take, publish `taken`, barrier, look once more; leave the lane only after a look that found nothing."""
    taken = yield load(("taken", lane))
    if taken is None:
        taken = 0
        yield atomic(f"make a cursor for {lane}", lambda words: words.__setitem__(("taken", lane), 0))
    while (yield load(("commit", lane))) > taken:
        taken += 1
        yield store(("taken", lane), taken)
        if broken == "no second look":
            return
        if broken != "no barrier in the recipient":
            yield fence()


def recipient(lanes: tuple[str, ...], broken: str) -> Program:
    def program() -> Script:
        ready = lanes
        if broken != "scan before open":
            yield atomic("open the bell", lambda words: words.__setitem__("open", True))
        while True:
            while ready:
                lane, ready = ready[0], ready[1:]
                yield from take(lane, broken)
            if broken == "scan before open":
                yield atomic("open the bell", lambda words: words.__setitem__("open", True))
            if broken == "drain after the last look":
                yield atomic("drain", lambda words: words.__setitem__("bell", ()))
                yield await_word("bell", bool, "asleep")
                ready = lanes
                continue
            names = yield atomic("asleep", drain)
            overflowed = len(names) >= BELL_MAX and broken != "overflow ignored"
            ready = lanes if overflowed else tuple(lane for lane in lanes if lane in names)
            names = ()

    return program


def sweeper(lanes: tuple[str, ...]) -> Program:
    def program() -> Script:
        while True:
            yield atomic("sweep timer", lambda words: sweep(words, lanes), when_idle=True)

    return program


def claim(lanes: tuple[str, ...], *, of: str) -> Any:
    """At rest, `taken` has reached `checked` (no wake-up is lost) or `commit` (everything is taken), per lane."""

    def at_rest(view: View) -> str | None:
        if view.where("recipient") == "dead":
            return None  # its restart scans all lanes
        for lane in lanes:
            if of == "commit" and view.where(lane) == "dead":
                continue  # its next process rings again
            taken = view["taken", lane] or 0
            if taken < view[of, lane]:
                return f"asleep with an empty bell: {lane} taken {taken}, {of} {view[of, lane]}"
        return None

    return at_rest


def model(
    broken: str = "",
    *,
    sends: tuple[tuple[int, ...], ...] = ((1, 1, 1),),
    crashes: tuple[int, int] = (2, 1),
    processes_per_lane: int = 1,
    cursor: bool = True,
    timer: str = "",
) -> Model:
    """`sends`: per lane, the batch sizes of its sends. `crashes`: of A's first sender, of the recipient. `timer`: with "re-ring" or
    "sweep" (or "none") the claim is that everything committed is taken; without, that no wake-up is lost."""
    lanes = tuple("AB"[: len(sends)])
    words: dict[Any, Any] = {"bell": (), "open": False, "lock": None}
    processes = []
    for lane, sizes in zip(lanes, sends, strict=True):
        words |= {("sent", lane): 0, ("commit", lane): 0, ("checked", lane): 0, ("taken", lane): 0 if cursor else None}
        for number in range(processes_per_lane):
            name = lane + "'" * number
            lock = name if processes_per_lane > 1 else ""
            program = sender(lane, sizes, broken, shared_as=lock, rings_again=timer == "re-ring")
            mortal = crashes[0] if name == "A" else 0
            processes.append(Process(name, program, program, mortal, cleanup=unlock(lock) if lock else None))
    receive = recipient(lanes, broken)
    processes.append(Process("recipient", receive, receive, crashes[1], cleanup=close_bell))
    if timer == "sweep":
        processes.append(Process("sweeper", sweeper(lanes)))
    return Model(f"bell {broken}".strip(), words, tuple(processes), claim(lanes, of="commit" if timer else "checked"))


def unlock(name: str) -> Any:
    def clean_up(words: Words) -> None:
        if words["lock"] == name:
            words["lock"] = None

    return clean_up


def close_bell(words: Words) -> None:
    words["open"], words["bell"] = False, ()


@pytest.mark.parametrize("memory", MEMORY_MODELS)
@pytest.mark.parametrize("cursor", [True, False], ids=["cursor", "no cursor yet"])
def test_no_wake_up_is_lost_whatever_kills_sender_or_recipient(memory: str, cursor: bool) -> None:
    check(model(cursor=cursor, crashes=(2, bound(1, 2))), memory, states_min=10_000)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_no_wake_up_is_lost_with_batches(memory: str) -> None:
    check(model(sends=((2, 2, 1),), crashes=(1, 1)), memory, states_min=2_000)


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_no_wake_up_is_lost_when_a_full_bell_drops_names_and_the_recipient_dies(memory: str) -> None:
    check(model(sends=TWO_LANES, crashes=(0, bound(1, 2))), memory, states_min=20_000)


def test_no_wake_up_is_lost_when_a_full_bell_drops_names_and_a_sender_dies() -> None:
    check(model(sends=TWO_LANES, crashes=(1, bound(0, 1))), PSO, states_min=40_000)


@pytest.mark.parametrize("memory", [SC, PSO])
def test_no_wake_up_is_lost_when_two_processes_share_a_lane(memory: str) -> None:
    sends = (bound((1, 1), (1, 1, 1)),)
    check(model(sends=sends, processes_per_lane=2, crashes=(1, 0)), memory, states_min=10_000)


@pytest.mark.parametrize("timer", ["re-ring", "sweep"])
@pytest.mark.parametrize("memory", [SC, PSO])
def test_with_a_timer_everything_committed_is_taken_and_it_finds_only_what_the_dead_left(
    memory: str, timer: str
) -> None:
    # With re-ring, the lane of a sender that stays away for ever is exempt: that one needs the sweep.
    check(model(timer=timer, crashes=(2, bound(1, 2))), memory, states_min=10_000)


def test_without_any_timer_the_last_message_of_a_sender_that_never_returns_waits_for_ever() -> None:
    refute(model(timer="none"), SC, saying="asleep with an empty bell")


def test_ringing_when_the_recipient_had_caught_up_loses_the_wake_up_after_a_senders_crash() -> None:
    broken = "ring when the recipient had caught up"
    refute(model(broken, crashes=(1, 0)), SC, saying="asleep with an empty bell")
    check(model(broken, crashes=(0, 0)), PSO, states_min=300)  # without a crash no test would ever see it


def test_a_message_that_is_sent_again_after_a_crash_must_be_checked_although_it_is_no_second_copy() -> None:
    check(model("a repeated message is checked"), PSO, states_min=10_000)
    refute(model("a repeated message is not checked", crashes=(1, 0)), SC, saying="asleep with an empty bell")


def test_one_shot_senders_that_trust_their_lanes_tail_lose_the_wake_up_as_well() -> None:
    refute(model("c starts at the lane's tail", crashes=(1, 0)), SC, saying="asleep with an empty bell")


@pytest.mark.parametrize("memory", [TSO, PSO])
@pytest.mark.parametrize("side", ["sender", "recipient"])
def test_without_a_barrier_on_either_side_a_wake_up_is_lost_without_any_crash(memory: str, side: str) -> None:
    refute(model(f"no barrier in the {side}", crashes=(0, 0)), memory, saying="asleep with an empty bell")
    check(model(f"no barrier in the {side}", crashes=(0, 0)), SC, states_min=300)


@pytest.mark.parametrize("broken", ["ring when the recipient had caught up", "batch: taken == first - 1"])
def test_a_batch_with_one_check_for_equality_loses_the_wake_up_without_any_crash(broken: str) -> None:
    refute(model(broken, sends=((2, 2),), crashes=(0, 0)), SC, saying="asleep with an empty bell")


def test_an_overflow_of_the_bell_that_is_ignored_loses_the_other_lanes_wake_up() -> None:
    refute(model("overflow ignored", sends=TWO_LANES, crashes=(0, 0)), SC, saying="asleep with an empty bell: B")


def test_draining_after_the_last_look_loses_the_wake_up() -> None:
    refute(model("drain after the last look", crashes=(0, 0)), SC, saying="asleep with an empty bell")


def test_a_recipient_that_does_not_look_again_after_publishing_loses_the_wake_up() -> None:
    refute(model("no second look", crashes=(0, 0)), SC, saying="asleep with an empty bell")


def test_scanning_before_the_bell_is_open_loses_the_wake_up() -> None:
    refute(model("scan before open", crashes=(0, 0)), SC, saying="asleep with an empty bell")
