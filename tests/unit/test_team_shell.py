"""A team's coordinator on a real bus, below a root played by the test: what is said upward, once, also by the next one after a crash."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tests.unit.coordinator_world import CoordinatorWorld

from muster.bus.bus import Bus
from muster.coordinator.shell import Shell
from muster.coordinator.upstream import Upstream
from muster.core.protocol import Assign, Drain, Drained, Ready, Refused, Result, RollCall, TeamAdopt
from muster.core.spec import TeamsSpec


class TeamWorld(CoordinatorWorld):
    """The team has the agents w-1 and w-2; a second one exists on paper."""

    name = "team-1"

    def __init__(self, tmp_path):
        super().__init__(tmp_path, agents=4, run=False, teams=TeamsSpec(agents_per_team=2))
        self.heard: list[object] = []

    async def reign(self):
        """Take the root's place, and read what the team says."""
        self.root = await Bus.open(self.store, "coordinator", self.keyring("coordinator"))
        self.tasks.append(asyncio.create_task(self._listen()))

    async def _listen(self):
        structs = {"agent.ready": Ready, "task.result": Result, "task.refused": Refused, "agent.drained": Drained}
        while True:
            delivery = await self.root.receive()
            assert delivery is not None, "a wait without a limit ends with a delivery"
            if delivery.type in structs:
                assert delivery.sender == "team-1"
                self.heard.append(delivery.decode(structs[delivery.type]))
            delivery.ack()

    def assign(self, *numbers, attempt=1):
        for number in numbers:
            body = Assign(number=number, attempt=attempt, incarnation=0, input=f"i{number}")
            self.root.post_struct("team-1", body, message_id=f"assign-{number}-{attempt}-0")

    def ends(self):
        return Counter((one.number, one.attempt, one.outcome) for one in self.heard if isinstance(one, Result))

    def readies(self):
        return [one for one in self.heard if isinstance(one, Ready)]

    async def close(self):
        await super().close()
        await self.root.close()


@pytest.fixture
async def world(tmp_path):
    one = TeamWorld(tmp_path)
    await one.reign()
    yield one
    await one.close()


async def test_a_team_says_what_it_can_take_whenever_that_changes(world):
    world.start()
    await world.until(lambda: [ready.slots for ready in world.readies()][-1:] == [2], "both agents are there")
    slots = [ready.slots for ready in world.readies()]
    assert slots[0] in (0, 1)
    assert slots == sorted(set(slots)), "said once each"
    assert world.readies()[0].incarnation == 1
    await world.kill("w-2")
    await world.until(lambda: 1 in [ready.slots for ready in world.readies()][len(slots) :], "one is gone")
    await world.until(lambda: world.readies()[-1].slots == 2, "and back")


async def test_what_an_agent_says_goes_up_as_it_is_with_its_name(world):
    world.start()
    world.work = lambda assign: {"stdout": b"out\n", "exit_status": 3, "outcome": "failed"}
    world.assign(7, attempt=4)
    await world.until(lambda: world.ends())
    (result,) = [one for one in world.heard if isinstance(one, Result)]
    assert (result.number, result.attempt, result.outcome, result.incarnation) == (7, 4, "failed", 0)
    assert (result.stdout, result.exit_status) == (b"out\n", 3)
    assert result.agent in ("w-1", "w-2")


async def test_the_death_of_an_agent_goes_up_with_its_evidence(world):
    world.start()
    world.work = lambda assign: None
    world.assign(7)
    await world.until(lambda: any(agent.holding for agent, _ in world.agents.values()))
    (holder,) = [name for name, (agent, _) in world.agents.items() if agent.holding]
    await world.kill(holder)
    await world.until(lambda: world.ends())
    (result,) = [one for one in world.heard if isinstance(one, Result)]
    assert (result.outcome, result.agent) == ("died", holder)
    assert f"on {holder}: its worker died by signal 9" in str(result.error)


class Died(Exception):
    pass


STEPS = {Upstream: ("record", "say", "retry", "after_turn"), Shell: ("post", "_carry_out")}
#: The n-th call of a step; there are only so many of the rarer ones.
DEATHS = [
    (owner, step, when)
    for owner, steps in STEPS.items()
    for step in steps
    for when in ((1, 2) if step == "_carry_out" else (1, 2, 4))
]


@pytest.mark.parametrize(("owner", "step", "when"), DEATHS)
async def test_a_team_that_dies_in_a_turn_is_followed_by_one_that_says_every_end_once(
    world, monkeypatch, owner, step, when
):
    real, calls = getattr(owner, step), 0

    def dying(self, *args):
        nonlocal calls
        calls += 1
        if calls == when:
            raise Died
        return real(self, *args)

    monkeypatch.setattr(owner, step, dying)
    first = world.start()
    world.assign(*range(1, 31))
    with pytest.raises(Died):
        await asyncio.wait_for(first, 10)
    monkeypatch.undo()
    world.start()
    await world.until(lambda: len(world.ends()) == 30, "every attempt has ended")
    assert set(world.ends()) == {(number, 1, "done") for number in range(1, 31)}
    assert set(world.ends().values()) == {1}, "each was said once"
    assert Counter(key for agent, _ in world.agents.values() for key in agent.seen) == Counter(
        {(number, 1): 1 for number in range(1, 31)}
    ), "no agent was given what another one had"


async def test_an_end_without_a_result_that_a_dead_coordinator_did_not_say_is_said_by_the_next(world, monkeypatch):
    first = world.start()
    world.work = lambda assign: None
    world.assign(7)
    await world.until(lambda: any(agent.holding for agent, _ in world.agents.values()))
    (holder,) = [name for name, (agent, _) in world.agents.items() if agent.holding]
    monkeypatch.setattr(Upstream, "_say_end", lambda self, record: (_ for _ in ()).throw(Died))
    await world.kill(holder)
    with pytest.raises(Died):
        await asyncio.wait_for(first, 10)
    monkeypatch.undo()
    world.start()
    await world.until(lambda: world.ends())
    assert world.ends() == Counter({(7, 1, "died"): 1})


async def test_a_result_that_was_said_but_not_acked_before_a_death_is_not_said_again(world, monkeypatch):
    first = world.start()
    real = Upstream.say

    def dying(self, body, message_id=None, delivery=None):
        real(self, body, message_id, None)
        if delivery is not None:
            raise Died

    monkeypatch.setattr(Upstream, "say", dying)
    world.assign(7)
    with pytest.raises(Died):
        await asyncio.wait_for(first, 10)
    monkeypatch.undo()
    world.start()
    world.assign(8)
    await world.until(lambda: (8, 1, "done") in world.ends())
    assert world.ends() == Counter({(7, 1, "done"): 1, (8, 1, "done"): 1})


async def test_a_roll_call_of_the_root_is_answered_with_what_the_team_holds(world):
    world.start()
    world.work = lambda assign: None
    world.assign(1, 2, 3)
    await world.until(lambda: sum(len(agent.holding) for agent, _ in world.agents.values()) == 2)
    world.root.post_struct("team-1", RollCall(nonce=5), priority="control")
    await world.until(lambda: world.readies()[-1].nonce == 5)
    assert sorted(world.readies()[-1].holding) == [(1, 1), (2, 1), (3, 1)]


async def test_orders_are_believed_from_the_root_alone(world):
    world.start()
    await world.until(lambda: "w-1" in world.agents)
    bus = await Bus.open(world.store, "operator", world.keyring("operator"))
    orders = [Assign(number=1, attempt=1, incarnation=0, input=1), Drain(now=True), RollCall(nonce=1)]
    receipts = [bus.post_struct("team-1", order) for order in orders]
    receipts.append(bus.post("team-1", {"tasks": []}, type="task.submit"))
    receipts.append(bus.post("team-1", {"mode": "now"}, type="fleet.stop"))
    await world.until(lambda: all(receipt.state == "dead" for receipt in receipts), "all are refused")
    await bus.close()
    assert world.ends() == Counter()


async def test_a_drained_team_hands_back_what_never_began_says_goodbye_and_ends(world):
    coordinator = world.start()
    world.work = lambda assign: None
    world.assign(1, 2, 3, 4)
    await world.until(lambda: world.readies() and sum(len(a.holding) for a, _ in world.agents.values()) == 2)
    world.root.post_struct("team-1", Drain(deadline_s=5.0), priority="control")
    assert await asyncio.wait_for(coordinator, 10) == 0
    await world.until(lambda: isinstance(world.heard[-1], Drained))
    assert {one.number for one in world.heard if isinstance(one, Refused)} == {3, 4}
    assert set(world.ends()) == {(1, 1, "cancelled"), (2, 1, "cancelled")}
    assert world.finished is None, "only the root says that the fleet is done"


async def test_a_worker_given_by_the_root_is_started_above_its_last_incarnation(world):
    world.start()
    adopt = TeamAdopt(worker="w-3", agents=[("w-3", "w")], incarnation=4)
    world.root.post_struct("team-1", adopt, message_id="adopt-w-3-4")
    await world.until(lambda: world.alive.get("w-3") == 5)
    await world.until(lambda: world.readies()[-1].slots == 3)
