"""Scenarios for the instruction level: one call of the engine each, warm, with nothing else between the marks."""

from __future__ import annotations

import gc
import os
from functools import partial

from muster.bus.bus import Bus
from muster.bus.envelope import outgoing
from muster.core.ids import show_id

from .history import judge, judge_records
from .leaving_scenarios import evict_once, with_evicting_inbox
from .life import FILLING, Life
from .log_scenarios import append as append_records
from .log_scenarios import encode_record, log_of, with_records
from .log_scenarios import mend as mend_log
from .message_scenarios import found, mend, mend_sender, with_messages
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
    life.note("sent", n=n, seq=seq, id=show_id(out.message_id))


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


def append(life: Life) -> None:
    with log_of(life) as log:
        append_records(life, log, 3)
        record, mark = encode_record(4), os.getppid
        gc.disable()
        life.note("try", n=4)
        mark()
        log.append([record])
        mark()
        life.note("sent", n=4)


STEPPED_SCENARIOS = (
    Scenario("commit, stepped", found, partial(commit, before=3), mend_sender, judge, is_brief=True),
    Scenario("roll, stepped", found, partial(commit, before=7, filling=FILLING), mend_sender, judge),
    Scenario("log append, stepped", with_records(2), append, mend_log, judge_records),
    Scenario("evict, stepped", with_evicting_inbox, evict_once, mend, judge),
    Scenario("take, stepped", with_messages(5), take, mend, judge, is_brief=True),
    Scenario("ack, stepped", with_messages(5), ack, mend, judge, is_brief=True),
)
