"""Scenarios of messages that leave an inbox on other ways than by an ack: evicted for newer ones, redriven from the dead letters, or made
dead letters because an agent is retired.
"""

from __future__ import annotations

import gc
import os
from functools import partial

from muster.bus.bus import Bus
from muster.bus.store import add_agent
from muster.bus.transports.lanes.redrive import put_back
from muster.bus.transports.lanes.retire import retire_agent
from muster.core.settings import BusSettings

from .history import judge
from .life import Act, Life
from .message_scenarios import found, mend, with_messages
from .scenario import Scenario

#: One lane may hold 40 messages of such an inbox, the rest is reserved for others. Its credit grows by steps: so many sends fill it.
SMALL = BusSettings(agents_max=2, inbox_messages_max=8, lane_messages_max=8)
ROOM = 8


def with_evicting_inbox(life: Life) -> None:
    """A small inbox that evicts its oldest ones; its recipient has been there for the first."""
    found(life, SMALL)
    bob, alice = life.join("bob", send=False), life.join("alice")
    bob.transport.set_overflow("evict_oldest")
    life.send(alice, 1)
    life.drain(bob)
    alice.transport.close()
    bob.transport.close()


def fill(life: Life) -> tuple[Bus, Bus]:
    """Alice and bob, whose inbox is as full as it gets without an eviction; bob listens and takes nothing."""
    bob, alice = life.join("bob", send=False), life.join("alice")
    life.send(alice, 2)
    life.drain(bob)
    for n in range(3, 3 + ROOM):
        send_and_hear(life, alice, bob, n)
    return alice, bob


def send_and_hear(life: Life, alice: Bus, bob: Bus, n: int) -> None:
    """Send; the recipient takes nothing, but hears the bell, and that makes room."""
    life.send(alice, n)
    with life.trying("hear", n):
        bob.transport.on_bell()


def evict(life: Life) -> None:
    alice, bob = fill(life)
    life.mark()
    for n in range(100, 104):
        send_and_hear(life, alice, bob, n)
    life.mark()
    send_and_hear(life, alice, bob, 110)


def evict_for_absent(life: Life) -> None:
    """The recipient is away: the sender evicts in its name."""
    alice = life.join("alice")
    for n in range(3, 3 + ROOM):
        life.send(alice, n)
    life.mark()
    for n in range(100, 104):
        life.send(alice, n)
    life.mark()
    life.send(alice, 110)


def evict_once(life: Life) -> None:
    """For the instruction level: a bell that makes room is heard, nothing else."""
    alice, bob = fill(life)
    n = 100
    while life.send(alice, n):
        bob.transport.on_bell()
        n += 1
    gc.disable()
    hear, mark = bob.transport.on_bell, os.getppid
    mark()
    hear()
    mark()
    life.send(alice, 200)


# ---------------------------------------------------------------------- redrive


def with_letter(life: Life) -> None:
    """Message 1 is a dead letter, 2 is unread."""
    with_messages(2)(life)
    bob = life.join("bob")
    if (delivery := life.take(bob)) is not None:
        life.finish(delivery, "dead")
    bob.transport.close()


def redrive(life: Life) -> None:
    bob = life.store / "agents" / "bob"
    (letter,) = os.listdir(bob / "inbox" / "dead")
    life.note("redriving", n=1)
    with life.trying("redrive", 1):
        put_back(bob, letter)


def put_back_marked(life: Life) -> None:
    life.mark()
    redrive(life)
    life.mark()


def with_redriven(life: Life) -> None:
    with_letter(life)
    redrive(life)


def finish_redriven(how: str) -> Act:
    def act(life: Life) -> None:
        bob = life.join("bob")
        life.mark()
        delivery = life.take(bob)
        if delivery is not None:
            life.finish(delivery, how)
        life.mark()
        life.drain(bob)

    return act


# ---------------------------------------------------------------------- retirement


def retire(life: Life, agent: str) -> None:
    life.mark()
    with life.trying("retire"):
        retire_agent(life.store, agent)
    life.mark()


def mend_retired(life: Life, agent: str) -> None:
    """Retired again until nothing of it waits; then the name is used anew."""
    life.mark()
    retire_agent(life.store, agent)
    if agent == "alice":
        bob = life.join("bob")
        life.drain(bob)
        bob.transport.close()
        retire_agent(life.store, agent)
    add_agent(life.store, agent)
    life.mark()
    mend(life)


LEAVING_SCENARIOS = (
    Scenario("evict", with_evicting_inbox, evict, mend, judge, is_brief=True),
    Scenario("evict for absent", with_evicting_inbox, evict_for_absent, mend, judge),
    Scenario("redrive", with_letter, put_back_marked, mend, judge),
    Scenario("ack redriven", with_redriven, finish_redriven("ack"), mend, judge, is_deep=True),
    Scenario(
        "retire recipient",
        with_messages(3, acked=1),
        partial(retire, agent="bob"),
        partial(mend_retired, agent="bob"),
        judge,
    ),
    Scenario(
        "retire sender",
        with_messages(3, acked=1),
        partial(retire, agent="alice"),
        partial(mend_retired, agent="alice"),
        judge,
    ),
    Scenario(
        "retire sender, read",
        with_messages(3, acked=3),
        partial(retire, agent="alice"),
        partial(mend_retired, agent="alice"),
        judge,
    ),
    Scenario("redriven to dead", with_redriven, finish_redriven("dead"), mend, judge),
)
