"""Scenarios for the instruction level: one call of the engine each, warm, with nothing else between the marks."""

from __future__ import annotations

import gc
import os
from functools import partial

from muster.bus.bus import Bus
from muster.bus.envelope import outgoing

from .history import judge
from .life import FILLING, Life
from .message_scenarios import found, mend, with_messages
from .scenario import Scenario


def warm(life: Life, count: int, *, filling: str = "") -> Bus:
    """A sender whose last `count` messages went the same way."""
    alice = life.join("alice")
    for n in range(1, count + 1):
        life.send(alice, n, filling=filling)
    gc.disable()  # a collection between the marks would only be more instructions
    return alice


def commit(life: Life, *, before: int, filling: str = "") -> None:
    """One message stored, the hot path below `Bus.post`: with so many before it, it rolls or does not."""
    alice, n = warm(life, before, filling=filling), before + 1
    out, put, mark = outgoing([n, filling, n], {}), alice.transport.put, os.getppid
    life.note("try", n=n, explicit=False)
    mark()
    seq = put("bob", out)
    mark()
    life.note("sent", n=n, seq=seq, id=_shown(out.message_id))


def _shown(raw_id: bytes) -> str:
    from muster.core.ids import show_id

    return show_id(raw_id)


def take(life: Life) -> None:
    bob = life.join("bob")
    life.drain_some(bob, 2)
    gc.disable()
    take_next, mark = bob.transport.take, os.getppid
    mark()
    inbound = take_next()
    mark()
    assert inbound is not None


def ack(life: Life) -> None:
    bob = life.join("bob")
    life.drain_some(bob, 2)
    gc.disable()
    inbound, ack_it, mark = bob.transport.take(), bob.transport.ack, os.getppid
    assert inbound is not None
    n = inbound.message.body[0]
    life.note_taken(inbound.message, inbound.attempt)
    life.note("finishing", n=n, how="ack")
    mark()
    ack_it(inbound)
    mark()
    life.note("finished", n=n, how="ack", parked=False)


STEPPED_SCENARIOS = (
    Scenario("commit", found, partial(commit, before=3), mend, judge, is_brief=True),
    Scenario("commit with a roll", found, partial(commit, before=7, filling=FILLING), mend, judge),
    Scenario("take", with_messages(5), take, mend, judge, is_brief=True),
    Scenario("ack", with_messages(5), ack, mend, judge, is_brief=True),
)
