"""What must hold, whatever happens: looked at with every decision of the coordinator and every act of an agent.

The watch knows the truth (which process lives, what really runs) and compares it with what the coordinator believes. A broken rule ends the
run with `Violated`; its `rule` is one of the names in docs/simulation.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muster.coordinator import events as ev
from muster.coordinator import state as st
from muster.coordinator.state import Agent, State, load, snapshot
from muster.coordinator.tasks import ASSIGNED, CODE, DELAYED, DONE, NUMBER_MASK, QUEUED, UNKNOWN
from muster.core.globs import conflict
from muster.core.names import COORDINATOR
from muster.core.protocol import Assign, Result, Submit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.coordinator.machine import Machine
    from muster.core.message import Message
    from muster.testing.simulator.clients import LockClient
    from muster.testing.simulator.world import World


class Violated(AssertionError):  # noqa: N818 -- a promise was, which is the point
    """A promise was broken."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(eq=False, slots=True)
class Execution:
    """A task that really runs: from the start of its process tree until the last of it is gone."""

    number: int
    attempt: int
    agent: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.number}.{self.attempt} on {self.agent}/{self.incarnation}"


class Watch:
    """All rules of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.live: dict[int, list[Execution]] = {}
        #: How each attempt really ended, by (number, attempt).
        self.outcomes: dict[tuple[int, int], str] = {}
        self.done: set[int] = set()
        self.starts: Counter[int] = Counter()
        #: Starts that a task may have beyond the first: failures, deaths, cancellations.
        self.excuses: Counter[int] = Counter()
        self.lines: Counter[int] = Counter()
        #: Who was last given each attempt, by coordinator.
        self._given: dict[str, dict[tuple[int, int], tuple[str, int]]] = {}
        #: What was assigned before the fact that is being decided on: number -> attempt.
        self._assigned_before: dict[int, int] = {}
        #: When tasks were taken in, on the clock of the facts.
        self._submitted_s: dict[int, float] = {}
        self._locked: list[LockClient] = []
        self._tokens: dict[str, int] = {}
        #: Living processes of workers, and the highest incarnation ever forked.
        self.alive: dict[str, int] = {}
        self.highest: dict[str, int] = {}
        self._unsaid: dict[tuple[int, int], Execution] = {}
        self.decisions = 0
        self.finish: ev.Finish | None = None
        self.retries: dict[int, int] = {}

    def fail(self, rule: str, text: str) -> None:
        """Raises Violated."""
        raise Violated(rule, text)

    # ------------------------------------------------------------------ the truth

    def began(self, execution: Execution) -> None:
        """An agent started what a task runs."""
        number = execution.number
        self._world.tell(execution.agent, f"begins {execution}")
        running = self.live.setdefault(number, [])
        running.append(execution)
        if len(running) > 1:
            self.fail("one-at-a-time", f"task {number} runs twice: {', '.join(map(str, running))}")
        self.starts[number] += 1
        if self.starts[number] > 1 + self.excuses[number]:
            self.fail(
                "executions", f"task {number} began {self.starts[number]} times, {1 + self.excuses[number]} allowed"
            )
        for needed in self._world.tasks[number].after:
            if needed not in self.done:
                self.fail("after", f"task {number} began before {needed}, which it waits for, was done")

    def ended(self, execution: Execution, outcome: str) -> None:
        """It ended by itself or was ended; nothing of it is left."""
        self._world.tell(execution.agent, f"ends {execution}: {outcome}")
        self._gone(execution)
        self.outcomes[execution.number, execution.attempt] = outcome
        if outcome != "done":
            self.excuses[execution.number] += 1
        else:
            self.done.add(execution.number)
            # Nobody but us knows yet: if the worker dies before its result is stored, the task may run again.
            self._unsaid[execution.number, execution.attempt] = execution

    def orphaned(self, execution: Execution) -> None:
        """Its worker died; it runs on until it is found."""
        self.excuses[execution.number] += 1

    def killed(self, execution: Execution) -> None:
        """An orphan was killed and is gone."""
        self._world.tell("spawner", f"has killed {execution}")
        self._gone(execution)

    def _gone(self, execution: Execution) -> None:
        self.live[execution.number].remove(execution)

    def forked(self, worker: str, incarnation: int) -> None:
        """A process of a worker was born."""
        if worker in self.alive:
            self.fail("one-process", f"{worker}/{incarnation} was forked while {worker}/{self.alive[worker]} lives")
        if incarnation <= self.highest.get(worker, 0):
            self.fail("incarnation", f"{worker}/{incarnation} comes after {worker}/{self.highest[worker]}")
        self.alive[worker] = self.highest[worker] = incarnation

    def fork_failed(self, worker: str, incarnation: int) -> None:
        """It was ordered, and there is none."""
        self.highest[worker] = max(self.highest.get(worker, 0), incarnation)

    def stored(self, message: Message) -> None:
        """A message lies in its lane."""
        if message.type == "task.result":
            result = message.decode(Result)
            self._unsaid.pop((result.number, result.attempt), None)

    def reaped(self, worker: str, agents: Iterable[str]) -> None:
        """The process is gone; its tree perhaps not."""
        del self.alive[worker]
        names = list(agents)
        for key, execution in list(self._unsaid.items()):
            if execution.agent in names:
                del self._unsaid[key]
                self.excuses[execution.number] += 1

    def ordered_to_kill(self, coordinator: str, worker: str, incarnation: int, number: int) -> None:
        """A coordinator wants a living worker killed: it may, when its time is over, never because it is silent."""
        state = self._world.state_of(coordinator)
        if number != 9 or state is None:
            return
        known = state.workers.get(worker)
        if (
            known is not None
            and known.incarnation == incarnation
            and state.phase == st.RUNNING
            and known.state == st.ALIVE
            and not known.leaving
            and all(state.agents[name].state == st.READY for name in known.agents)
        ):
            self.fail("death-needs-proof", f"{worker}/{incarnation} is at work and was ordered to be killed")

    def recorded(self, number: int, attempt: int, outcome: str) -> None:
        """A line of the results file was written."""
        self._world.tell("results", f"task {number}.{attempt} {outcome}")
        self.lines[number] += 1
        state = self._world.state_of(COORDINATOR)
        retries = state.retries.get(number, 0) if state is not None else 0
        if self.lines[number] > 1 + retries:
            self.fail("recorded-once", f"task {number} has {self.lines[number]} lines in the results file")
        real = self.outcomes.get((number, attempt))
        if outcome not in {"dead", "cancelled", "died"} and real != outcome:
            self.fail("recorded-truly", f"task {number}.{attempt} is recorded as {outcome}; what happened is: {real}")

    # ------------------------------------------------------------------ the coordinator's books

    def recovered(self, coordinator: str, machine: Machine) -> None:
        """A coordinator has replayed: the same again, and from the very first fact, must give the same state."""
        log, make = self._world.log_of(coordinator), self._world.make_machine
        first = snapshot(machine.state)
        if snapshot(log.replay(make)[0].state) != first:
            self.fail("replay", "a second replay of the log gives another state")
        if snapshot(log.replay(make, from_the_first=True)[0].state) != first:
            self.fail("replay", "snapshot and tail give another state than all facts from the first one")
        if snapshot(load(first)) != first:
            self.fail("replay", "a loaded snapshot is not what was stored")

    def about_to_decide(self, coordinator: str, state: State, fact: ev.AnyFact) -> None:
        """A fact comes in."""
        self._world.tell(coordinator, f"learns {fact}"[:400])
        self._assigned_before = {task.number: task.attempt for task in state.tasks.values() if task.state == ASSIGNED}
        if isinstance(fact, ev.TasksSubmitted):
            for task in fact.tasks:
                # One that died before it logged a submission never took it in. It counts from when its successor does, whose clock
                # need not go on from there: what the log has not seen binds no clock.
                if state.outcomes.get(task.number) == UNKNOWN:
                    self._submitted_s[task.number] = fact.at_s

    def decided(self, coordinator: str, machine: Machine, effects: list[ev.Effect]) -> None:
        """The machine has taken in a fact."""
        self.decisions += 1
        state = machine.state
        for effect in effects:
            if isinstance(effect, ev.Post) and isinstance(effect.body, Assign):
                self._assigned(coordinator, state, effect.to, effect.body)
        self._accounts(state)
        if state.phase == st.RUNNING:
            self._believes_the_truth(coordinator, state)
            self._lets_nobody_wait(state)

    def _assigned(self, coordinator: str, state: State, name: str, order: Assign) -> None:
        number, key, holder = order.number, (order.number, order.attempt), (name, order.incarnation)
        given = self._given.setdefault(coordinator, {})
        before = given.setdefault(key, holder)
        if before != holder:
            # A coordinator that died before it logged an assignment never sent it: the token may be given anew.
            if key in self.outcomes or any(run.attempt == order.attempt for run in self.live.get(number, ())):
                self.fail("fencing", f"attempt {key} was given to {before} and now to {holder}")
            given[key] = holder
        agent, task = state.agents[name], state.tasks[number]
        if agent.held.get(number) != order.attempt:
            self.fail("assigned-to-the-ready", f"{key} was sent to {name}, which does not hold it")
        if self._assigned_before.get(number) == order.attempt or state.plan.upstream:
            return  # the same order once more, after a roll call: nothing was chosen
        if state.is_paused or agent.kind in state.kinds_paused:
            self.fail("paused", f"{key} was given to {name} although it is paused")
        waited_s = state.now_s - self._submitted_s.get(number, state.now_s)
        if order.attempt == 1 and waited_s + 1e-6 < self._world.tasks[number].delay_s:
            self.fail("delay", f"task {number} was assigned after {waited_s:.3f} s")
        for needed in self._world.tasks[number].after:
            if state.outcomes.get(needed) != CODE[DONE]:
                self.fail("after", f"task {number} was assigned before {needed} was done")
        ahead = [place for place in self._waiting_for(state, agent) if place < task.place]
        if ahead:
            self.fail("priority", f"task {number} was assigned before {ahead[0] & NUMBER_MASK}, which is ahead of it")

    def _accounts(self, state: State) -> None:
        queued = [key & NUMBER_MASK for queue in state.queues.values() for key in queue]
        held = Counter(number for agent in state.agents.values() for number in agent.held)
        if len(queued) != state.queued or held.total() != state.held:
            self.fail(
                "accounts", f"{len(queued)} queued and {held.total()} held, counted {state.queued} and {state.held}"
            )
        in_queue = Counter(queued)
        for number, task in state.tasks.items():
            places = (in_queue[number], held[number], int(task.state not in {QUEUED, "assigned"}))
            if sum(places) != 1:
                self.fail("accounts", f"task {number}, {task.state}, is lost or doubled: queued, held, else {places}")
            if task.state == DELAYED and not any(timer[1] == "task" and timer[2] == number for timer in state.timers):
                self.fail("accounts", f"task {number} is delayed and no timer will wake it")

    def _believes_the_truth(self, coordinator: str, state: State) -> None:
        """What lives is believed to live, and what runs is believed to be held by whom it runs at."""
        for name, incarnation in self.alive.items():
            worker = state.workers.get(name)
            if worker is not None and worker.incarnation == incarnation and worker.state not in st.LIVE:
                self.fail("death-needs-proof", f"{name}/{incarnation} lives and is believed to be {worker.state}")
        for running in self.live.values():
            for execution in running:
                agent = state.agents.get(execution.agent)
                task = state.tasks.get(execution.number)
                if agent is not None:
                    is_held = agent.held.get(execution.number) == execution.attempt
                else:  # the root knows the team that holds it
                    is_held = task is not None and (task.state, task.attempt) == (ASSIGNED, execution.attempt)
                if not is_held and (agent is not None or coordinator == COORDINATOR):
                    self.fail("death-needs-proof", f"{execution} still runs, and {coordinator} has taken it away")

    @staticmethod
    def _waiting_for(state: State, agent: Agent) -> list[int]:
        """Places of queued tasks that `agent` could do."""
        if state.is_paused or agent.kind in state.kinds_paused:
            return []
        lines = (state.queues[route] for route, kinds in state.routes.items() if agent.kind in kinds)
        return sorted(place for line in lines for place in line)

    def _lets_nobody_wait(self, state: State) -> None:
        """No task waits for an agent that waits for a task."""
        if not state.admission_open or not state.queued:
            return
        for agent in state.agents.values():
            if agent.state == st.READY and agent.confirmed and len(agent.held) < agent.slots:
                waiting = self._waiting_for(state, agent)
                if waiting:
                    self.fail("no-idle-hands", f"{agent.name} is idle while task {waiting[0] & NUMBER_MASK} is queued")

    # ------------------------------------------------------------------ locks

    def locked(self, client: LockClient) -> None:
        """A program believes that it holds a lock from now on."""
        self._world.tell(client.name, f"holds {client.names}, token {client.token}")
        for other in self._locked:
            if other is not client and other.believes and _meet(client.names, other.names):
                self.fail("one-holder", f"{client.name} holds {client.names} while {other.name} holds {other.names}")
        self._locked = [other for other in self._locked if other.believes and other is not client] + [client]
        for name, token in self._tokens.items():
            if token >= client.token and _meet(client.names, [name]):
                self.fail("tokens-rise", f"{client.name} has token {client.token} for {client.names}, after {token}")
        self._tokens.update(dict.fromkeys(client.names, client.token))

    def unlocked(self, client: LockClient) -> None:
        """It let go, or knows that it has lost it."""
        if client in self._locked:
            self._world.tell(client.name, f"lets go of {client.names}")
            self._locked.remove(client)

    def finished(self, state: State, finish: ev.Finish) -> None:
        """The fleet ended itself: nothing that was accepted may be lost."""
        self._world.tell("coordinator", f"finishes: {finish}")
        self.finish = finish
        self.retries = dict(state.retries)
        unread = self._unread()
        for number in self._world.accepted:
            if state.outcomes.get(number) == UNKNOWN:
                if number in unread:
                    continue  # a fleet that is stopped keeps what it has not read for its next start (docs/supervision.md)
                self.fail("nothing-lost", f"task {number} was accepted, and nobody knows it any more")
            over = number not in state.tasks
            if over and self._world.spec.run is not None and not self.lines[number]:
                self.fail("nothing-lost", f"task {number} is over and has no line in the results file")

    def _unread(self) -> set[int]:
        """Tasks that still lie in the root's inbox."""
        lanes = self._world.lanes.lanes.values()
        inbox = [message for lane in lanes if lane.recipient == COORDINATOR for message in lane.open.values()]
        return {task.number for letter in inbox if letter.type == "task.submit" for task in letter.decode(Submit).tasks}


def _meet(names: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two locks have a path in common."""
    return any(conflict(one, other) for one in names for other in others)
