"""A simulated worker: the real `Runner` of each of its agents on a virtual loop; what its tasks run is a timer.

When the worker is killed, what ran goes on running: as in life the spawner has to find and kill it before the death is proven.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from muster.agent.attempt import AgentSetting, Attempt, Ended
from muster.agent.runner import Runner
from muster.bus.bus import Bus
from muster.core.protocol import Drain, Result
from muster.core.spec import kind_of
from muster.metrics.registry import Registry
from muster.testing.simulator.lanes import LaneTransport
from muster.testing.simulator.watch import Execution

if TYPE_CHECKING:
    from muster.core.orders import WorkerGrant
    from muster.testing.simulator.timeline import Process, Timer
    from muster.testing.simulator.world import World

Outcome = Literal["done", "failed", "timeout", "cancelled", "killed"]
#: Exit status of a worker that cannot begin.
EXIT_CANNOT_START = 69


class _Page:
    """A status page that nobody reads."""

    def state(self, name: str) -> None: ...
    def set(self, name: str, value: int) -> None: ...
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


class SimExecutor:
    """Works on attempts by letting time pass."""

    def __init__(self, worker: SimWorker, agent: str) -> None:
        self._worker, self._agent = worker, agent
        self._timers: dict[tuple[int, int], tuple[Timer, Ended]] = {}

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """Begin; the end comes when its time is over."""
        worker = self._worker
        world = worker.world
        execution = Execution(attempt.number, attempt.attempt, self._agent, worker.incarnation)
        worker.executions[attempt.key] = execution
        world.watch.began(execution)
        attempt.pid = 0
        work_s: float
        outcome: Outcome
        work_s, outcome = world.draw_work(attempt.number)
        if attempt.timeout_s is not None and work_s > attempt.timeout_s:
            work_s, outcome = attempt.timeout_s, "timeout"
        timer = worker.process.call_later(work_s, self._end, attempt, outcome)
        self._timers[attempt.key] = timer, ended

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """End it: some do as they are told, some have to be killed."""
        if attempt.key not in self._timers:
            return
        timer, ended = self._timers[attempt.key]
        timer.cancel()
        worker = self._worker
        pause_s = worker.world.rng_work.choice([0.0, grace_s / 2, grace_s])
        timer = worker.process.call_later(pause_s, self._end, attempt, attempt.stop or "killed")
        self._timers[attempt.key] = timer, ended

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        _, ended = self._timers.pop(attempt.key)
        worker = self._worker
        worker.world.watch.ended(worker.executions.pop(attempt.key), outcome)
        status = 0 if outcome == "done" else 1 if outcome == "failed" else None
        ended(
            attempt,
            Result(
                number=attempt.number, attempt=attempt.attempt, incarnation=attempt.incarnation, outcome=outcome,
                exit_status=status, signal=None if status is not None else 9,
            ),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""


class SimWorker:
    """One incarnation of a worker."""

    def __init__(self, world: World, process: Process, grant: WorkerGrant) -> None:
        self.world, self.process, self.grant = world, process, grant
        self.name, self.incarnation = grant.worker, grant.incarnation
        self.executions: dict[tuple[int, int], Execution] = {}
        self.runners: dict[str, Runner] = {}
        self._signalled = 0

    def begin(self) -> None:
        """Take the identities and join."""
        if self.world.chance("start_fails"):
            self.process.exit(EXIT_CANNOT_START)
            return
        for granted in self.grant.agents:
            self.runners[granted.agent] = self._host(granted.agent)
        for runner in list(self.runners.values()):
            runner.begin()

    def _host(self, agent: str) -> Runner:
        transport = LaneTransport(self.world.lanes, agent, self.process)
        bus = Bus(cast("Any", transport))
        setting = AgentSetting(
            agent=agent, kind=kind_of(self.world.spec, agent), fleet=self.world.spec, store=Path("/nowhere"),
            incarnation=self.incarnation, loop=cast("Any", self.process), socket="", coordinator=self.grant.coordinator,
        )  # fmt: skip
        runner = Runner(setting, bus, SimExecutor(self, agent), cast("Any", _Page()), Registry())
        transport.on_arrival = bus._news
        runner.on_drained = lambda _runner: self._leave(agent, transport)
        return runner

    def _leave(self, agent: str, transport: LaneTransport) -> None:
        runner = self.runners.pop(agent)
        runner.close()
        runner.bus.closed = True
        transport.close()
        if not self.runners:
            self.process.exit(0)

    def signal(self, number: int) -> None:
        """SIGTERM means: come to an end; twice: now."""
        if number == 9:
            self.process.kill()
            return
        self._signalled += 1
        order = Drain(now=self._signalled > 1, deadline_s=self.world.spec.grace_s)
        for runner in list(self.runners.values()):
            runner.drain(order)
        if not self.runners:
            self.process.exit(0)
