"""A simulated coordinator process: the real `Shell`, `Intake` and `Machine`, with simulated lanes, disk and spawner around them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from muster.bus.bus import Bus
from muster.coordinator.adoption import adopt, plan_of, team_plan_of
from muster.coordinator.outputs import OutputFlow
from muster.coordinator.recording import Recording
from muster.coordinator.shell import RETRY_S, Clock, Shell
from muster.coordinator.upstream import TeamIntake, TeamNotes, Upstream
from muster.core.names import COORDINATOR
from muster.core.orders import AgentGrant, Finished, ListWorkers, WorkerGrant, WorkerList
from muster.core.protocol import Drained
from muster.core.spec import teams
from muster.testing.simulator.disk import SimLog, SimNotes, SimResults
from muster.testing.simulator.lanes import LaneTransport

if TYPE_CHECKING:
    from muster.coordinator.events import AnyFact, Effect, Record
    from muster.testing.simulator.spawner import Link
    from muster.testing.simulator.timeline import Process, Timer
    from muster.testing.simulator.world import World

#: Turns that a coordinator takes after the end, for last words.
LAST_TURNS_MAX = 1000


class _Wake:
    """Stands for the shell's `asyncio.Event`: who sets it gets a turn."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.set = call

    def clear(self) -> None: ...


class SimOutputs(OutputFlow):
    """The way to the operator; whether he is there is the world's to say."""

    def __init__(self, bus: Bus, world: World) -> None:
        super().__init__(bus, Path("/nowhere"), keep_order=False, is_shown=world.spec.run is not None)
        self._world = world

    def operator_is_there(self) -> bool:
        return self._world.operator.is_there


class SimGrants:
    """Grants without keys."""

    def __init__(self, coordinator: str) -> None:
        self._coordinator = coordinator

    def grant(self, worker: str, incarnation: int, agents: list[str]) -> bytes:
        """As `coordinator.grants.Grants`."""
        granted = [AgentGrant(agent=agent, receive_root=b"", pair_keys={}) for agent in agents]
        return msgspec.msgpack.encode(
            WorkerGrant(
                worker=worker, incarnation=incarnation, store="/nowhere", agents=granted, coordinator=self._coordinator
            )
        )


class SimCoordinator:
    """One life of a coordinator, of the root or of a team."""

    def __init__(self, world: World, process: Process, link: Link) -> None:
        self.world, self.process, self.link = world, process, link
        self.name = process.name
        self.shell: Shell | None = None
        self._records: list[Record] = []
        self._incarnation = 0
        self._is_adopted = False
        self._turn_asked = False
        self._timer: Timer | None = None
        link.on_change = self.ask_turn

    @property
    def is_root(self) -> bool:
        """Whether it is the root."""
        return self.name == COORDINATOR

    # ------------------------------------------------------------------ beginning

    def begin(self) -> None:
        """Identity, log, replay; then the spawner is asked."""
        world, process, name = self.world, self.process, self.name
        transport = LaneTransport(world.lanes, name, process)
        bus = Bus(cast("Any", transport))
        log = SimLog(world.log_of(name), process)
        machine, self._records = log.recover(world.make_machine)
        world.watch.recovered(name, machine)
        notes = SimNotes(lambda text: world.tell(name, text)) if self.is_root else TeamNotes(bus)
        shell = world.make_shell(bus, machine, cast("Any", log), cast("Any", notes))
        if self.is_root:
            shell.recorder = self._recording(shell)
            shell.resize = world.resize
            shell.watch_holder = world.watch_holder
        self._watch_decisions(shell)
        shell.clock = Clock(machine.state.now_s, world.timeline.wall_s, world.timeline.steady_s)
        shell.wake = cast("Any", _Wake(self.ask_turn))
        shell.control, shell.grants = cast("Any", self.link), cast("Any", SimGrants(name))
        shell.on_message = dict.fromkeys(("metrics.snapshot", "health.changed", "team.noted", "team.report"), _ignore)
        self.shell = shell
        transport.on_arrival = self.ask_turn
        self.link.send(ListWorkers())

    def _recording(self, shell: Shell) -> Recording:
        world = self.world
        recording = Recording(shell.bus, SimOutputs(shell.bus, world), shell.notes, shell.recording_failed)
        recording.retries = shell.machine.state.retries
        recording.recover(self._records)
        if world.spec.run is not None:
            recording.results = cast("Any", SimResults(world.paper, self.process, world.watch.recorded))
            if shell.machine.state.life:
                recording.compare(shell.machine.state.results_base_bytes, shell.machine.state.tasks)
        return recording

    def _watch_decisions(self, shell: Shell) -> None:
        watch, apply, name = self.world.watch, shell.machine.apply, self.name

        def watched(fact: AnyFact) -> list[Effect]:
            watch.about_to_decide(name, shell.machine.state, fact)
            effects = apply(fact)
            watch.decided(name, shell.machine, effects)
            return effects

        setattr(shell.machine, "apply", watched)  # noqa: B010 -- an instance's method, on purpose

    # ------------------------------------------------------------------ turns

    def ask_turn(self) -> None:
        """There is something to do; a busy machine lets it wait for a moment."""
        if not self._turn_asked and self.shell is not None:
            self._turn_asked = True
            self.process.call_later(self.world.draw_turn_delay(), self._turn)

    def _turn(self) -> None:
        self._turn_asked = False
        shell = self.shell
        assert shell is not None
        if not self._is_adopted:
            self._adopt(shell)
            return
        if _run(shell.turn()):
            self.ask_turn()
        if shell.finish is not None:
            self._finish(shell)
            return
        self._arm(shell)

    def _adopt(self, shell: Shell) -> None:
        early: list[Any] = []
        while self.link.received:
            message = self.link.received.popleft()
            if isinstance(message, WorkerList):
                self.link.received.extendleft(reversed(early))
                self._is_adopted = True
                self._take_over(shell, message)
                self.ask_turn()
                return
            early.append(message)
        self.link.received.extend(early)

    def _take_over(self, shell: Shell, listing: WorkerList) -> None:
        world = self.world
        if self.is_root:
            # Whoever dies here dies of faults: no worker and no team is given up for it.
            plan = msgspec.structs.replace(plan_of(world.spec), restarts_max=10**6)
            _run(adopt(shell, plan, listing, len(world.paper.lines)))
            world.watch_again(shell.machine.state)
            return
        self._incarnation = listing.incarnation
        upstream = Upstream(shell.bus, shell.machine.state, listing.incarnation)
        upstream.recover(self._records)
        shell.recorder = upstream
        team = teams(world.spec)[self.name]
        shell.intake = TeamIntake(shell, upstream, team.kind)
        _run(adopt(shell, team_plan_of(world.spec, team), listing))

    def _arm(self, shell: Shell) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = shell.machine.due_s()
        delay_s = None if due_s is None else max(0.0, due_s - shell.clock.now_s())
        if shell._pending or shell.recorder.waiting:
            delay_s = RETRY_S if delay_s is None else min(delay_s, RETRY_S)
        self._timer = None if delay_s is None else self.process.call_later(delay_s, self.ask_turn)

    # ------------------------------------------------------------------ the end

    def _finish(self, shell: Shell) -> None:
        for _ in range(LAST_TURNS_MAX):
            if not _run(shell.turn()):
                break
        assert shell.finish is not None
        if isinstance(shell.recorder, Upstream):
            shell.recorder.say(Drained(incarnation=self._incarnation))
            self._last_word(shell.recorder)
            return
        self.world.watch.finished(shell.machine.state, shell.finish)
        self.link.send(Finished(exit_status=shell.finish.exit_status))
        self.process.exit(shell.finish.exit_status)

    def _last_word(self, upstream: Upstream) -> None:
        upstream.retry()
        if upstream.waiting:
            self.process.call_later(RETRY_S, self._last_word, upstream)
        else:
            self.process.exit(0)


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never really waits."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    call.close()
    raise RuntimeError("the coordinator waits for something that the simulator does not play")


def _ignore(_delivery: object) -> None:
    """Metrics and health change no decision."""
