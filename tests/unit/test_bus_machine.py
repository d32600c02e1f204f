"""The lanes engine against a small model: any sequence of sends, deliveries, verdicts, deaths and damage that Hypothesis can think of.

Three agents on one store, each a bus without a loop. What happens later by a timer does not happen here: the bell and the look of
`receive_nowait` alone must find everything. `MACHINE_EXAMPLES=20000 pytest tests/unit/test_bus_machine.py` searches for longer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from tests.storm.plants import PLANTS, planted

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery, Receipt
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import InboxFullError, MusterError
from muster.security.keys import Keyring, load_master
from muster.testing.journal import body_of, number_of

AGENTS = ("alice", "bob", "carol")
EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "60"))
STEPS = 50

agents = st.sampled_from(AGENTS)
sizes = st.sampled_from((12, 12, 200, 3000, 9000))
picks = st.integers(0, 10**6)


def finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        raise AssertionError("it waited")


@dataclass
class Stored:
    """The model's message. `begun` counts deliveries as the attempts ring does; `where` is lane, hand, given back, or final."""

    number: int
    body: bytes
    expires: bool = False
    explicit: str = ""
    where: str = "lane"
    begun: int = 0
    seen: bool = False
    damaged: bool = False
    receipt: Receipt | None = None


@dataclass
class Lane:
    """The model's lane: number n is `messages[n - 1]`."""

    messages: list[Stored] = field(default_factory=list)

    def open_ones(self) -> list[Stored]:
        return [message for message in self.messages if message.where != "final"]


class BusMachine(RuleBasedStateMachine):
    """The model, and the rules that move it and the engine together."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="muster-machine-"))
        self.store = create_store(self.folder / "store")
        for agent in AGENTS:
            add_agent(self.store, agent)
        self.master = load_master(self.store)
        self.buses: dict[str, Bus] = {}
        self.lanes: dict[tuple[str, str, bool], Lane] = {}
        self.in_hand: dict[str, list[tuple[Delivery, Stored]]] = {agent: [] for agent in AGENTS}
        self.listening: dict[str, frozenset[str] | None] = dict.fromkeys(AGENTS)
        self.reopened: set[tuple[str, str]] = set()  # (sender, explicit id) that a restart may have forgotten
        self.expected_letters: set[int] = set()
        self.possible_letters: set[int] = set()
        self.numbers = 0
        self.filled = False  # once for each example: it takes a while

    # ------------------------------------------------------------------ the model's helpers

    def bus(self, agent: str) -> Bus:
        bus = self.buses.get(agent)
        if bus is None:
            keyring = Keyring.from_master(self.master, agent)
            bus = self.buses[agent] = Bus(LanesTransport(self.store, agent, keyring))
            self.listening[agent] = None
        return bus

    def lane(self, sender: str, recipient: str, control: bool) -> Lane:
        return self.lanes.setdefault((sender, recipient, control), Lane())

    def lanes_to(self, recipient: str) -> list[tuple[str, bool, Lane]]:
        return [(sender, control, lane) for (sender, to, control), lane in self.lanes.items() if to == recipient]

    def post(self, sender: str, recipient: str, control: bool, message: Stored) -> None:
        envelope: dict[str, Any] = {"priority": "control"} if control else {}
        if message.expires:
            envelope["expires_in_s"] = 1e-9
        if message.explicit:
            envelope["message_id"] = message.explicit
        lane = self.lane(sender, recipient, control)
        try:
            message.receipt = self.bus(sender).post(recipient, message.body, **envelope)
        except InboxFullError:
            assert lane.open_ones(), "an empty lane refused a message"
            return
        seq = message.receipt.seq
        if seq == len(lane.messages) + 1:
            earlier = [old for old in lane.messages if old.explicit and old.explicit == message.explicit]
            assert all(old.where == "final" or old.damaged for old in earlier), (
                "a second copy of an unfinished explicit id"
            )
            assert not earlier or (sender, message.explicit) in self.reopened, (
                "the id was sent before, in this very life"
            )
            lane.messages.append(message)
            self.reopened.discard((sender, message.explicit))
        else:
            assert message.explicit, f"number {seq} follows {len(lane.messages)}"
            assert lane.messages[seq - 1].explicit == message.explicit, "the number of another message"

    def new_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def silent_end(self, message: Stored) -> bool:
        """Whether `take` would finalise it without handing it out; the model follows."""
        if message.expires:
            message.where = "final"
        elif message.begun >= self.attempts_max:
            message.where = "final"
            self.expected_letters.add(message.number)
        return message.where == "final"

    @property
    def attempts_max(self) -> int:
        return next(iter(self.buses.values())).transport.attempts_max

    def may_come(self, recipient: str) -> list[Stored]:
        """What `receive_nowait` should find: in lanes that are listened to, or given back."""
        listening = self.listening[recipient]
        found = []
        for sender, control, lane in self.lanes_to(recipient):
            heard = control or listening is None or sender in listening
            found += [
                message
                for message in lane.open_ones()
                if not message.damaged and (message.where == "back" or (message.where == "lane" and heard))
            ]
        return found

    def check_delivery(self, recipient: str, delivery: Delivery) -> Stored:
        sender, control, seq = delivery.sender, delivery.message.control, delivery.seq
        lane = self.lane(sender, recipient, control)
        assert 1 <= seq <= len(lane.messages), "a number that was never given"
        message = lane.messages[seq - 1]
        assert number_of(delivery.body) == message.number
        assert delivery.body == message.body
        assert message.where in ("lane", "back"), f"delivered although {message.where}"
        assert not message.expires, "delivered after it expired"
        listening = self.listening[recipient]
        assert message.where == "back" or control or listening is None or sender in listening, "not listened to"
        if message.where == "lane":
            message.begun += 1
        assert delivery.attempt == message.begun
        assert delivery.attempt <= self.attempts_max
        if not message.seen:
            for number, earlier in enumerate(lane.messages[: seq - 1], start=1):
                if earlier.where == "lane" and not earlier.seen:
                    assert earlier.damaged or self.silent_end(earlier), f"{seq} came before {number} ever did"
        return message

    # ------------------------------------------------------------------ rules

    @rule(sender=agents, recipient=agents, control=st.booleans(), expires=st.booleans(), size=sizes)
    def send(self, sender: str, recipient: str, control: bool, expires: bool, size: int) -> None:
        number = self.new_number()
        self.post(sender, recipient, control, Stored(number, body_of(number, size), expires=expires))

    @rule(sender=agents, recipient=agents, count=st.integers(2, 30), size=sizes)
    def send_many(self, sender: str, recipient: str, count: int, size: int) -> None:
        for _ in range(count):
            self.send(sender, recipient, False, False, size)

    @rule(sender=agents, recipient=agents, name=st.sampled_from(("x", "y")))
    def send_explicit(self, sender: str, recipient: str, name: str) -> None:
        number = self.new_number()
        explicit = f"{name}-{recipient}"
        self.post(sender, recipient, False, Stored(number, body_of(number, 64), explicit=explicit))

    @precondition(lambda self: not self.filled)
    @rule(sender=agents, recipient=agents)
    def fill(self, sender: str, recipient: str) -> None:
        """Until the recipient grants no more: a refusal writes nothing, and the next number is not used up."""
        self.filled = True
        lane = self.lane(sender, recipient, False)
        for _ in range(1200):
            before = len(lane.messages)
            self.send(sender, recipient, False, False, 12)
            if len(lane.messages) == before:
                return
        raise AssertionError("1,200 unacked messages and no refusal")

    @rule(agent=agents)
    def receive(self, agent: str) -> None:
        self.take_one(agent)

    def take_one(self, agent: str) -> bool:
        delivery = self.bus(agent).receive_nowait()
        if delivery is None:
            redelivered = any(held.redelivered for held, _ in self.in_hand[agent])
            waiting = [message for message in self.may_come(agent) if not self.silent_end(message)]
            assert not waiting or redelivered or len(self.in_hand[agent]) >= 200, (
                f"{agent} is not told of {waiting[:3]}"
            )
            return False
        message = self.check_delivery(agent, delivery)
        message.where, message.seen = "hand", True
        self.in_hand[agent].append((delivery, message))
        return True

    @rule(agent=agents, count=st.integers(1, 50))
    def receive_and_ack(self, agent: str, count: int) -> None:
        for _ in range(count):
            if not self.take_one(agent):
                break
            self.finish_one(agent, -1, "ack")

    def finish_one(self, agent: str, pick: int, verdict: str) -> None:
        held = self.in_hand[agent]
        delivery, message = held.pop(pick if pick < 0 else pick % len(held))
        if verdict == "ack":
            delivery.ack()
            message.where = "final"
            self.check_state(message, "acked")
        elif verdict == "dead" or (verdict == "nack" and delivery.attempt >= self.attempts_max):
            delivery.dead_letter("given up") if verdict == "dead" else delivery.nack("no")
            message.where = "final"
            self.expected_letters.add(message.number)
            self.check_state(message, "dead")
        elif verdict == "nack":
            delivery.nack("no")
            message.where = "back"
            message.begun += 1
        else:
            delivery.release()
            message.where = "back"

    def check_state(self, message: Stored, state: str) -> None:
        receipt = message.receipt
        if receipt is not None and not receipt._bus.closed and receipt._bus in self.buses.values():
            assert receipt.state in (state, "finalised")

    @precondition(lambda self: any(self.in_hand.values()))
    @rule(pick=picks, verdict=st.sampled_from(("ack", "ack", "ack", "nack", "release", "dead")))
    def decide(self, pick: int, verdict: str) -> None:
        holders = [agent for agent in AGENTS if self.in_hand[agent]]
        self.finish_one(holders[pick % len(holders)], pick, verdict)

    @rule(agent=agents, senders=st.none() | st.frozensets(agents))
    def listen_to(self, agent: str, senders: frozenset[str] | None) -> None:
        self.bus(agent).listen_to(senders)
        self.listening[agent] = senders

    @precondition(lambda self: self.buses)
    @rule(pick=picks, orderly=st.booleans())
    def end(self, pick: int, orderly: bool) -> None:
        """A process dies, or closes; what it had in hand goes back to its lanes, counted or not."""
        agent = sorted(self.buses)[pick % len(self.buses)]
        bus = self.buses.pop(agent)
        if orderly:
            finish(bus.close())
        else:
            bus.transport.close()
        self.in_hand[agent].clear()
        for _sender, _control, lane in self.lanes_to(agent):
            for message in lane.messages:
                if message.where in ("hand", "back"):
                    message.where = "lane"
                    message.begun -= orderly
        for (sender, _to, _control), lane in self.lanes.items():
            if sender == agent:
                self.reopened |= {(sender, message.explicit) for message in lane.messages if message.explicit}

    @precondition(lambda self: self.lanes)
    @rule(pick=picks, at=picks)
    def damage(self, pick: int, at: int) -> None:
        """Flip a bit in the body of a message that nobody has seen: it may be read before, or is set aside; no other suffers."""
        (sender, recipient, control), lane = sorted(self.lanes.items(), key=lambda item: item[0])[
            pick % len(self.lanes)
        ]
        unseen = [
            message for message in lane.messages if message.where == "lane" and not message.seen and not message.expires
        ]
        if not unseen:
            return
        message = unseen[at % len(unseen)]
        for path in sorted(
            (self.store / "agents" / sender / "outbox").glob(f"{recipient}{'.control' if control else ''}/*.seg")
        ):
            place = path.read_bytes().find(message.body)
            if place >= 0:
                with path.open("r+b") as file:
                    file.seek(place + at % len(message.body))
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1 << at % 8]))
                message.damaged = True
                self.possible_letters.add(message.number)
                return

    # ------------------------------------------------------------------ the end

    def teardown(self) -> None:
        """Everybody dies once more; then all that was accepted comes, is acked, and the store is empty but for dead letters."""
        try:
            for _ in range(len(self.buses)):
                self.end(0, False)
            for agent in AGENTS:
                while self.take_one(agent):
                    self.finish_one(agent, -1, "ack")
            for key, lane in self.lanes.items():
                left = [message for message in lane.open_ones() if not message.damaged and not self.silent_end(message)]
                assert not left, f"lost on {key}: {left[:3]}"
            for agent in AGENTS:
                assert self.bus(agent).depth(agent) == 0
            self.check_letters()
        finally:
            for bus in self.buses.values():
                bus.transport.close()
            shutil.rmtree(self.folder)

    def check_letters(self) -> None:
        letters = set()
        for agent in AGENTS:
            for facts in list_letters(f"{self.store}/agents/{agent}/inbox"):
                if facts["type"] != "forged":
                    letters.add(number_of(Path(str(facts["path"])).read_bytes().partition(b"\n")[2]))
        assert letters == self.expected_letters


BusMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
TestBusAgainstTheModel = pytest.mark.timeout(max(60, 2 * EXAMPLES))(BusMachine.TestCase)


@pytest.mark.parametrize("plant", PLANTS)
def test_the_model_finds_the_planted_bug(plant: str) -> None:
    only_look = settings(max_examples=60, stateful_step_count=STEPS, phases=(Phase.generate,), database=None)
    with planted(plant), pytest.raises((AssertionError, MusterError, ExceptionGroup)):
        run_state_machine_as_test(BusMachine, settings=only_look)
