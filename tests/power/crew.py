"""Who is at work when the power goes: a process that sends and one that receives, each telling a pipe what it knows."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import traceback
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.errors import InboxFullError
from muster.security.keys import Keyring, load_master

SENDER: Final = "alice"
RECIPIENTS: Final = ("bob", "carol")
PRIORITIES: Final = ("normal", "control")
#: What is told of a message: a send began; `send` returned; its ack, or its end as a dead letter, is about to be stored.
TRYING, ACCEPTED, ACKING, BURYING = "trying", "accepted", "acking", "burying"
#: Sends that share one wait for the disk.
TOGETHER_MAX: Final = 6
IN_HAND_MAX: Final = 6
FULL_PAUSE_S: Final = 0.005


class Key(NamedTuple):
    """One message of the run: its lane, and how many were sent on that lane before it."""

    recipient: str
    priority: str
    number: int

    @property
    def message_id(self) -> str | None:
        """Every third has an id that its sender chose."""
        return f"{self.recipient}-{self.priority}-{self.number}" if self.number % 3 == 0 else None

    @property
    def body(self) -> bytes:
        """Told by the key alone, so that a torn one shows."""
        dice = random.Random(f"{self}")
        size = dice.choice((20, 300, 300, 2_000, 5_000))
        return f"{self.recipient} {self.priority} {self.number} ".encode() + dice.randbytes(size)


def key_of(delivery: Delivery) -> Key | None:
    """The key of a message that came whole; None if a byte of it is wrong."""
    recipient, priority, number, _ = delivery.body.split(b" ", 3)
    key = Key(recipient.decode(), priority.decode(), int(number))
    lane = (delivery.recipient, PRIORITIES[delivery.message.control])
    return key if key.body == delivery.body and lane == key[:2] else None


@dataclass
class Told:
    """What both processes told before the power went; numbers are those of the lanes."""

    trying: set[Key] = field(default_factory=set)
    accepted: dict[Key, int] = field(default_factory=dict)
    acking: dict[Key, int] = field(default_factory=dict)
    burying: dict[Key, int] = field(default_factory=dict)

    def note(self, line: str) -> None:
        verb, recipient, priority, number, seq = line.split()
        key = Key(recipient, priority, int(number))
        if verb == TRYING:
            self.trying.add(key)
        else:
            known: dict[Key, int] = getattr(self, verb)
            known[key] = int(seq)


class Process:
    """A forked process and the pipe it tells."""

    def __init__(self, work: Callable[[Tell], Coroutine[None, None, None]]) -> None:
        self.pipe, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(work, told)
        os.close(told)

    def stop(self) -> None:
        """Send SIGSTOP; see `await_stop`."""
        os.kill(self.pid, signal.SIGSTOP)

    def await_stop(self) -> None:
        """Until every thread stands still, those that wait for the disk too. Raises AssertionError if it ended instead."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"a process ended by itself: {os.waitstatus_to_exitcode(status)}"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)


class Tell:
    """Writes lines into a pipe, each by one call."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, verb: str, key: Key, seq: int = 0) -> None:
        os.write(self._fd, f"{verb} {key.recipient} {key.priority} {key.number} {seq}\n".encode())


def _live(work: Callable[[Tell], Coroutine[None, None, None]], told: int) -> NoReturn:
    try:
        asyncio.run(work(Tell(told)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


async def send_for_ever(store: Path, seed: str, tell: Tell) -> None:
    """Messages of all sizes on every lane: alone, by `post`, and several that share a wait."""
    dice = random.Random(f"{seed} sender")
    sent: dict[tuple[str, str], int] = defaultdict(int)
    bus = await Bus.open(store, SENDER, Keyring.from_master(load_master(store), SENDER), consume=False)

    def next_key() -> Key:
        lane = dice.choice(RECIPIENTS), dice.choice((*PRIORITIES, "normal"))
        sent[lane] += 1
        return Key(*lane, sent[lane])

    async def send(key: Key) -> None:
        tell(TRYING, key)
        try:
            receipt = await bus.send(key.recipient, key.body, priority=key.priority, message_id=key.message_id)
        except InboxFullError:
            await asyncio.sleep(FULL_PAUSE_S)
            return
        tell(ACCEPTED, key, receipt.seq)

    while True:
        if dice.random() < 0.1:
            key = next_key()
            tell(TRYING, key)
            tell(ACCEPTED, key, bus.post(key.recipient, key.body, priority=key.priority, message_id=key.message_id).seq)
        else:
            await asyncio.gather(*(send(next_key()) for _ in range(dice.randint(1, TOGETHER_MAX))))


async def receive_for_ever(store: Path, seed: str, tell: Tell) -> None:
    """Both recipients: some messages stay in hand for a while, acks come out of order, one in forty is buried."""
    await asyncio.gather(*(_receive(store, agent, random.Random(f"{seed} {agent}"), tell) for agent in RECIPIENTS))


async def _receive(store: Path, agent: str, dice: random.Random, tell: Tell) -> None:
    bus = await Bus.open(store, agent, Keyring.from_master(load_master(store), agent))
    in_hand: list[Delivery] = []
    while True:
        delivery = await bus.receive(timeout_s=0.02)
        if delivery is not None:
            in_hand.append(delivery)
        while in_hand and (delivery is None or len(in_hand) > dice.randint(0, IN_HAND_MAX)):
            finish(in_hand.pop(dice.randrange(len(in_hand))), tell, bury=dice.random() < 1 / 40)


def finish(delivery: Delivery, tell: Tell, *, bury: bool) -> None:
    key = key_of(delivery)
    assert key is not None, f"{delivery} is torn, without any power cut"
    tell(BURYING if bury else ACKING, key, delivery.seq)
    if bury:
        delivery.dead_letter("power test")
    else:
        delivery.ack()
