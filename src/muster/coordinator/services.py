"""The coordinator's services: small loops beside the turns. `main` starts them from one list and stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Protocol

from muster.coordinator import teams
from muster.coordinator.state import ENDED, READY
from muster.core.names import OPERATOR
from muster.core.protocol import Ping, Progress
from muster.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.bus.bus import Bus
    from muster.coordinator.shell import Shell

#: Progress is told at most this often; without news the pause doubles up to the second figure.
PROGRESS_S, PROGRESS_IDLE_S = 0.1, 1.0
#: Window of the rate that progress and ETA show.
RATE_WINDOW_S = 15.0
#: Pings in flight at once, agents asked in each round after the first, and how long one may take.
PINGS_AT_ONCE, PING_SAMPLE, PING_TIMEOUT_S = 4, 5, 10.0
#: Pause before the next look for agents that have joined.
NEW_AGENTS_S = 0.2
#: How long to look so often, and how many agents are asked before all have joined.
STARTING_S, PINGS_WHILE_STARTING = 30.0, 8
#: An idle fleet is asked this much more rarely.
IDLE_PING_FACTOR = 6
#: Round trips kept for the quantiles.
RESERVOIR = 4096


class Service(Protocol):
    """Something that runs beside the turns."""

    def start(self) -> None: ...
    async def stop(self) -> None: ...


class Loop:
    """A service that is one task."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._live(), name=self._name)

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _live(self) -> None:
        try:
            await self._run()
        except Exception:
            traceback.print_exc()  # a bug: the coordinator's log says so, and the fleet goes on without this service

    async def _run(self) -> None:
        raise NotImplementedError


class ProgressTeller(Loop):
    """Tells the operator how the run goes, as long as somebody is there to hear it."""

    def __init__(self, shell: Shell, operator_is_there: Callable[[], bool]) -> None:
        super().__init__("progress")
        self._shell, self._operator_is_there = shell, operator_is_there
        self._seen: deque[tuple[float, int]] = deque()
        self._last: tuple[int, ...] = ()

    def progress(self) -> Progress:
        """The run as it is now."""
        state, now_s = self._shell.machine.state, self._shell.clock.now_s()
        counters = state.counters
        failed = counters.failed + counters.dead + counters.cancelled
        ended = counters.done + failed
        rate = self._rate(now_s, ended)
        total = counters.submitted if state.input_ended else None
        left = len(state.tasks)
        return Progress(
            total=total,
            submitted=counters.submitted,
            queued=len(state.tasks) - state.held,
            running=state.held,
            done=counters.done,
            failed=failed,
            reassigned=counters.reassigned,
            restarts=counters.restarts,
            agents_ready=teams.ready_of(state),
            agents=teams.agents_of(state),
            elapsed_s=max(0.0, now_s - state.started_s),
            rate_per_s=rate,
            eta_s=left / rate if rate > 0 and total is not None else None,
            halted=state.ending.reason == "halted",
            paused_limits={name: pause.until_unix_s for name, pause in state.limit_pauses.items()},
            held_back=self._shell.held_back,
        )

    def tell(self) -> None:
        """Send it, unless nobody is there or there is no room: the next one says it again."""
        if self._operator_is_there():
            with contextlib.suppress(BusError):
                self._shell.bus.post_struct(OPERATOR, self.progress())

    def _rate(self, now_s: float, ended: int) -> float:
        seen = self._seen
        seen.append((now_s, ended))
        while len(seen) > 2 and now_s - seen[0][0] > RATE_WINDOW_S:
            seen.popleft()
        spent = now_s - seen[0][0]
        return (ended - seen[0][1]) / spent if spent > 0 else 0.0

    async def _run(self) -> None:
        pause_s = PROGRESS_S
        while True:
            state = self._shell.machine.state
            counters = state.counters
            now = (
                counters.submitted, counters.done, counters.failed, counters.dead, counters.cancelled, state.held,
                teams.ready_of(state), counters.restarts, int(state.input_ended),
            )  # fmt: skip
            if now != self._last or pause_s >= PROGRESS_IDLE_S:
                pause_s = PROGRESS_S if now != self._last else PROGRESS_IDLE_S
                self._last = now
                self.tell()
            else:
                pause_s = min(PROGRESS_IDLE_S, 2 * pause_s)
            await asyncio.sleep(pause_s)


class Pinger(Loop):
    """Measures the bus: asks each agent once after it has joined, then a few now and then."""

    def __init__(self, shell: Shell, bus: Bus, interval_s: float) -> None:
        super().__init__("pings")
        self._shell, self._bus, self._interval_s = shell, bus, interval_s
        self._asked: dict[str, int] = {}
        self._random = random.Random(0)
        self._patient_until_s = time.monotonic() + STARTING_S
        self.round_trips_s: deque[float] = deque(maxlen=RESERVOIR)
        #: Who has answered at least once.
        self.answered: set[str] = set()
        self.lost = 0

    def rtt_ms(self) -> dict[str, float]:
        """p50 and p99 of the round trips so far, exact; empty without any."""
        ordered = sorted(self.round_trips_s)
        if not ordered:
            return {}
        return {
            name: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000, 4)
            for name, q in (("p50", 0.5), ("p99", 0.99))
        }

    async def _run(self) -> None:
        while True:
            state = self._shell.machine.state
            ready = [agent for agent in state.agents.values() if agent.state == READY]
            incarnations = {agent.name: state.workers[agent.worker].incarnation for agent in ready}
            new = [name for name, incarnation in incarnations.items() if self._asked.get(name) != incarnation]
            is_starting = len(ready) < len(state.agents) and time.monotonic() < self._patient_until_s
            if is_starting:
                # While others are still starting the processors are theirs: a few round trips are enough for now.
                new = new[: max(0, PINGS_WHILE_STARTING - len(self._asked))]
            chosen = new or (
                [] if is_starting else self._random.sample(list(incarnations), min(PING_SAMPLE, len(ready)))
            )
            for name in new:
                self._asked[name] = incarnations[name]
            for at in range(0, len(chosen), PINGS_AT_ONCE):
                await asyncio.gather(*(self._ask(name) for name in chosen[at : at + PINGS_AT_ONCE]))
            is_idle = not state.tasks
            await asyncio.sleep(
                NEW_AGENTS_S if is_starting else self._interval_s * (IDLE_PING_FACTOR if is_idle else 1)
            )

    async def _ask(self, agent: str) -> None:
        if self._shell.machine.state.phase == ENDED:
            return
        sent_ns = time.monotonic_ns()
        try:
            await self._bus.ask(agent, Ping(sent_ns=sent_ns), type="agent.ping", timeout_s=PING_TIMEOUT_S)
        except BusError:
            self.lost += 1
        else:
            self.answered.add(agent)
            self.round_trips_s.append((time.monotonic_ns() - sent_ns) / 1e9)
