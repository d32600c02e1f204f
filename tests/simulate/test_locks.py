"""Locks on virtual time: holders and a coordinator are stopped and killed at will, clocks jump, and never may two act at once.

The machine and its judges are the real ones. A holder is played as `muster.bus.lease` writes it down: it counts its time from the moment
in which it stores a renewal, and acts only while that is younger than the lease. Lanes keep their order and survive every death.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from muster.coordinator import events as ev
from muster.coordinator.asks import Ask, refusal
from muster.coordinator.locks import facts as lock_facts
from muster.coordinator.locks.asks import RULES
from muster.coordinator.locks.table import LockTable
from muster.coordinator.machine import Machine
from muster.coordinator.state import State, load, snapshot
from muster.core.globs import conflict
from muster.core.protocol import Done, LockAcquire, LockRelease, LockRenew
from muster.errors import MusterError

TTL_S = 3.0
#: After so long without an answer a holder asks again, though some take longer.
AGAIN_S, SLOWEST_S = 1.0, 2.5
#: Time between a death and its proof.
PROOF_S = 0.05
NAMES = (["a"], ["b"], ["a", "b"], ["src/*"], ["src/x"], ["src/**", "a"])
_facts = msgspec.msgpack.Decoder(list[ev.AnyFact])


class Crash(Exception):
    """The coordinator died here."""


def always(done: Done) -> Callable[[State], Done]:
    return lambda _state: done


class Holder:
    """One process that locks, does something, lets go, and begins again."""

    def __init__(self, world: World, name: str, pid: int) -> None:
        self.world, self.name, self.pid = world, name, pid
        self.stopped_until_s = self.hurry = 0.0
        self.idle()

    def idle(self) -> None:
        self.phase = "idle"
        self.lock_id, self.token, self.names = "", 0, ["?"]
        self.stored_s = self.asked_s = 0.0
        self.ask_id = ""

    @property
    def may_act(self) -> bool:
        """Whether it runs and believes that it holds the lock."""
        now_s = self.world.now_s
        return self.phase == "held" and now_s >= self.stopped_until_s and now_s - self.stored_s <= TTL_S

    def ask(self, body: Any) -> None:
        self.ask_id = self.world.send(self.name, body)
        self.asked_s = self.world.now_s

    def acquire(self, *, phase: str) -> None:
        """`phase`: "asking" for the first time, "waiting" with patience, "again" when an answer may have been lost."""
        self.phase, patient = phase, phase == "waiting"
        body = LockAcquire(
            lock_id=self.lock_id,
            names=self.names,
            ttl_s=TTL_S,
            wait_s=None,
            patient=patient,
            pid=self.pid,
            start_time=1,
        )
        self.ask(body)

    def hear(self, ask_id: str, done: Done) -> None:
        if ask_id != self.ask_id:
            return
        self.ask_id = ""
        if self.phase == "held":
            if not done.ok:
                self.idle()
        elif not done.ok:
            self.idle()
        elif self.phase == "confirming":
            self.phase, self.token = "held", done.facts["token"]
        elif done.facts["state"] == "waiting":
            self.acquire(phase="waiting")
        elif self.phase == "asking":
            self.phase, self.stored_s, self.token = "held", self.asked_s, done.facts["token"]
        else:
            self.confirm()

    def confirm(self) -> None:
        self.phase, self.stored_s = "confirming", self.world.now_s
        self.ask(LockRenew(lock_id=self.lock_id))

    def live(self, rng: random.Random) -> None:
        now_s = self.world.now_s
        if now_s < self.stopped_until_s:
            return
        late = now_s - self.asked_s > AGAIN_S
        if self.phase == "idle" and rng.random() < 0.2:
            self.lock_id, self.names = f"{self.name}-{self.world.number():016d}", rng.choice(NAMES)
            self.hurry = rng.choice([0.1, 0.003])
            self.acquire(phase="asking")
        elif self.phase in ("asking", "waiting", "again") and late:
            self.acquire(phase="again")
        elif self.phase == "confirming" and late:
            self.confirm()
        elif self.phase == "held" and now_s - self.stored_s > TTL_S:
            self.idle()
        elif self.phase == "held" and now_s - self.asked_s > TTL_S / 3:
            self.stored_s = now_s
            self.ask(LockRenew(lock_id=self.lock_id))
        elif self.phase == "held" and rng.random() < self.hurry:
            self.world.send(self.name, LockRelease(lock_id=self.lock_id))
            self.idle()


class World:
    """A coordinator, holders, and what can happen to them."""

    def __init__(self, seed: int, holders: int = 6) -> None:
        self.rng = random.Random(seed)
        self.now_s, self.skew_s = 1000.0, 0.0
        self._number = 0
        self.lanes: dict[str, list[tuple[str, Any]]] = {}
        self.log: list[bytes] = []
        self.machine: Machine | None = None
        self.stopped_until_s = 0.0
        self.watched: set[int] = set()
        self.unheard: dict[str, int] = {}
        self.dead: list[tuple[float, int]] = []
        self.letters: list[tuple[float, str, str, Done]] = []
        self.holders = [Holder(self, f"p{n}", self.number()) for n in range(holders)]
        self.greatest: dict[str, int] = {}
        self.grants = 0
        self.faults, self.are_silent = True, False
        self.boot()

    def number(self) -> int:
        self._number += 1
        return self._number

    def send(self, agent: str, body: Any) -> str:
        ask_id = f"ask-{self.number()}"
        self.lanes.setdefault(agent, []).append((ask_id, body))
        return ask_id

    # ------------------------------------------------------------------ the coordinator

    def boot(self) -> None:
        """Replay, then go on, on a clock that may have jumped ahead."""
        machine = Machine()
        for raw in self.log:
            for fact in _facts.decode(raw):
                machine.apply(fact)
        if self.log and self.rng.random() < 0.3:
            machine = Machine(load(snapshot(machine.state)))
        self.machine = machine
        if self.faults and self.rng.random() < 0.5:
            self.skew_s += self.rng.choice([1.0, 60.0, 86_400.0])
        first = machine.state.life == 0
        beginning: ev.AnyFact = (
            ev.FleetStarted(self.clock_s, ev.Plan(workers=[], run=False))
            if first
            else ev.Recovered(self.clock_s, [], [], 1)
        )
        state = machine.state
        self.commit([beginning], [])
        self.watched = {lock.pid for lock in state.locks.locks.values() if lock_facts.is_watched(state, lock)}
        for pid in list(self.watched):
            if pid not in {holder.pid for holder in self.holders}:
                self.dead.append((self.now_s, pid))

    @property
    def clock_s(self) -> float:
        assert self.machine is not None
        return max(self.now_s + self.skew_s, self.machine.state.now_s)

    def turn(self) -> None:
        if self.machine is None or self.now_s < self.stopped_until_s:
            return
        state = self.machine.state
        facts: list[ev.AnyFact] = []
        open_asks: list[tuple[str, str, Callable[[State], msgspec.Struct | None]]] = []
        for agent, lane in self.lanes.items():
            self.unheard[agent] = self.unheard.get(agent, 0) + 1
            if self.unheard[agent] < 3 and self.rng.random() < 0.3:
                continue  # its bell has not been heard yet
            self.unheard[agent] = 0
            for ask_id, body in lane[: self.rng.randint(1, 4)]:
                try:
                    answer = RULES[type(body)].judge(state, body, Ask(agent, ask_id, self.clock_s))
                    facts += answer.facts
                    open_asks.append((agent, ask_id, answer.reply))
                except MusterError as error:
                    done = refusal(error)
                    open_asks.append((agent, ask_id, always(done)))
        for at_s, pid in list(self.dead):
            if at_s + PROOF_S <= self.now_s:
                self.dead.remove((at_s, pid))
                if pid in self.watched:
                    facts.append(ev.HoldersGone(self.clock_s, [(pid, 1)]))
        due_s = self.machine.due_s()
        if due_s is not None and due_s <= self.clock_s:
            facts.append(ev.TimePassed(self.clock_s))
        try:
            self.commit(facts, open_asks)
        except Crash:
            self.machine = None

    def commit(self, facts: list[ev.AnyFact], open_asks: list[Any]) -> None:
        assert self.machine is not None
        effects = [effect for fact in facts for effect in self.machine.apply(fact)]
        self.may_crash()
        self.log.append(msgspec.msgpack.encode(facts))
        self.may_crash()
        for effect in effects:
            if isinstance(effect, ev.WatchHolder):
                self.watched.add(effect.pid)
                if effect.pid not in {holder.pid for holder in self.holders}:
                    self.dead.append((self.now_s, effect.pid))
            elif isinstance(effect, ev.Noted) and effect.event == "lock.expired":
                robbed = [one.name for one in self.holders if one.may_act and one.token == effect.facts["token"]]
                assert not robbed, f"{robbed} had stored a renewal in time"
            elif isinstance(effect, ev.Post) and effect.answers:
                assert isinstance(effect.body, Done)
                self.reply(effect.to, effect.answers, effect.body)
        for agent, ask_id, reply in open_asks:
            self.may_crash()
            body = reply(self.machine.state)
            if body is not None:
                self.reply(agent, ask_id, body)
            self.lanes[agent].pop(0)

    def reply(self, agent: str, ask_id: str, done: Done) -> None:
        slowest_s = 0.1 if self.rng.random() < 0.7 else SLOWEST_S
        self.letters.append((self.now_s + self.rng.random() * slowest_s, agent, ask_id, done))

    def may_crash(self) -> None:
        if self.faults and self.log and self.rng.random() < 0.004:
            raise Crash

    # ------------------------------------------------------------------ what happens

    def step(self) -> None:
        rng = self.rng
        self.now_s += rng.random() * 0.05
        if self.machine is None and rng.random() < 0.1:
            try:
                self.boot()
            except Crash:
                self.machine = None
        if self.faults:
            self.harm()
        self.turn()
        for letter in [one for one in self.letters if one[0] <= self.now_s]:
            holder = next(one for one in self.holders if one.name == letter[1])
            if self.now_s >= holder.stopped_until_s:
                self.letters.remove(letter)
                holder.hear(letter[2], letter[3])
        for holder in self.holders if not self.are_silent else ():
            holder.live(rng)
        self.check()

    def harm(self) -> None:
        rng = self.rng
        at = rng.randrange(len(self.holders))
        if rng.random() < 0.002:
            self.machine = None
        if rng.random() < 0.003 and self.now_s > self.stopped_until_s:
            self.stopped_until_s = self.now_s + rng.random() * 3 * TTL_S
        if rng.random() < 0.005:
            self.holders[at].stopped_until_s = self.now_s + rng.random() * 2 * TTL_S
        if rng.random() < 0.005:
            self.dead.append((self.now_s, self.holders[at].pid))
            self.holders[at] = Holder(self, self.holders[at].name, self.number())

    def check(self) -> None:
        acting = [holder for holder in self.holders if holder.may_act]
        for at, one in enumerate(acting):
            for other in acting[:at]:
                both = any(conflict(ours, theirs) for ours in one.names for theirs in other.names)
                assert not both, f"{one.name} and {other.name} act at once on {one.names} and {other.names}"
        for holder in acting:
            for name in holder.names:
                assert holder.token >= self.greatest.get(name, 0), f"{holder.name} acts with an old token on {name}"
                self.grants += holder.token > self.greatest.get(name, 0)
                self.greatest[name] = holder.token


@pytest.mark.parametrize("seed", range(12))
def test_nobody_acts_beside_another_whatever_is_stopped_or_dies_and_then_all_have_their_turn(seed: int) -> None:
    world = World(seed)
    try:
        for _ in range(3000):
            world.step()
        world.faults = False
        for _ in range(1500):
            world.step()
        assert world.grants >= 5, "nothing happened that could go wrong"
        world.are_silent = True
        waiting = {lock.agent for lock in world.machine.state.locks.locks.values()} if world.machine else set()
        for _ in range(int(len(waiting) * (TTL_S + 1) / 0.02) + 500):
            world.step()
        assert world.machine is not None
        assert len(world.machine.state.locks) == 0, "who says nothing any more holds and wants nothing any more"
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


# --------------------------------------------------------------------------- bugs that it finds


def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_facts, "SECOND_LOOK_S", 0.0)


def no_new_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_facts, "begin_again", lambda _state, _out: None)


def no_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm(self: Holder) -> None:
        self.phase, self.stored_s = "held", self.world.now_s

    monkeypatch.setattr(Holder, "confirm", confirm)


def no_doubt_about_old_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that takes the answer to a repeated ask for a new grant."""
    acquire = Holder.acquire

    def sure(self: Holder, *, phase: str) -> None:
        acquire(self, phase="asking" if phase == "again" else phase)

    monkeypatch.setattr(Holder, "acquire", sure)


def late_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that counts its time from the answer instead of from what it stored."""
    hear = Holder.hear

    def hear_late(self: Holder, ask_id: str, done: Done) -> None:
        hear(self, ask_id, done)
        if self.phase == "held":
            self.stored_s = self.world.now_s

    monkeypatch.setattr(Holder, "hear", hear_late)


def overtaking(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LockTable._last_blocker

    def blocker(table: LockTable, lock: Any) -> int | None:
        return None if lock.place % 5 == 0 else real(table, lock)

    monkeypatch.setattr(LockTable, "_last_blocker", blocker)


@pytest.mark.parametrize(
    "bug", [no_second_look, no_new_beginning, no_confirmation, no_doubt_about_old_asks, late_counting, overtaking]
)
def test_a_planted_bug_is_found(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    for seed in range(40):
        world = World(seed)
        try:
            for _ in range(3000):
                world.step()
        except (AssertionError, KeyError):
            return
    pytest.fail(f"{bug.__name__} was not found in 40 seeds")
