"""The root in the place of a team's coordinator that was given up: the team is brought to its end, its workers go to other teams.

The team is proven dead, so its identity and its log are free. The root takes both and runs the team's own machine to its end, drained from
the first turn: results that are in its inbox count, agents finish what they run and hand back the rest, and everything goes up to the
root by the same words as ever. Each worker that has ended is given to an heir. The team's next coordinator would have done the same;
only nothing new is given to its agents.

If the log cannot be read, what its agents know is lost with it: its workers are killed, and when all of them are proven dead the root frees
what the team held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import msgspec

from muster.bus.bus import Bus
from muster.coordinator import events as ev
from muster.coordinator import state as st
from muster.coordinator.adoption import team_plan_of
from muster.coordinator.ending import NO_DEADLINE_S
from muster.coordinator.log import EventLog
from muster.coordinator.shell import Shell
from muster.coordinator.team import TeamCoordinator
from muster.coordinator.upstream import TeamNotes, Upstream
from muster.core.names import COORDINATOR
from muster.core.orders import ExitSeen, KillWorker, ListWorkers, Reown, SpawnWorker, WorkerExited, WorkerList
from muster.core.protocol import TeamAdopt
from muster.core.spec import teams
from muster.security.keys import Keyring, load_master

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from muster.coordinator.control import Control
    from muster.coordinator.services import Service
    from muster.core.spec import FleetSpec

#: Wait for the identity of a coordinator that has just died.
IDENTITY_WAIT_S = 5.0


class Relay:
    """The dead team's way to the spawner, over the root's control socket. It starts nothing."""

    def __init__(self, control: Control, team: str) -> None:
        self._control, self._team = control, team
        self.received: deque[Any] = deque()

    @property
    def is_lost(self) -> bool:
        """Whether the spawner is gone."""
        return self._control.is_lost

    def send(self, message: Any, grant: Callable[[], bytes] | None = None) -> None:
        """Pass an order on; the list of its workers is had by taking them over."""
        del grant
        if isinstance(message, ListWorkers):
            self._control.send(Reown(source=self._team, target=COORDINATOR))
        elif not isinstance(message, SpawnWorker):
            self._control.send(message)

    async def flush(self, timeout_s: float) -> None:
        """As the control socket's."""
        await self._control.flush(timeout_s)


class Caretaker:
    """Dissolves one team. `give` sends a worker to an heir; `done` is called once, with a reason if the team's log was lost."""

    def __init__(
        self, store: Path, spec: FleetSpec, team: str, control: Control, give: Callable[[int, TeamAdopt], None],
        done: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._store, self._spec, self._team = store, spec, teams(spec)[team]
        self._give, self._done = give, done
        self._relay = Relay(control, team)
        self._news = asyncio.Event()
        self._shell: Shell | None = None

    def hear(self, message: Any) -> bool:
        """Take a word of the spawner if it is about a worker of this team."""
        if isinstance(message, WorkerList):
            mine = message.owner == self._team.name
        else:
            mine = message.worker in self._team.workers or (
                self._shell is not None and message.worker in self._shell.machine.state.workers
            )
        if mine:
            self._relay.received.append(message)
            self._news.set()
            if self._shell is not None:
                self._shell.wake.set()
        return mine

    async def run(self) -> None:
        """Bring the team to its end."""
        try:
            await self._drain()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever broke the team's coordinator must not break the root
            self._shell = None
            await self._kill()
            self._done(f"its team was given up, and its log could not be read: {error}")
        else:
            self._done("")

    async def _drain(self) -> None:
        name = self._team.name
        keyring = Keyring.from_master(load_master(self._store), name)
        bus = await Bus.open(self._store, name, keyring, wait_s=IDENTITY_WAIT_S)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(bus.close)
            log = EventLog(self._store / f"coordinator-{name}")
            stack.callback(log.close)
            machine, records = log.recover()
            if not machine.state.life:  # it never began
                for at, entry in enumerate(team_plan_of(self._spec, self._team).workers):
                    self._give(at, TeamAdopt(worker=entry.worker, agents=entry.agents, incarnation=0))
                return
            shell = self._shell = Shell(bus, machine, log, TeamNotes(bus))
            shell.control = self._relay
            await _LastCoordinator(self._store, self._spec, shell, records, self._give).run()

    async def _kill(self) -> None:
        """Nobody knows what its agents are doing: end them, and give them on once that is proven."""
        self._relay.received.clear()
        self._relay.send(ListWorkers())
        listing: WorkerList | None = None
        alive: dict[tuple[str, int], bool] = {}
        while (listing is None or alive) and not self._relay.is_lost:
            self._news.clear()
            while self._relay.received:
                message = self._relay.received.popleft()
                if isinstance(message, WorkerList):
                    listing = message
                    alive = {(entry.worker, entry.incarnation): True for entry in message.alive}
                    for worker, incarnation in alive:
                        self._relay.send(KillWorker(worker=worker, incarnation=incarnation, signal=SIGKILL, tree=True))
                elif isinstance(message, WorkerExited) and not message.survivors:
                    alive.pop((message.worker, message.incarnation), None)
                    self._relay.send(ExitSeen(worker=message.worker, incarnation=message.incarnation))
            if listing is None or alive:
                await self._news.wait()
        last = listing.last if listing is not None else {}
        for at, entry in enumerate(team_plan_of(self._spec, self._team).workers):
            adopt = TeamAdopt(worker=entry.worker, agents=entry.agents, incarnation=last.get(entry.worker, 0))
            self._give(at, adopt)


class _LastCoordinator(TeamCoordinator):
    """The team's coordinator, drained from its first turn."""

    def __init__(
        self,
        store: Path,
        spec: FleetSpec,
        shell: Shell,
        records: list[ev.Record],
        give: Callable[[int, TeamAdopt], None],
    ) -> None:
        super().__init__(store, spec, shell, records)
        self._give = give

    def services(self) -> list[Service]:
        return []  # it is watched by nobody for the time that it has left

    def make_upstream(self, incarnation: int) -> Upstream:
        return _HandingOver(self.shell, incarnation, self._give)

    async def begin(self, listing: WorkerList) -> None:
        drain = ev.DrainOrdered(self.shell.clock.now_s(), now=False, deadline_s=NO_DEADLINE_S)
        await self.take_over(msgspec.structs.replace(listing, coordinator_restarts=1), [drain])


class _HandingOver(Upstream):
    """Says of every worker that it is free as soon as it has ended."""

    def __init__(self, shell: Shell, incarnation: int, give: Callable[[int, TeamAdopt], None]) -> None:
        super().__init__(shell.bus, shell.machine.state, incarnation)
        self._give, self._given = give, set[str]()

    def after_turn(self) -> None:
        state = self.state
        for at, worker in enumerate(state.workers.values()):
            if worker.name not in self._given and worker.state in (st.GONE, st.QUARANTINED):
                self._given.add(worker.name)
                agents = [(name, state.agents[name].kind) for name in worker.agents]
                self._give(at, TeamAdopt(worker=worker.name, agents=agents, incarnation=worker.incarnation))
