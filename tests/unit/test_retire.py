"""Retirement with messages pending in either direction: each is read, or a dead letter that its sender hears of; nothing else happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, roster
from muster.bus.transports.lanes import inspect, retire
from muster.bus.transports.lanes.deadletters import letters_in
from muster.bus.transports.lanes.fsck.store import check_store
from muster.bus.transports.lanes.retire import retire_agent
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import IdentityBusyError, InvalidNameError, MusterError, UnknownAgentError
from muster.security.keys import Keyring, load_master


class Yard:
    """A store with three agents; `old` is the one that goes."""

    def __init__(self, store: Path) -> None:
        self.store = create_store(store)
        self.buses: list[Bus] = []
        for agent in ("old", "ann", "ben"):
            add_agent(self.store, agent)

    def bus(self, agent: str) -> Bus:
        bus = Bus(LanesTransport(self.store, agent, Keyring.from_master(load_master(self.store), agent)))
        self.buses.append(bus)
        return bus

    def bodies(self, agent: str) -> list[Any]:
        bus, bodies = self.bus(agent), []
        while (delivery := bus.receive_nowait()) is not None:
            bodies.append(delivery.body)
            delivery.ack()
        bus.transport.close()
        return bodies

    def letters(self, agent: str = "old") -> list[tuple[int, str]]:
        found = letters_in(f"{self.store}/agents/{agent}/inbox")
        return sorted((letter.seq, str((letter.facts or {})["reason"])) for letter in found)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path / "fleet")
    yield made
    for bus in made.buses:
        bus.transport.close()


def pending(yard: Yard) -> list[Any]:
    """Messages in every state, in both directions; the receipts of those sent to `old`."""
    old, ann = yard.bus("old"), yard.bus("ann")
    receipts = [ann.post("old", n) for n in range(6)]
    first = old.receive_nowait()
    assert first is not None
    first.ack()
    assert old.receive_nowait() is not None  # in hand when it ends
    receipts.append(ann.post("old", "urgent", priority="control"))
    for n in range(3):
        old.post("ben", n)
    old.post("ben", "urgent", priority="control")
    old.transport.close()
    return receipts


def test_what_waits_for_it_becomes_dead_letters_and_its_senders_are_told(yard: Yard) -> None:
    receipts = pending(yard)
    done = retire_agent(yard.store, "old")
    assert (done.letters, done.left) == (6, 0)
    assert [receipt.state for receipt in receipts] == ["acked", *["dead"] * 6]
    assert yard.letters() == sorted([*((seq, "retired") for seq in range(2, 7)), (1, "retired")])
    assert "old" not in roster(yard.store)


def test_nobody_can_write_to_it_any_more(yard: Yard) -> None:
    ann = yard.bus("ann")
    ann.post("old", "before")
    retire_agent(yard.store, "old")
    with pytest.raises(UnknownAgentError):
        ann.post("old", "over an open lane")
    with pytest.raises(UnknownAgentError):
        yard.bus("ben").post("old", "over a new one")
    assert inspect.inbox_depth(yard.store, "old") == 0


def test_what_it_has_sent_is_still_read_by_whoever_comes_later_and_then_its_lanes_go(yard: Yard) -> None:
    pending(yard)
    assert retire_agent(yard.store, "old").waiting == {"ben": 4}
    assert yard.bodies("ben") == ["urgent", 0, 1, 2]
    assert retire_agent(yard.store, "old").waiting == {}
    assert os.listdir(yard.store / "agents/old/outbox") == []
    assert [finding.text for finding in check_store(yard.store) if finding.severity != "notice"] == []


def test_a_living_identity_is_not_retired(yard: Yard) -> None:
    old, ann = yard.bus("old"), yard.bus("ann")
    receipt = ann.post("old", "work")
    with pytest.raises(IdentityBusyError):
        retire_agent(yard.store, "old")
    assert receipt.state == "stored"
    assert "old" in roster(yard.store)
    delivery = old.receive_nowait()
    assert delivery is not None
    delivery.ack()
    assert receipt.state == "acked"


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        ("nobody", UnknownAgentError),
        ("coordinator", InvalidNameError),
        ("../old", InvalidNameError),
        ("", InvalidNameError),
    ],
)
def test_what_is_no_agent_is_refused(yard: Yard, agent: str, error: type[MusterError]) -> None:
    before = sorted(path.name for path in yard.store.rglob("*"))
    with pytest.raises(error):
        retire_agent(yard.store, agent)
    assert sorted(path.name for path in yard.store.rglob("*")) == before


def test_the_name_can_be_used_again(yard: Yard) -> None:
    pending(yard)
    retire_agent(yard.store, "old")
    add_agent(yard.store, "old")
    ann = yard.buses[1]
    assert yard.bodies("old") == [], "the new holder got a message of the old one"
    for n in range(3):
        ann.post("old", f"new {n}")
    again = yard.bus("old")
    again.post("ben", "hello again")
    again.transport.close()
    assert yard.bodies("old") == ["new 0", "new 1", "new 2"]
    assert yard.bodies("ben") == ["urgent", 0, 1, 2, "hello again"]
    assert retire_agent(yard.store, "old").letters == 0


class Died(Exception):
    """The process ended here."""


def dying_at(step: int, call: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """`call`, but the process ends before its call number `step`; and the count of calls."""
    calls = [0]

    def counted(*args: Any, **more: Any) -> Any:
        if calls[0] == step:
            raise Died
        calls[0] += 1
        return call(*args, **more)

    return counted, calls


STEPS = [
    *(("rename", step) for step in range(3)),
    *(("kill", step) for step in range(6)),
    ("_grant_nothing", 0),
    ("reclaim_lanes", 0),
    ("rmtree", 0),
]


@pytest.mark.parametrize(("what", "step"), STEPS)
def test_a_crash_at_any_step_leaves_what_the_next_call_finishes(
    yard: Yard, what: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts = pending(yard)
    assert yard.bodies("ben") == ["urgent", 0, 1, 2]  # so that lanes are there to be reclaimed
    owner: Any = {"rename": os, "kill": LanesTransport, "rmtree": shutil}.get(what, retire)
    with monkeypatch.context() as patch:
        patch.setattr(owner, what, dying_at(step, getattr(owner, what))[0])
        with pytest.raises(Died):
            retire_agent(yard.store, "old")
    states = [receipt.state for receipt in receipts]
    assert all(state in ("acked", "stored", "taken", "dead") for state in states)
    retire_agent(yard.store, "old")
    assert [receipt.state for receipt in receipts] == ["acked", *["dead"] * 6]
    assert len(yard.letters()) == 6
    assert os.listdir(yard.store / "agents/old/outbox") == []
    assert "old" not in roster(yard.store)
    assert [finding.text for finding in check_store(yard.store) if finding.severity != "notice"] == []


def test_fsck_finishes_what_was_stored_at_the_instant_of_a_retirement(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending(yard)
    with monkeypatch.context() as patch:
        patch.setattr(LanesTransport, "kill", dying_at(2, LanesTransport.kill)[0])
        with pytest.raises(Died):
            retire_agent(yard.store, "old")
    (found,) = (finding for finding in check_store(yard.store, repair=True) if finding.severity == "damage")
    assert "retired, and 4 messages wait" in found.text
    assert found.outcome == "repaired"
    assert len(yard.letters()) == 6
    assert [finding.text for finding in check_store(yard.store) if finding.severity != "notice"] == []


def test_without_room_for_a_letter_what_waits_stays(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = pending(yard)
    with monkeypatch.context() as patch:
        patch.setattr(LanesTransport, "kill", lambda *_args: False)
        with pytest.raises(MusterError, match="no room"):
            retire_agent(yard.store, "old")
    assert [receipt.state for receipt in receipts] == ["acked", "taken", *["stored"] * 4, "taken"]
    assert retire_agent(yard.store, "old").letters == 6
