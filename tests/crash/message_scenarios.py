"""Scenarios of messages from alice to bob."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from functools import partial
from pathlib import Path

import msgspec

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, read_settings
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.segment import list_segments
from muster.bus.transports.lanes.tombstones import list_tombstones
from muster.core import limits
from muster.core.settings import DEFAULTS, BusSettings

from .copies import files_of
from .history import judge
from .life import FILLING, Act, Life
from .scenario import Scenario

#: The message with an explicit id, and from here on those by which a mending life shows that the bus works.
JOB, PROBES = 50, 1000
LANE = "agents/alice/outbox/bob"
#: Of a store whose messages survive a power cut.
DURABLE = BusSettings(durable=True)


def found(life: Life, settings: BusSettings | None = None) -> None:
    """A store on which both agents have been once."""
    create_store(life.store, settings)
    for agent in ("alice", "bob"):
        add_agent(life.store, agent)
        life.join(agent).transport.close()


def with_messages(count: int, *, filling: str = "", acked: int = 0, settings: BusSettings | None = None) -> Act:
    """A store on which alice sent messages 1 to `count`, of which bob acked the first ones."""

    def prepare(life: Life) -> None:
        found(life, settings)
        alice = life.join("alice")
        for n in range(1, count + 1):
            life.send(alice, n, filling=filling)
        alice.transport.close()
        bob = life.join("bob")
        life.drain_some(bob, acked)
        bob.transport.close()

    return prepare


# ---------------------------------------------------------------------- mending


def mend(life: Life, *, jobs: bool = False, meets_recipient: bool = False) -> None:
    """Both agents come back. What is there is drained, one more message makes its way, and then nothing is left to do.

    `meets_recipient`: bob has read all there is before alice comes, and has the files of her predecessor open.
    """
    life.mark()
    probe = PROBES + os.getpid()
    if meets_recipient:
        bob = life.join("bob")
        life.drain(bob)
    alice = life.join("alice")
    if jobs:
        life.send(alice, JOB, message_id="job")
    alice.transport.resume()
    alice.transport.ring_again()
    if not meets_recipient:
        bob = life.join("bob")
    life.drain(bob)
    life.send(alice, probe)
    life.drain(bob)
    if jobs:
        life.send(alice, JOB, message_id="job")
        life.drain(bob)
    alice.transport.on_bell()
    alice.transport.ring_again()
    bob.transport.close()
    bob = life.join("bob")
    again = life.drain(bob)
    settle(life, alice, bob, again)
    bob.transport.close()
    alice.transport.close()
    life.mark()


def settle(life: Life, alice: Bus, bob: Bus, again: int) -> None:
    """Note what the store says of all this."""
    lane = life.store / LANE
    life.note(
        "settled",
        lane=(lane / "lane").read_bytes()[8:24].hex(),
        verdicts={seq: alice.transport.state("bob", control=False, seq=seq) for seq in range(1, life.last_seq + 1)},
        tombstones=[stone.seq for stone in list_tombstones(f"{life.store}/agents/bob/inbox")],
        letters=[_letter(letter) for letter in list_letters(f"{life.store}/agents/bob/inbox")],
        unread=bob.depth(),
        again=again,
        **left_over(life.store),
        segments_more=list_segments(str(lane))[1:],
    )


def _letter(letter: dict[str, object]) -> dict[str, object]:
    body = Path(str(letter["path"])).read_bytes().partition(b"\n")[2]
    n = 0  # of no message
    with contextlib.suppress(msgspec.DecodeError):
        n = msgspec.msgpack.decode(body)[0]
    return {"n": n, "reason": letter["reason"]}


def left_over(store: Path) -> dict[str, list[str]]:
    """Files that an interrupted call forgot, and files made to hold room that hold none."""
    temporary, hollow = [], []
    for path in files_of(store):
        name, shown = os.path.basename(path), path.removeprefix(f"{store}/")
        if name.startswith("tmp-"):
            temporary.append(shown)
        elif (name.startswith("spare-") or name == "reserve") and os.stat(path).st_blocks == 0:
            hollow.append(shown)
    return {"temporary": temporary, "hollow": hollow}


# ---------------------------------------------------------------------- senders


def first_send(life: Life) -> None:
    alice = life.join("alice")
    life.mark()
    life.send(alice, 1)
    life.mark()
    life.send(alice, 2)


def roll(life: Life) -> None:
    alice = life.join("alice")
    for n in range(1, 7):
        life.send(alice, n, filling=FILLING)
    life.mark()
    for n in (7, 8, 9):
        life.send(alice, n, filling=FILLING)
    life.mark()
    life.send(alice, 10)


def reclaim(life: Life) -> None:
    alice = life.join("alice")
    life.mark()
    with life.trying("resume"):
        alice.transport.resume()
        alice.transport.ring_again()
    life.send(alice, 61)
    life.mark()
    life.send(alice, 62)


def explicit_id(life: Life) -> None:
    alice = life.join("alice")
    life.send(alice, 1)
    life.mark()
    life.send(alice, JOB, message_id="job")
    life.send(alice, JOB, message_id="job")
    life.mark()


def wipe(life: Life) -> None:
    with_messages(5, acked=5)(life)
    shutil.rmtree(life.store / LANE)


def lose_segments(life: Life) -> None:
    with_messages(5, acked=5)(life)
    for path in (life.store / LANE).glob("*.seg"):
        path.unlink()


def send_once_more(life: Life) -> None:
    """A sender comes back to a lane of which more or less is left."""
    life.mark()
    with life.trying("join"):
        alice = life.join("alice")
        life.send(alice, 6)
        life.mark()
        life.send(alice, 7)


# ---------------------------------------------------------------------- recipients


def first_receive(life: Life) -> None:
    life.mark()
    with life.trying("join"):
        bob = life.join("bob")
        delivery = life.take(bob)
        life.mark()
        if delivery is not None:
            life.finish(delivery)


def take_and_ack(life: Life) -> None:
    bob = life.join("bob")
    if (delivery := life.take(bob)) is not None:
        life.finish(delivery)
    life.mark()
    delivery = life.take(bob)
    if delivery is not None:
        life.finish(delivery)
    life.mark()
    life.drain(bob)


def nack_to_dead(life: Life) -> None:
    bob = life.join("bob")
    for _ in range(limits.ATTEMPTS_MAX - 1):
        if (delivery := life.take(bob)) is not None:
            life.finish(delivery, "nack")
    delivery = life.take(bob)
    life.mark()
    if delivery is not None:
        life.finish(delivery, "nack")
    life.mark()
    if (delivery := life.take(bob)) is not None:
        life.finish(delivery)


def dead_letter(life: Life) -> None:
    bob = life.join("bob")
    life.mark()
    if (delivery := life.take(bob)) is not None:
        life.finish(delivery, "dead")
    life.mark()


def round_trip(life: Life) -> None:
    """Both at once: bells are heard, a seal is passed, and the sender asked to be told."""
    bob, alice = life.join("bob", send=False), life.join("alice")
    for n in range(1, 8):
        life.send(alice, n, filling=FILLING)
    life.mark()
    for n in (8, 9):
        life.send(alice, n, filling=FILLING)
    with life.trying("want"):
        alice.transport.want("bob", control=False, seq=9)
    for delivery in list(itertools.islice(iter(partial(life.take, bob), None), 9)):
        life.finish(delivery)
    with life.trying("reclaim"):
        alice.transport.on_bell()
    life.mark()
    life.send(alice, 10)
    life.drain(bob)


# ---------------------------------------------------------------------- the store itself


def nothing(life: Life) -> None:
    """No store at all."""


def create(life: Life, settings: BusSettings) -> None:
    life.mark()
    with life.trying("create"):
        create_store(life.store, settings)
        for agent in ("alice", "bob"):
            add_agent(life.store, agent)
    life.mark()


def create_again(life: Life, settings: BusSettings) -> None:
    """Whoever made it half makes it again; it is then what was asked for."""
    life.mark()
    create_store(life.store, settings)
    for agent in ("alice", "bob"):
        add_agent(life.store, agent)
    life.mark()
    if read_settings(life.store).render() != settings.render():
        raise AssertionError("the store has other settings than it was made with")
    mend(life)


mend_sender = partial(mend, meets_recipient=True)

MESSAGE_SCENARIOS = (
    Scenario("first send", found, first_send, mend_sender, judge, is_brief=True, is_deep=True),
    Scenario("roll", found, roll, mend_sender, judge, is_brief=True, is_deep=True),
    Scenario("reclaim", with_messages(60, filling=FILLING, acked=60), reclaim, mend_sender, judge),
    Scenario("explicit id", found, explicit_id, partial(mend_sender, jobs=True), judge),
    Scenario("outbox wiped", wipe, send_once_more, mend_sender, judge),
    Scenario("segments lost", lose_segments, send_once_more, mend_sender, judge),
    Scenario("first receive", with_messages(3), first_receive, mend, judge, is_brief=True, is_deep=True),
    Scenario("take and ack", with_messages(3), take_and_ack, mend, judge),
    Scenario("nack to dead", with_messages(2), nack_to_dead, mend, judge, is_brief=True, is_deep=True),
    Scenario("dead letter", with_messages(2), dead_letter, mend, judge),
    Scenario("round trip", found, round_trip, mend, judge),
    Scenario("durable first send", partial(found, settings=DURABLE), first_send, mend_sender, judge),
    Scenario("durable roll", partial(found, settings=DURABLE), roll, mend_sender, judge),
    Scenario("durable first receive", with_messages(3, settings=DURABLE), first_receive, mend, judge),
    Scenario(
        "durable reclaim", with_messages(60, filling=FILLING, acked=60, settings=DURABLE), reclaim, mend_sender, judge
    ),
    Scenario("durable dead letter", with_messages(2, settings=DURABLE), dead_letter, mend, judge),
    Scenario(
        "create store", nothing, partial(create, settings=DEFAULTS), partial(create_again, settings=DEFAULTS), judge
    ),
    Scenario(
        "create durable store",
        nothing,
        partial(create, settings=DURABLE),
        partial(create_again, settings=DURABLE),
        judge,
    ),
)
