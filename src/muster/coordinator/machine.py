"""The coordinator's mind: `apply(fact) -> effects`, pure and deterministic.

No I/O, no clock (time comes with the facts), no set order, no hash. The shell appends facts to the log before it carries out the effects;
after a crash the log is replayed through this same class with the effects discarded (see `events`). So of every effect it is only certain
that it *may* have been carried out, and recovery is written for both cases: assignments carry ids, records are checked against the
results file, agents are asked what they hold.

Promises (issue: reliability I6-I8): never two live attempts of a task; a task is recorded once; nothing submitted is lost; silence frees
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from muster.coordinator import lifecycle
from muster.coordinator import state as st
from muster.coordinator.dispatch import dispatch, enqueue, release
from muster.coordinator.events import (
    AdmissionChanged,
    AgentDrained,
    AgentReady,
    AnyFact,
    Effect,
    FleetStarted,
    InputEnded,
    RecordingFailed,
    Recovered,
    ResultsRebased,
    StopRequested,
    TaskEnded,
    TaskImpossible,
    TaskRefused,
    TasksSubmitted,
    TimePassed,
    WorkerExited,
    WorkerStarted,
)
from muster.coordinator.state import Ending, State
from muster.coordinator.tasks import (
    ASSIGNED,
    DEAD,
    DELAYED,
    DONE,
    FAILED,
    NUMBER_MAX,
    OPEN,
    SOURCES_MAX,
    UNKNOWN,
    Task,
    backoff_s,
)

#: Weight of the newest attempt in the mean that decides about prefetching.
_MEAN_WEIGHT = 1 / 16


class Machine:
    """Decides. One instance per coordinator process; `state` is its only memory."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self._handlers: dict[type[Any], Callable[[Any, list[Effect]], None]] = {
            FleetStarted: lambda fact, out: lifecycle.start_fleet(self.state, fact, out),
            TasksSubmitted: self._tasks_submitted,
            InputEnded: self._input_ended,
            WorkerStarted: lambda fact, out: lifecycle.worker_started(self.state, fact, out),
            WorkerExited: lambda fact, out: lifecycle.worker_exited(self.state, fact, out),
            AgentReady: lambda fact, out: lifecycle.agent_ready(self.state, fact, out),
            TaskEnded: self._task_ended,
            TaskRefused: self._task_refused,
            AgentDrained: self._agent_drained,
            StopRequested: self._stop_requested,
            TimePassed: self._time_passed,
            Recovered: lambda fact, out: lifecycle.recovered(self.state, fact, out),
            AdmissionChanged: self._admission_changed,
            RecordingFailed: self._recording_failed,
            ResultsRebased: self._results_rebased,
            TaskImpossible: self._task_impossible,
        }

    def apply(self, fact: AnyFact) -> list[Effect]:
        """Take in one fact and say what is to be done. The fact must be in the log before any of it is done."""
        state = self.state
        state.now_s = max(state.now_s, fact.at_s)
        out: list[Effect] = []
        self._handlers[type(fact)](fact, out)
        dispatch(state, out)
        lifecycle.check_end(state, out)
        return out

    def due_s(self) -> float | None:
        """When a `TimePassed` is due next, on the clock of the facts; None if nothing waits for time."""
        timers = self.state.timers
        return timers[0][0] if timers else None

    def is_current(self, task: Task, fact: TaskEnded | TaskRefused) -> bool:
        """The fence: only the newest attempt, by the agent and incarnation it was given to, may say anything about a task."""
        return (
            task.state == ASSIGNED
            and task.attempt == fact.attempt
            and task.agent == fact.agent
            and task.incarnation == fact.incarnation
        )

    def _tasks_submitted(self, fact: TasksSubmitted, out: list[Effect]) -> None:
        state = self.state
        outcomes, queues = state.outcomes, state.queues
        for given in fact.tasks:
            number = given.number
            if not 0 < number <= NUMBER_MAX or outcomes.get(number) != UNKNOWN:
                continue  # submitted before: nothing changes
            if given.source:
                if given.source in state.sources:
                    continue  # the message came again after a crash
                state.sources = [*state.sources, given.source][-SOURCES_MAX:]
            kind = given.kind if len(state.kinds) > 1 or given.kind not in state.kinds else ""
            task = Task(number, given.input, kind, given.timeout_s, source=given.source, asker=given.asker)
            outcomes.set(number, OPEN)
            state.tasks[number] = task
            state.counters.submitted += 1
            if kind in queues:
                enqueue(state, task)
            else:
                task.note(f"no agent of kind {kind!r} is in this fleet")
                task.move("impossible")
                lifecycle.finish_task(state, task, DEAD, out)

    def _input_ended(self, fact: InputEnded, _out: list[Effect]) -> None:
        self.state.input_ended, self.state.input_total = True, fact.total

    def _task_ended(self, fact: TaskEnded, out: list[Effect]) -> None:
        state = self.state
        task = state.tasks.get(fact.number)
        if task is None or not self.is_current(task, fact):
            state.counters.stale_refused += 1
            return
        agent = state.agents[fact.agent]
        release(state, agent, task.number)
        if fact.outcome == "cancelled":
            state.counters.handed_back += 1
            task.move("handed_back")
            enqueue(state, task)
            return
        taken_s = state.now_s - task.assigned_s
        worked_s = state.now_s - max(task.assigned_s, agent.freed_s) if agent.slots == 1 else taken_s
        agent.freed_s = state.now_s
        mean_s = state.attempt_mean_s
        state.attempt_mean_s = worked_s if mean_s is None else mean_s + (worked_s - mean_s) * _MEAN_WEIGHT
        if fact.outcome == "done":
            agent.done += 1
            state.latency.add(taken_s)
            task.move("done")
            lifecycle.finish_task(state, task, DONE, out)
        else:
            agent.failed += 1
            self._attempt_failed(task, fact, taken_s, out)

    def _attempt_failed(self, task: Task, fact: TaskEnded, taken_s: float, out: list[Effect]) -> None:
        state = self.state
        plan = state.plan
        state.counters.attempts_failed += 1
        task.failures += 1
        if task.failures >= plan.attempts_max:
            state.latency.add(taken_s)
            task.move("failed_finally")
            lifecycle.finish_task(state, task, FAILED, out)
            return
        how = f"signal {fact.signal}" if fact.signal is not None else f"status {fact.exit_status}"
        task.note(f"attempt {task.attempt} on {task.agent}: {fact.outcome}, {how}. {fact.detail}".rstrip(". "))
        task.move("failed_again")
        due = state.now_s + backoff_s(task.number, task.failures, plan.backoff_s, plan.backoff_max_s)
        heappush(state.timers, (due, "task", task.number))

    def _task_refused(self, fact: TaskRefused, _out: list[Effect]) -> None:
        state = self.state
        agent = state.agents.get(fact.agent)
        task = state.tasks.get(fact.number)
        if agent is not None and fact.reason == "drain" and state.workers[agent.worker].incarnation == fact.incarnation:
            lifecycle.agent_leaving(state, agent, st.DRAINING)
        if task is None or agent is None or not self.is_current(task, fact):
            state.counters.stale_refused += 1
            return
        release(state, agent, task.number)
        state.counters.handed_back += 1
        task.move("handed_back")
        enqueue(state, task)

    def _agent_drained(self, fact: AgentDrained, _out: list[Effect]) -> None:
        agent = self.state.agents.get(fact.agent)
        if agent is not None and self.state.workers[agent.worker].incarnation == fact.incarnation:
            lifecycle.agent_leaving(self.state, agent, st.DRAINED)

    def _stop_requested(self, fact: StopRequested, out: list[Effect]) -> None:
        now = fact.mode == "now"
        deadline_s = self.state.now_s + (lifecycle.NOW_GRACE_S if now else self.state.plan.grace_s)
        lifecycle.begin_drain(self.state, Ending("stopped", fact.reason, now, deadline_s=deadline_s), out)

    def _time_passed(self, _fact: TimePassed, out: list[Effect]) -> None:
        state = self.state
        timers = state.timers
        while timers and timers[0][0] <= state.now_s:
            _, what, key = heappop(timers)
            if what == "task":
                task = state.tasks.get(key)
                if task is not None and task.state == DELAYED:
                    task.move("due")
                    enqueue(state, task)
            elif what == "worker":
                lifecycle.restart_due(state, key, out)
            else:
                lifecycle.kill_due(state, out)

    def _admission_changed(self, fact: AdmissionChanged, _out: list[Effect]) -> None:
        self.state.admission_open = fact.is_open

    def _recording_failed(self, fact: RecordingFailed, out: list[Effect]) -> None:
        ending = Ending("error", error=fact.message, now=True, deadline_s=self.state.now_s + lifecycle.NOW_GRACE_S)
        lifecycle.begin_drain(self.state, ending, out)

    def _results_rebased(self, fact: ResultsRebased, _out: list[Effect]) -> None:
        self.state.results_base_bytes = fact.results_base_bytes

    def _task_impossible(self, fact: TaskImpossible, out: list[Effect]) -> None:
        state = self.state
        task = state.tasks.get(fact.number)
        if task is None or task.state != ASSIGNED or task.attempt != fact.attempt:
            return
        release(state, state.agents[task.agent], task.number)
        task.note(fact.reason)
        task.move("impossible")
        lifecycle.finish_task(state, task, DEAD, out)
