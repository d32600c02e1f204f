"""A fleet in one process on virtual time: the real machine, and simulated agents, workers, spawner, lanes and crashes around it.

Everything random comes from one seed. Lanes keep their order, are unbounded and survive every death; what was not acked is delivered
again to the next coordinator. The coordinator may die between any two steps of a turn. `check` holds after every step.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import msgspec

from muster.coordinator import events as ev
from muster.coordinator.machine import Machine
from muster.coordinator.state import load, snapshot
from muster.core.protocol import Assign, Cancel, Drain, RollCall, TaskInput

_facts = msgspec.msgpack.Decoder(list[ev.AnyFact])


class Violated(AssertionError):
    """A promise was broken."""


class Crash(Exception):
    """The coordinator died here."""


class SimAgent:
    """An agent of one incarnation: holds assignments, runs `slots` of them at once, speaks into its lane."""

    def __init__(self, world, name, incarnation, slots):
        self.world, self.name, self.incarnation, self.slots = world, name, incarnation, slots
        self.waiting: list[tuple[int, int]] = []
        self.running: list[tuple[int, int]] = []
        self.finished: set[tuple[int, int]] = set()
        self.draining = False
        self.drained = False
        self.say(("ready", incarnation, slots, [], None))

    def say(self, message):
        self.world.to_coordinator[self.name].append(message)

    def read(self):
        inbox = self.world.to_agent[self.name]
        urgent = [m for m in inbox if not isinstance(m, Assign)]
        if not inbox:
            return
        message = urgent[0] if urgent else inbox[0]
        inbox.remove(message)
        if isinstance(message, Assign):
            self._assigned(message)
        elif isinstance(message, RollCall):
            self.say(("ready", self.incarnation, self.slots, [*self.running, *self.waiting], message.nonce))
        elif isinstance(message, Cancel):
            self._cancel((message.number, message.attempt))
        elif isinstance(message, Drain):
            self.draining = True
            for number, attempt in self.waiting:
                self.say(("refused", number, attempt, self.incarnation, "drain"))
            self.waiting = []
            if message.now:
                for key in list(self.running):
                    self._cancel(key)

    def _assigned(self, message):
        key = (message.number, message.attempt)
        if message.incarnation != self.incarnation:
            self.say(("refused", *key, message.incarnation, "stale"))
        elif self.draining:
            self.say(("refused", *key, self.incarnation, "drain"))
        elif key not in self.waiting and key not in self.running and key not in self.finished:
            self.waiting.append(key)

    def _cancel(self, key):
        if key in self.running:
            self.running.remove(key)
            self.world.live[key[0]].remove((self.name, self.incarnation, key[1]))
        elif key in self.waiting:
            self.waiting.remove(key)
        else:
            return
        self.finished.add(key)
        self.say(("result", *key, self.incarnation, "cancelled"))

    def work(self, rng):
        while self.waiting and len(self.running) < self.slots:
            key = self.waiting.pop(0)
            self.running.append(key)
            self.world.begin(key[0], (self.name, self.incarnation, key[1]))
        if self.running and rng.random() < 0.5:
            key = self.running.pop(0)
            self.finished.add(key)
            self.world.live[key[0]].remove((self.name, self.incarnation, key[1]))
            failed = rng.random() < self.world.failing
            self.world.failures[key[0]] += failed
            self.say(("result", *key, self.incarnation, "failed" if failed else "done"))
        if self.draining and not self.running and not self.waiting and not self.drained:
            self.drained = True
            self.say(("drained", self.incarnation))

    @property
    def holding(self):
        return bool(self.running or self.waiting)


class World:
    """The fleet. `step` does one random thing; `settle` switches faults off and runs to the end."""

    def __init__(self, seed, *, workers=4, agents_per_worker=1, tasks=30, machine=Machine, drains_first=True, **plan):
        self.rng = random.Random(seed)
        self.make, self.drains_first = machine, drains_first
        self.faults, self.failing = True, plan.pop("failing", 0.1)
        names = [f"a-{n}" for n in range(1, workers * agents_per_worker + 1)]
        self.hosts = {f"w-{n + 1}": names[n * agents_per_worker : (n + 1) * agents_per_worker] for n in range(workers)}
        entries = [ev.WorkerPlan(worker, [(agent, "k") for agent in agents]) for worker, agents in self.hosts.items()]
        limits = {"attempts_max": 3, "deaths_max": 10**6, "restarts_max": 10**6, "backoff_s": 0.2, **plan}
        self.plan = ev.Plan(workers=entries, **limits)
        self.slots = self.rng.choice([1, 1, 2])
        self.now = 1000.0
        self.to_coordinator: dict[str, deque[tuple[Any, ...]]] = {name: deque() for name in [*names, "operator"]}
        self.to_agent: dict[str, deque[Any]] = {name: deque() for name in names}
        self.sent_ids: set[str] = set()
        self.alive: dict[str, tuple[int, list[SimAgent]]] = {}
        self.graves: dict[tuple[str, int], bool] = {}
        self.exits: dict[tuple[str, int], int] = {}
        self.control: deque = deque()
        self.log: list[bytes] = []
        self.base: tuple[bytes, int] | None = None
        self.lines: Counter[int] = Counter()
        self.live: dict[int, list] = {number: [] for number in range(1, tasks + 1)}
        self.starts: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.died: Counter[int] = Counter()
        self.coordinators = 0
        self.machine: Machine | None = None
        self.finish: ev.Finish | None = None
        self.submitted: set[int] = set()
        numbers = list(range(1, tasks + 1))
        while numbers:
            size = self.rng.randint(1, 8)
            self.to_coordinator["operator"].append(("submit", numbers[:size]))
            numbers = numbers[size:]
        self.to_coordinator["operator"].append(("end", tasks))
        self.start_coordinator()

    # ------------------------------------------------------------------ what is watched

    def begin(self, number, execution):
        self.live[number].append(execution)
        self.starts[number] += 1

    def check(self):
        for number, executions in self.live.items():
            if len(executions) > 1:
                raise Violated(f"task {number} runs {len(executions)} times at once: {executions}")
        for number, count in self.lines.items():
            if count > 1:
                raise Violated(f"task {number} was recorded {count} times")
        for number, starts in self.starts.items():
            allowed = 1 + self.died[number] + self.failures[number]
            if starts > allowed:
                raise Violated(f"task {number} began {starts} times, {allowed} allowed")
        if self.machine is not None:
            self.check_accounts(self.machine.state)

    def check_accounts(self, state):
        in_queue = Counter(number for queue in state.queues.values() for number in queue)
        held = Counter(number for agent in state.agents.values() for number in agent.held)
        if sum(in_queue.values()) != state.queued or sum(held.values()) != state.held:
            raise Violated("queued or held was miscounted")
        for number, task in state.tasks.items():
            places = (in_queue[number], held[number], int(task.state == "delayed"))
            if sum(places) != 1:
                raise Violated(f"task {number} is in {places} (queued, held, delayed): lost or doubled")

    # ------------------------------------------------------------------ coordinator

    def start_coordinator(self):
        self.coordinators += 1
        state, after = (load(self.base[0]), self.base[1]) if self.base else (None, 0)
        machine = self.make(state)
        records = []
        for logged in self.log[after:]:
            for fact in _facts.decode(logged):
                records += [effect for effect in machine.apply(fact) if isinstance(effect, ev.Record)]
        self.machine = machine
        self.replayed = {record.number: record for record in records}
        self.caught_up = False
        self.unacked = dict.fromkeys(self.to_coordinator, 0)  # taken by this coordinator, at the head of each lane
        alive = [(worker, incarnation, 1, 1) for worker, (incarnation, _) in self.alive.items()]
        # As the spawner's ledger has it: a dead worker counts as alive until its tree is proven gone.
        alive += [
            (worker, incarnation, 1, 1)
            for worker, incarnation in self.graves
            if (worker, incarnation) not in self.exits
        ]
        self.control.clear()
        try:
            facts = []
            for worker in machine.state.workers.values():
                if (
                    worker.state in ("starting", "alive", "dying")
                    and self.alive.get(worker.name, (0,))[0] != worker.incarnation
                ):
                    facts += self.take_all(worker.name)
            if machine.state.life == 0:
                facts.append(ev.FleetStarted(self.now, self.plan))
            else:
                exits = dict(self.exits)
                facts.append(ev.Recovered(self.now, alive, list(exits), self.coordinators - 1))
                for (worker, incarnation), survivors in exits.items():
                    facts.append(ev.WorkerExited(self.now, worker, incarnation, None, 9, survivors))
            for record in records:
                if record.outcome == "dead" and not self.lines[record.number]:
                    self.lines[record.number] += 1
            self.carry_through(facts, [key for key, survivors in self.exits.items() if not survivors])
        except Crash:
            self.machine = None

    def maybe_crash(self):
        if self.faults and self.rng.random() < 0.02:
            raise Crash

    def take_all(self, worker):
        facts = []
        for agent in self.hosts[worker]:
            while self.unacked[agent] < len(self.to_coordinator[agent]):
                facts += self.take(agent)
        return facts

    def take(self, sender):
        message = self.to_coordinator[sender][self.unacked[sender]]
        self.unacked[sender] += 1
        kind, *rest = message
        at = self.now
        if kind == "submit":
            self.submitted.update(rest[0])
            return [ev.TasksSubmitted(at, [TaskInput(n, f"input {n}") for n in rest[0]])]
        if kind == "end":
            return [ev.InputEnded(at, rest[0])]
        if kind == "ready":
            return [ev.AgentReady(at, sender, *rest)]
        if kind == "refused":
            return [ev.TaskRefused(at, sender, *rest)]
        if kind == "drained":
            return [ev.AgentDrained(at, sender, *rest)]
        number, attempt, incarnation, outcome = rest
        before = self.replayed.get(number)
        if before is not None and before.attempt == attempt and before.agent == sender:
            if not self.lines[number]:
                self.lines[number] += 1
            return []
        return [ev.TaskEnded(at, sender, number, attempt, incarnation, outcome, 0)]

    def turn(self):
        facts, seen = [], []
        for _ in range(self.rng.randint(1, 6)):
            lanes = [name for name, lane in self.to_coordinator.items() if len(lane) > self.unacked[name]]
            if lanes:
                facts += self.take(self.rng.choice(lanes))
        while self.control:
            message = self.control.popleft()
            if isinstance(message, ev.WorkerExited):
                taken = self.take_all(message.worker)
                facts += taken if self.drains_first else []
                late = [] if self.drains_first else taken
                facts.append(msgspec.structs.replace(message, at_s=self.now))
                facts += late
                seen.append((message.worker, message.incarnation))
            else:
                facts.append(message)
        assert self.machine is not None, "a dead coordinator has no turn"
        due = self.machine.due_s()
        if due is not None and due <= self.now:
            facts.append(ev.TimePassed(self.now))
        self.carry_through(facts, seen)

    def carry_through(self, facts, seen):
        """One turn as the shell does it, with a possible death between any two steps."""
        machine = self.machine
        assert machine is not None, "a dead coordinator has no turn"
        effects = [effect for fact in facts for effect in machine.apply(fact)]
        self.maybe_crash()
        for cut in range(0, len(facts), 3):  # several records: a crash leaves a prefix
            self.log.append(msgspec.msgpack.encode(facts[cut : cut + 3]))
            self.maybe_crash()
        for record in effects:
            if isinstance(record, ev.Record):
                self.lines[record.number] += 1
        self.maybe_crash()
        for effect in effects:
            self.carry_out(effect)
            self.maybe_crash()
        for sender, count in self.unacked.items():
            for _ in range(count):
                self.to_coordinator[sender].popleft()
            self.unacked[sender] = 0
            self.maybe_crash()
        for key in seen:
            self.exits.pop(key, None)
        self.caught_up |= not any(self.to_coordinator.values())
        if self.caught_up and self.rng.random() < 0.1:
            self.base = (snapshot(machine.state), len(self.log))

    def carry_out(self, effect):
        if isinstance(effect, ev.Post):
            if effect.message_id is None or effect.message_id not in self.sent_ids:
                if effect.message_id is not None:
                    self.sent_ids.add(effect.message_id)
                self.to_agent[effect.to].append(effect.body)
        elif isinstance(effect, ev.SpawnWorker):
            agents = [SimAgent(self, name, effect.incarnation, self.slots) for name in self.hosts[effect.worker]]
            assert effect.worker not in self.alive, "a worker was started twice"
            self.alive[effect.worker] = (effect.incarnation, agents)
            self.control.append(ev.WorkerStarted(self.now, effect.worker, effect.incarnation, 1, 1))
        elif isinstance(effect, ev.KillWorker):
            if self.alive.get(effect.worker, (0,))[0] == effect.incarnation:
                self.kill(effect.worker)
        elif isinstance(effect, ev.Finish):
            self.finish = effect

    # ------------------------------------------------------------------ workers and the spawner

    def kill(self, worker):
        """SIGKILL: what ran goes on running until the spawner has found and killed it."""
        incarnation, agents = self.alive.pop(worker)
        for agent in agents:
            for number, _ in agent.running:
                self.died[number] += 1
        self.graves[worker, incarnation] = False

    def bury(self, key):
        """The spawner: report survivors first, sometimes; then prove the whole tree dead."""
        worker, incarnation = key
        if self.faults and not self.graves[key] and self.rng.random() < 0.3:
            self.graves[key] = True
            self.tell_exit(worker, incarnation, 1)
            return
        for executions in self.live.values():
            executions[:] = [e for e in executions if not (e[0] in self.hosts[worker] and e[1] == incarnation)]
        del self.graves[key]
        self.tell_exit(worker, incarnation, 0)

    def tell_exit(self, worker, incarnation, survivors):
        self.exits[worker, incarnation] = survivors
        if self.machine is not None:
            self.control.append(ev.WorkerExited(self.now, worker, incarnation, None, 9, survivors))

    # ------------------------------------------------------------------ time

    def step(self):
        rng = self.rng
        dice = rng.random()
        try:
            if self.machine is None:
                if not self.faults or dice < 0.3:
                    self.start_coordinator()
            elif dice < 0.4 or not self.faults:
                self.turn()
        except Crash:
            self.machine = None
        for worker, (_, agents) in list(self.alive.items()):
            if self.faults and rng.random() < 0.02:
                self.kill(worker)
                continue
            for agent in agents:
                if rng.random() < 0.6:
                    agent.read()
                if rng.random() < 0.6:
                    agent.work(rng)
            if all(agent.drained for agent in agents):
                incarnation = self.alive.pop(worker)[0]
                self.graves[worker, incarnation] = False
        for key in list(self.graves):
            # What resists SIGKILL resists for a while: long enough for a hasty coordinator to give its task to somebody else.
            if rng.random() < (0.05 if self.graves[key] and self.faults else 0.4):
                self.bury(key)
        self.now += rng.random() * 0.05
        self.check()

    def settle(self, steps_max=5000):
        """Faults off: everything must come to its end."""
        self.faults, self.failing = False, 0.0
        for _ in range(steps_max):
            self.step()
            if self.finish is not None and self.machine is not None:
                return
        raise Violated(f"no end after {steps_max} quiet steps: {self.machine.state.phase if self.machine else 'dead'}")
