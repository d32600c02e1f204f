"""The crew of a storm: what a process of each role does from its birth until it is killed, on the public interface of the bus."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.errors import IdentityBusyError, MusterError
from muster.security.keys import Keyring, load_master
from muster.testing import journal as journals
from muster.testing.journal import Journal, body_of, number_of

from .board import DRAIN, STOP, STORM, Board

SENDERS = ("sender-1", "sender-2", "sender-3")
RECIPIENTS = ("recipient-1", "recipient-2", "recipient-3")
RELAYS = ("relay-1", "relay-2")
HELD = ("held-1", "held-2", "held-3")
OPERATOR = "operator"
AGENTS = (*SENDERS, *RECIPIENTS, *RELAYS, *HELD, OPERATOR)
#: Inboxes in the order in which messages flow: once the earlier ones are empty and nobody makes more, the later ones only shrink.
FLOW = (*RELAYS, *HELD, *RECIPIENTS, OPERATOR)

BURST = 16
BODY_BYTES, BODY_BYTES_LARGE = 64, 3000
IDLE_S = 0.05


@dataclass(frozen=True)
class Member:
    """A place in the crew; process after process takes it."""

    slot: int
    name: str
    role: str


def crew() -> list[Member]:
    """Every member; the one-shots share one identity in turn."""
    named = [
        *((name, "sender") for name in SENDERS),
        *((name, "recipient") for name in RECIPIENTS),
        *((name, "relay") for name in RELAYS),
        ("one-shot-1", "one-shot"),
        ("one-shot-2", "one-shot"),
        ("holder", "holder"),
    ]
    return [Member(slot, name, role) for slot, (name, role) in enumerate(named)]


ROLES = tuple(dict.fromkeys(member.role for member in crew()))


class Life:
    """One incarnation of a member: its journal, its dice, and what ends it."""

    def __init__(self, member: Member, incarnation: int, world: World) -> None:
        self.member = member
        self.incarnation = incarnation
        self.store = world.store
        self.board = world.board
        self.journal = Journal(world.history, incarnation, member.role)
        self.dice = random.Random(f"{world.seed}/{incarnation}")
        self._buses: list[Bus] = []

    async def open(self, agent: str, *, consume: bool = True, send: bool = True, wait_s: float = 0.0) -> Hand:
        keyring = Keyring.from_master(load_master(self.store), agent)
        bus = await Bus.open(self.store, agent, keyring, consume=consume, send=send, wait_s=wait_s)
        self.journal.opened(agent)
        self._buses.append(bus)
        return Hand(self, bus)

    async def close(self) -> None:
        for bus in self._buses:
            self.journal.closing(bus.id)
            await bus.close()

    async def be_quiet(self) -> None:
        """Until the storm says stop: the bus stays open, its timers run."""
        while self.board.phase != STOP:
            self.board.say_quiet(self.member.slot, self.incarnation)
            await asyncio.sleep(IDLE_S)


@dataclass(frozen=True)
class World:
    """Where a storm happens."""

    store: Path
    history: Path
    board: Board
    seed: str


class Hand:
    """One identity in the hands of a life; every operation stands in the journal before it begins and after it returned."""

    def __init__(self, life: Life, bus: Bus) -> None:
        self.bus, self.agent = bus, bus.id
        self._life, self._journal, self._dice = life, life.journal, life.dice
        self._lanes: dict[tuple[str, bool], int] = {}
        self._window = life.dice.choice((1, 1, 2, 8))
        self._held: list[tuple[Delivery, int]] = []

    def _lane(self, peer: str, *, control: bool) -> int:
        lane = self._lanes.get((peer, control))
        if lane is None:
            lane = self._lanes[peer, control] = self._journal.lane(self.agent, peer, control=control)
        return lane

    def _body(self, number: int) -> bytes:
        return body_of(number, BODY_BYTES if number & 127 else BODY_BYTES_LARGE)

    def send(self, to: str) -> bool:
        """Send one message; False if it was refused for want of room."""
        number = self._journal.new_number()
        control = number & 31 == 0
        body = self._body(number)
        place = self._journal.send_begun(self._lane(to, control=control), number)
        try:
            receipt = self.bus.post(to, body, priority="control") if control else self.bus.post(to, body)
        except MusterError as error:
            if error.retry_after_s is None:
                raise
            self._journal.send_refused(place)
            return False
        self._journal.send_stored(place, receipt.seq, receipt.raw_id)
        return True

    async def send_waiting(self, to: str, wait_s: float) -> bool:
        """The same, waiting for room."""
        number = self._journal.new_number()
        place = self._journal.send_begun(self._lane(to, control=False), number, waits=True)
        try:
            receipt = await self.bus.send(to, self._body(number), wait_s=wait_s)
        except MusterError as error:
            if error.retry_after_s is None:
                raise
            self._journal.send_refused(place)
            return False
        self._journal.send_stored(place, receipt.seq, receipt.raw_id)
        return True

    async def take(self, timeout_s: float) -> tuple[Delivery, int] | None:
        """The next delivery with its place in the journal, or None; what was held back for its window is acked before waiting."""
        delivery = self.bus.receive_nowait()
        if delivery is None:
            self.ack_held()
            delivery = await self.bus.receive(timeout_s=timeout_s)
            if delivery is None:
                return None
        message = delivery.message
        lane = self._lane(message.sender, control=message.control)
        number = number_of(delivery.body)
        return delivery, self._journal.received(lane, message.seq, delivery.attempt, number, message.raw_id)

    def finish(self, delivery: Delivery, place: int) -> None:
        """Mostly ack, at once or in any order within a small window; now and then give it back, or give it up."""
        moved, dice = self._journal.moved, self._dice.random()
        if dice < 0.002:
            moved(place, journals.NACKING)
            delivery.nack("the dice said so")
            moved(place, journals.NACKED)
        elif dice < 0.004:
            moved(place, journals.RELEASING)
            delivery.release()
            moved(place, journals.RELEASED)
        elif dice < 0.0042:
            moved(place, journals.KILLING)
            delivery.dead_letter("the dice said so")
            moved(place, journals.KILLED)
        else:
            self._held.append((delivery, place))
            if len(self._held) >= self._window:
                self.ack_held()

    def ack_held(self) -> None:
        held, self._held = self._held, []
        if len(held) > 1:
            self._dice.shuffle(held)
        moved, slot, board = self._journal.moved, self._life.member.slot, self._life.board
        for delivery, place in held:
            moved(place, journals.ACKING)
            delivery.ack()
            moved(place, journals.ACKED)
            board.count_finished(slot)


async def sender(life: Life) -> None:
    hand = await life.open(life.member.name)
    while life.board.phase == STORM:
        await flood(life, hand, (*RECIPIENTS, *RELAYS))
    await life.be_quiet()


async def flood(life: Life, hand: Hand, targets: Sequence[str]) -> None:
    """A burst to each target while its credit lasts; when nobody has room, wait for one of them."""
    stored = 0
    for to in targets:
        for _ in range(BURST):
            if not hand.send(to):
                break
            stored += 1
    if life.dice.random() < 0.05:
        hand.send(OPERATOR)
    if stored < BURST:
        await hand.send_waiting(life.dice.choice(targets), 0.2)
    else:
        await asyncio.sleep(0)


async def recipient(life: Life) -> None:
    hand = await life.open(life.member.name)
    await handle_all(life, hand)


async def handle_all(life: Life, hand: Hand) -> None:
    """Take and finish until the storm says stop."""
    while life.board.phase != STOP:
        if life.board.phase == DRAIN:
            life.board.say_quiet(life.member.slot, life.incarnation)
        for _ in range(64):
            taken = await hand.take(IDLE_S)
            if taken is None:
                break
            hand.finish(*taken)
    hand.ack_held()


async def relay(life: Life) -> None:
    """Receives, sends on, and only then acks: what it sends may be sent twice, never not at all."""
    hand = await life.open(life.member.name)
    turn = 0
    while life.board.phase != STOP:
        if life.board.phase == DRAIN:
            life.board.say_quiet(life.member.slot, life.incarnation)
        taken = await hand.take(IDLE_S)
        if taken is None:
            continue
        turn += 1
        to = RECIPIENTS[turn % len(RECIPIENTS)]
        while not hand.send(to) and not await hand.send_waiting(to, 0.2):
            if life.board.phase == STOP:  # nothing was sent on: what is in hand is given back
                return
        hand.finish(*taken)
    hand.ack_held()


async def one_shot(life: Life) -> None:
    """What `muster send` and `muster recv` do: take the operator's identity, a few messages, and go."""
    sends = life.dice.random() < 0.5
    if life.board.phase != STORM:
        await settle_operator(life)
        return
    try:
        hand = await life.open(OPERATOR, consume=not sends, send=sends, wait_s=0.5)
    except IdentityBusyError:
        return
    if sends:
        for _ in range(life.dice.randrange(1, 200)):
            hand.send(life.dice.choice(RECIPIENTS))
        return
    for _ in range(life.dice.randrange(1, 100)):
        taken = await hand.take(0.02)
        if taken is None:
            break
        hand.finish(*taken)
    hand.ack_held()


async def settle_operator(life: Life) -> None:
    """After the storm one of them keeps the identity, as its next user would, until everything is drained."""
    while life.board.phase != STOP:
        life.board.say_quiet(life.member.slot, life.incarnation)
        try:
            hand = await life.open(OPERATOR, wait_s=IDLE_S)
        except IdentityBusyError:
            continue
        await handle_all(life, hand)


async def holder(life: Life) -> None:
    """Several identities in one process and one loop: each sends to the others and to the recipients, and receives."""
    hands = [await life.open(agent) for agent in HELD]
    await asyncio.gather(*(hold(life, hand) for hand in hands))


async def hold(life: Life, hand: Hand) -> None:
    peers = [agent for agent in HELD if agent != hand.agent]
    receiving = asyncio.ensure_future(handle_all(life, hand))
    while life.board.phase == STORM and not receiving.done():
        await flood(life, hand, (*peers, life.dice.choice(RECIPIENTS)))
    await receiving


LIVES: dict[str, Callable[[Life], Awaitable[None]]] = {
    "sender": sender,
    "recipient": recipient,
    "relay": relay,
    "one-shot": one_shot,
    "holder": holder,
}


async def live(member: Member, incarnation: int, world: World) -> None:
    """A whole life, if nobody ends it."""
    life = Life(member, incarnation, world)
    await LIVES[member.role](life)
    await life.close()
