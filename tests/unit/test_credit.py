"""Credit is exact: whatever is sent, taken, acked, killed or evicted, the files never promise more than the inbox's capacity."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes import inspect, layout
from muster.bus.transports.lanes.cursor import CREDIT
from muster.bus.transports.lanes.transport import LanesTransport
from muster.bus.transports.lanes.words import value_of
from muster.core.settings import POLICIES, BusSettings
from muster.errors import InboxFullError
from muster.security.keys import Keyring, load_master

SENDERS = tuple(f"s{number}" for number in range(4))
EXAMPLES = int(os.environ.get("CREDIT_EXAMPLES", "40"))


class CreditMachine(RuleBasedStateMachine):
    """Four senders, one recipient, a small inbox; no loop and no timers, so only bells tell."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="muster-credit-"))
        self.bounds = BusSettings(agents_max=5, inbox_messages_max=60, lane_messages_max=40)
        self.store = create_store(self.folder / "store", self.bounds)
        for agent in ("bob", *SENDERS):
            add_agent(self.store, agent)
        self.master = load_master(self.store)
        self.buses: dict[str, Bus] = {}
        self.held: list[Delivery] = []

    def bus(self, agent: str) -> Bus:
        if agent not in self.buses:
            self.buses[agent] = Bus(LanesTransport(self.store, agent, Keyring.from_master(self.master, agent)))
        return self.buses[agent]

    @rule(sender=st.sampled_from(SENDERS), count=st.integers(1, 50), control=st.booleans())
    def send(self, sender: str, count: int, control: bool) -> None:
        for _ in range(count):
            try:
                self.bus(sender).post("bob", b"", priority="control" if control else "normal")
            except InboxFullError:
                return
            self.the_files_promise_no_more_than_the_capacity()

    @rule(count=st.integers(1, 40))
    def take(self, count: int) -> None:
        for _ in range(count):
            delivery = self.bus("bob").receive_nowait()
            if delivery is None:
                return
            self.held.append(delivery)

    @rule(count=st.integers(1, 40), newest=st.booleans())
    def ack(self, count: int, newest: bool) -> None:
        for _ in range(min(count, len(self.held))):
            self.held.pop(-1 if newest else 0).ack()

    @rule()
    def hear(self) -> None:
        self.bus("bob").transport.on_bell()

    @rule(policy=st.sampled_from(POLICIES))
    def choose(self, policy: str) -> None:
        self.bus("bob").transport.set_overflow(policy)

    @precondition(lambda self: self.buses)
    @rule(pick=st.integers(0, 99))
    def die(self, pick: int) -> None:
        agent = sorted(self.buses)[pick % len(self.buses)]
        self.buses.pop(agent).transport.close()
        if agent == "bob":
            self.held.clear()

    @invariant()
    def the_files_promise_no_more_than_the_capacity(self) -> None:
        floor = self.bounds.credit_floor
        promised, seen, stored = 0, 0, 0
        for view in inspect.lanes_to(self.store, "bob"):
            name = layout.lane_name(view.sender, control=view.control)
            path = self.store / "agents/bob/inbox" / f"{name}.cursor"
            stored += view.depth
            assert view.depth <= self.bounds.lane_messages_max
            if path.exists():
                page = path.read_bytes()
                credit = value_of(int.from_bytes(page[CREDIT * 8 : CREDIT * 8 + 8], "little"))
                assert credit is not None
                assert view.last <= credit, f"{name} stored {view.last} with credit for {credit}"
                promised += max(floor, credit - view.acked_base)
                seen += 1
            else:
                assert view.last <= floor
        promised += floor * (2 * self.bounds.agents_max - seen)
        assert promised <= self.bounds.inbox_messages_max, f"{promised} of {self.bounds.inbox_messages_max} promised"
        assert stored <= self.bounds.inbox_messages_max

    def teardown(self) -> None:
        """Whatever happened: everything accepted is delivered or was evicted, and there is room again."""
        try:
            for bus in self.buses.values():
                bus.transport.close()
            self.buses.clear()
            bob = self.bus("bob")
            while (delivery := bob.receive_nowait()) is not None:
                delivery.ack()
            assert inspect.inbox_depth(self.store, "bob") == 0
            for sender in SENDERS:
                self.bus(sender).post("bob", b"room again")
        finally:
            for bus in self.buses.values():
                bus.transport.close()
            shutil.rmtree(self.folder)


def test_the_sum_of_all_credit_never_exceeds_the_inbox_whatever_dies() -> None:
    run_state_machine_as_test(
        CreditMachine, settings=settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
    )
