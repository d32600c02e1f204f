"""Rules S and C: when a segment may be unlinked, and why a lane has an identity.

Each segment holds one message, so every send but the first rolls. A lane is born with a fresh id when its sender finds no
segment: at first, after somebody wiped its outbox while it was dead, or after it had retired a fully acked lane. A cursor file is
bound to one lane id; another lane id gets a new file by rename. A file that was replaced stays readable for who has it open.
Messages that a wipe destroys are lost, nobody promises otherwise; what is accepted afterwards must be delivered.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .explorer import PSO, SC, Model, Process, View, bound, check, refute
from .program import BLOCKED, Broken, Op, Program, Script, Words, atomic, choose, fence, load, store

MESSAGES = bound(3, 4)
LANES = range(1, MESSAGES + 1)
LOST = ("never handled", "gap")
NO_FILE = 0  # index of the cursor file that does not exist


def next_message(words: Words) -> int:
    """The caller's next message; 0 when there is none. A message whose send was cut off is not sent again."""
    if words["sent"] == MESSAGES:
        return 0
    words["sent"] += 1
    return int(words["sent"])


def birth(broken: str) -> Op:
    """A new lane: a fresh id, and its first segment by rename."""

    def act(words: Words) -> int:
        words["born"] += 1
        lane: int = 1 if broken == "no lane id" else words["born"]
        words["dir"] = ((lane, 1),)
        words["message", lane, 1] = words["sealed", lane, 1] = 0  # a new file
        return lane

    return atomic("new lane", act)


def add_segment(words: Words, lane: int, first: int) -> None:
    words["dir"] = tuple(sorted({*words["dir"], (lane, first)}))
    words["message", lane, first] = words["sealed", lane, first] = 0  # a new file


def unlink(lane: int, first: int) -> Op:
    def act(words: Words) -> None:
        words["dir"] = tuple(name for name in words["dir"] if name != (lane, first))

    return atomic(f"unlink {lane}/{first}", act)


def passed(broken: str, lane: int, file: int) -> Generator[Op, Any, tuple[int, int]]:
    """Up to where the recipient has finished, by its cursor; reopens the cursor when it is another lane's."""
    word = "taken" if broken == "unlink by taken" else "acked_base"
    found = yield load(("lane", file))
    if found != lane and broken != "lane id unchecked":
        file = yield load("cursor")
        found = yield load(("lane", file))
    if file == NO_FILE or (found != lane and broken != "lane id unchecked"):
        return 0, file
    return (yield load((word, file))), file


def sender(broken: str) -> Program:
    """Sends; before each send it may reclaim, and retire a lane that is acked to its end."""

    def find_lane() -> Generator[Op, Any, tuple[int, int]]:
        """The lane and its last number, from what is on disk."""
        directory = yield load("dir")
        if not directory:
            return 0, 0
        lane, last = directory[-1]
        return lane, (last if (yield load(("message", lane, last))) else last - 1)

    def reclaim(lane: int, tail: int, file: int) -> Generator[Op, Any, tuple[int, int]]:
        """Unlink the sealed segments that are passed; returns the lane (0: retired) and the cursor file in use."""
        upto, file = yield from passed(broken, lane, file)
        if upto > tail:
            return lane, file
        first = 1
        while first <= upto:
            sealed = yield load(("sealed", lane, first))
            if not sealed and (yield choose("retire", "keep")) == "keep":
                return lane, file
            if not sealed:
                yield store(("sealed", lane, first), 1)
            yield unlink(lane, first)
            first += 1
        return (0 if upto == tail else lane), file

    def append(lane: int, tail: int, message: int) -> Generator[Op, Any, None]:
        directory = yield load("dir")
        if (lane, tail + 1) not in directory:
            if (lane, tail) in directory:
                yield store(("sealed", lane, tail), 1)
            yield atomic(f"segment {lane}/{tail + 1}", lambda words: add_segment(words, lane, tail + 1))
        yield store(("message", lane, tail + 1), message)
        yield fence()
        yield atomic(f"accepted {message}", lambda words: words.__setitem__("due", words["due"] | {message}))

    def program() -> Script:
        yield atomic("start", lambda words: words.__setitem__("alive", True))
        lane, tail = yield from find_lane()
        file = yield load("cursor")
        while message := (yield atomic("next message", next_message)):
            if lane and (yield choose("reclaim", "go on")) == "reclaim":
                lane, file = yield from reclaim(lane, tail, file)
            if not lane:
                lane, tail = (yield birth(broken)), 0
            yield from append(lane, tail, message)
            tail += 1

    return program


def wiper() -> Script:
    """Somebody removes the dead sender's outbox, with what is in it."""
    yield atomic("wipe", wipe)


def wipe(words: Words) -> Any:
    if words["alive"] or not words["dir"]:
        return BLOCKED
    words["dir"], words["due"] = (), frozenset()
    return None


def look(last: int, lane: int, *, waits: bool, broken: str) -> Op:
    """The next message of this lane, or another lane (foreign id, or the open file has no link any more); waits if told so."""

    def act(words: Words) -> Any:
        nothing = BLOCKED if waits else ("nothing", 0)
        if not words["dir"]:
            return nothing
        found, oldest = words["dir"][0]
        if found != lane:
            return nothing if lane and broken == "never reopens" else ("other lane", found)
        if oldest > last + 1:
            raise Broken(f"gap: wants {lane}/{last + 1}, the oldest segment is {lane}/{oldest}")
        if (lane, last + 1) not in words["dir"] or not words["message", lane, last + 1]:
            return nothing
        return ("message", words["message", lane, last + 1])

    return atomic("waiting" if waits else "look", act)


def adopt(file: int, lane: int, broken: str) -> Generator[Op, Any, int]:
    """A cursor for this lane: a new file by rename, never a reset."""
    if broken.startswith("cursor reset in place") and file != NO_FILE:
        order = (("acked_base", file), ("slots", file), ("lane", file))
        for word in order if broken.endswith("base first") else order[::-1]:
            yield store(word, {"acked_base": 0, "slots": frozenset(), "lane": lane}[word[0]])
        return file
    yield store(("lane", lane), lane)
    yield atomic(f"rename the cursor of {lane}", lambda words: words.__setitem__("cursor", lane))
    return lane


def finish(file: int, number: int, message: int, *, alone: bool) -> Generator[Op, Any, None]:
    """Handle a message, store its slot, move the base of that cursor. One that is alone in hand needs no slot."""
    yield atomic(f"handle {message}", lambda words: words.__setitem__("handled", words["handled"] | {message}))
    if alone:
        yield store(("acked_base", file), number)
        return
    slots = (yield load(("slots", file))) | {number}
    yield store(("slots", file), slots)
    base = moved = yield load(("acked_base", file))
    while moved + 1 in slots:
        moved += 1
    if moved > base:
        yield store(("acked_base", file), moved)


def recipient(broken: str, in_hand: int) -> Program:
    def program() -> Script:
        file = yield load("cursor")
        lane = yield load(("lane", file))
        last = yield load(("acked_base", file))
        flying: tuple[
            tuple[int, int, int], ...
        ] = ()  # cursor file, number, message: in hand, maybe of a lane that is gone
        while True:
            if flying and (len(flying) == in_hand or (yield choose("finish", "look")) == "finish"):
                (where, number, message), flying = flying[0], flying[1:]
                if broken == "acks go to the lane's newest cursor":
                    where = file
                yield from finish(where, number, message, alone=in_hand == 1)
                where = number = message = 0
                continue
            what, number = yield look(last, lane, waits=not flying, broken=broken)
            if what == "other lane":
                file = yield from adopt(file, number, broken)
                lane, last = number, 0
            elif what == "message":
                last += 1
                if broken == "unlink by taken":
                    yield store(("taken", file), last)
                if in_hand == 1 or last not in (yield load(("slots", file))):
                    flying = (*flying, (file, last, number))
            what, number = "", 0

    return program


def at_rest(view: View) -> str | None:
    missing = set(view["due"]) - set(view["handled"])
    if view.where("recipient") == "waiting" and missing:
        return f"accepted and never handled: {sorted(missing)}"
    return None


def model(broken: str = "", *, crashes: tuple[int, int] = (1, 1), wipes: bool = True, in_hand: int = 1) -> Model:
    """`crashes`: of the sender, of the recipient. `in_hand`: how many messages the recipient holds at a time."""
    words: dict[Any, Any] = {"dir": (), "cursor": NO_FILE, "born": 0, "sent": 0, "alive": False}
    words |= {"due": frozenset(), "handled": frozenset()}
    words |= {(word, file): 0 for word in ("lane", "taken", "acked_base") for file in (NO_FILE, *LANES)}
    words |= {("slots", file): frozenset() for file in (NO_FILE, *LANES)}
    words |= {(word, lane, first): 0 for word in ("message", "sealed") for lane in LANES for first in LANES}
    send, receive = sender(broken), recipient(broken, in_hand)
    processes = [
        Process("sender", send, send, crashes[0], cleanup=lambda words: words.__setitem__("alive", False)),
        Process("recipient", receive, receive, crashes[1]),
    ]
    if wipes:
        processes.append(Process("somebody", wiper))
    return Model(f"reclaim {broken}".strip(), words, tuple(processes), at_rest)


@pytest.mark.parametrize(
    ("memory", "crashes", "in_hand"),
    [(SC, (1, 1), 1), (PSO, (1, 0), 1), (PSO, (0, 1), 1), (SC, (1, 0), 2)],
    ids=["both die", "sender dies, PSO", "recipient dies, PSO", "two in hand"],
)
def test_no_accepted_message_is_undelivered_and_no_gap_is_false(
    memory: str, crashes: tuple[int, int], in_hand: int
) -> None:
    # PSO allows whatever TSO allows.
    check(model(crashes=bound(crashes, (1, 1)), in_hand=in_hand), memory, states_min=5_000)


def test_a_recipient_that_never_reopens_at_a_silent_tail_waits_in_a_lane_that_is_gone() -> None:
    refute(model("never reopens", crashes=(1, 0)), SC, saying=LOST)


@pytest.mark.parametrize("wipes", [True, False], ids=["after a wipe", "after a retired lane"])
def test_without_a_lane_id_a_cursor_takes_new_messages_for_old_ones(wipes: bool) -> None:
    refute(model("no lane id", wipes=wipes, crashes=(1, 0)), SC, saying=LOST)


def test_a_cursor_of_another_lane_id_that_is_not_checked_loses_messages() -> None:
    refute(model("lane id unchecked", crashes=(1, 0)), SC, saying=LOST)


def test_a_cursor_reset_in_place_loses_messages() -> None:
    refute(model("cursor reset in place", crashes=(1, 0)), SC, saying=LOST)


def test_a_cursor_reset_in_place_in_the_better_order_is_no_better_where_stores_are_reordered() -> None:
    refute(model("cursor reset in place, base first", crashes=(1, 0)), PSO, saying=LOST)


def test_unlinking_what_is_only_taken_loses_it_when_the_recipient_dies() -> None:
    refute(model("unlink by taken", crashes=(0, 1), wipes=False), SC, saying="gap")


def test_an_ack_that_goes_to_the_lanes_newest_cursor_finalises_a_message_that_nobody_handled() -> None:
    refute(model("acks go to the lane's newest cursor", crashes=(1, 0), in_hand=2), SC, saying=LOST)
