"""The worker process: hosts agents, owns their identities, runs their tasks.

Started by the spawner with two descriptors: its grant (names, incarnation, keys) and a lifeline. It ends in one of four ways: all its
agents have drained (status 0); the spawner died, seen by the lifeline's end or a SIGTERM from nowhere (it kills everything below it
first); a handler that cannot be ended (`EXIT_REPLACE`); or an error at the start. It is a subreaper: nothing that a task starts gets
away from it.

An idle worker runs nothing: one heartbeat every 10 s for all its agents, and the bus's own safety sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from muster.agent.attempt import AgentSetting
from muster.agent.bounds import MemoryWatch
from muster.agent.command import CommandExecutor, identity
from muster.agent.exits import Exits
from muster.agent.handler import HandlerExecutor
from muster.agent.launch import Launcher, mark_close_on_exec
from muster.agent.log import AgentLog, Streams, redirect
from muster.agent.pulse import Pulse
from muster.agent.remains import Remains
from muster.agent.runner import Runner
from muster.agent.socket import OwnerSocket, socket_path
from muster.agent.status import StatusWriter, boottime_ms
from muster.bus.bus import Bus
from muster.bus.store import read_spec
from muster.core.names import PROXY
from muster.core.orders import WorkerGrant
from muster.core.protocol import Drain
from muster.core.spec import FleetSpec, kind_of
from muster.errors import MusterError
from muster.metrics.registry import Registry
from muster.security.keys import Keyring, proxy_secret
from muster.supervise import spare
from muster.supervise.platform import allow_descriptors
from muster.supervise.tree import set_subreaper, start_time_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.agent.attempt import Executor
    from muster.core.orders import AgentGrant
    from muster.core.spec import AgentSpec

#: The worker could not take its identities or read its grant.
EXIT_CANNOT_START = 69
#: The spawner is gone.
EXIT_ORPHANED = 75
#: A handler did not end in time; the worker gave itself up so that a fresh one takes over.
EXIT_REPLACE = 76
#: How long an identity may still be held by an earlier incarnation that is being cleared away.
_IDENTITY_WAIT_S = 2.0
#: Descriptors of one agent: locks, bells, lanes from and to the coordinator and a few others, and its tasks' pipes.
_FDS_PER_AGENT = 24
# Built at import, which the fork server does once for all workers: reading the types' annotations costs each of them 8 ms otherwise.
_decode_grant = msgspec.msgpack.Decoder(WorkerGrant).decode
msgspec.json.Decoder(FleetSpec)


def main(grant_fd: int, lifeline_fd: int) -> int:
    """Live as the worker that the grant in `grant_fd` describes, until its agents have drained. Returns the exit status."""
    grant = read_grant(grant_fd)
    if grant.worker == PROXY:
        from muster.limit.proxy.process import main as live  # one process of a fleet needs it

        return live(grant, lifeline_fd)
    loop = _new_loop()
    try:
        return loop.run_until_complete(Worker(grant, lifeline_fd).live())
    except MusterError as error:
        print(f"muster: worker {grant.worker}: {error.message}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_START
    finally:
        loop.close()


def read_grant(fd: int) -> WorkerGrant:
    """The grant in a descriptor, which is closed: no key is left readable in /proc/PID/fd. Raises ValueError for anything else."""
    try:
        raw = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    return _decode_grant(raw)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Hosted:
    """One agent of this worker with everything that belongs to it."""

    def __init__(self, runner: Runner, socket: OwnerSocket) -> None:
        self.runner = runner
        self.socket = socket

    async def close(self) -> None:
        """Give the identity back. Safe twice."""
        self.socket.close()
        self.runner.close()
        await self.runner.bus.close()


class Worker:
    """This process."""

    def __init__(self, grant: WorkerGrant, lifeline_fd: int) -> None:
        self._grant = grant
        self._lifeline = lifeline_fd
        self._store = Path(grant.store)
        self._fleet: FleetSpec = read_spec(self._store)
        self._parent = os.getppid()
        self._remains = Remains()
        self._hosted: list[Hosted] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._signalled = 0

    async def live(self) -> int:
        """Start, work, end. Raises MusterError if the identities cannot be taken."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        set_subreaper()
        allow_descriptors(_FDS_PER_AGENT * len(self._grant.agents))
        mark_close_on_exec()
        spare.hold()
        self._watch_for_the_end()
        self._launcher = Launcher()
        self._exits = Exits(self._loop)
        self._memory = MemoryWatch(self._loop)
        self._log = redirect(self._folder(self._grant.agents[0].agent))
        self._streams: Streams | None = None
        try:
            for agent in self._grant.agents:
                kind = kind_of(self._fleet, agent.agent)
                if kind.command is not None or kind.handler is not None:
                    self._hosted.append(await self._host(agent, kind))
            self._pulse = Pulse(self._loop, self._fleet, [hosted.runner for hosted in self._hosted], self._remains)
            for hosted in self._hosted:
                hosted.runner.on_activity = self._pulse.activity
                hosted.runner.begin()
            self._pulse.on_beat = self._log.look
            self._pulse.start()
            return await self._ended
        finally:
            await self._close()

    async def _host(self, grant: AgentGrant, kind: AgentSpec) -> Hosted:
        keyring = Keyring.from_grant(grant)
        bus = await Bus.open(self._store, grant.agent, keyring, wait_s=_IDENTITY_WAIT_S)
        setting = AgentSetting(
            agent=grant.agent, kind=kind, fleet=self._fleet, store=self._store, incarnation=self._grant.incarnation,
            loop=self._loop, socket=str(socket_path(self._store, grant.agent)), coordinator=self._grant.coordinator,
            enter_thread=self._prints_of(grant.agent), learn=keyring.learn,
        )  # fmt: skip
        page = StatusWriter(self._store / "agents" / grant.agent / "status")
        page.begin(
            state=1, pid=os.getpid(), start_time=start_time_of(os.getpid()) or 0, incarnation=setting.incarnation,
            started_ms=boottime_ms(), heartbeat_ms=boottime_ms(), progress_ms=boottime_ms(),
        )  # fmt: skip
        executor = self._executor(setting)
        if kind.limit and not self._is_spent_by_requests(kind):
            from muster.agent.limited import WithinLimit  # few fleets need it

            executor = WithinLimit(executor, setting, bus)
        if self._fleet.proxy is not None:
            from muster.agent.proxied import BehindProxy  # few fleets need it

            secret = proxy_secret(grant.receive_root)
            executor = BehindProxy(executor, setting, secret, is_alone=self._is_alone)
        runner = Runner(setting, bus, executor, page, Registry())
        socket = OwnerSocket(runner, is_alone=self._is_alone)
        hosted = Hosted(runner, socket)
        runner.on_first_task = lambda: self._open_socket(socket)
        runner.on_leaving = self._last_words
        runner.on_drained = lambda _left: self._leave(hosted)
        return hosted

    def _is_spent_by_requests(self, kind: AgentSpec) -> bool:
        proxy = self._fleet.proxy
        return proxy is not None and any(upstream.name == kind.limit for upstream in proxy.upstreams)

    def _last_words(self, runner: Runner) -> None:
        self._pulse.last_words(runner)

    @property
    def _is_alone(self) -> bool:
        return len(self._grant.agents) == 1

    def _executor(self, setting: AgentSetting) -> Executor:
        if setting.kind.command is not None:
            command = CommandExecutor(setting, self._launcher, self._exits, self._remains, self._memory)
            if not setting.kind.worktree:
                return command
            from muster.agent.workplace import InWorktrees  # few fleets need it

            return InWorktrees(command, setting, self._remains)
        # For the handler and the programs it starts. Agents that share the process share its environment, too.
        os.environ.update(setting.kind.env)
        if self._is_alone:
            os.environ.update(identity(setting))
        captures = self._is_alone and setting.kind.slots == 1
        return HandlerExecutor(
            setting, self._remains, self._memory, give_up=lambda: self._give_up(setting), captures=captures
        )

    def _folder(self, agent: str) -> Path:
        return self._store / "agents" / agent

    def _prints_of(self, agent: str) -> Callable[[], None]:
        """What a thread that works for `agent` does first, so that what it prints goes to that agent's log."""
        if self._is_alone:
            return _nothing
        if self._streams is None:
            sys.stdout = sys.stderr = self._streams = Streams(self._log)
        log = self._log if agent == self._grant.agents[0].agent else AgentLog(self._folder(agent))
        return partial(self._streams.work_for, log)

    def _open_socket(self, socket: OwnerSocket) -> None:
        try:
            socket.open()
        except MusterError as error:  # tasks can do their work without it
            print(f"muster: {error.message}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------ surroundings

    def _watch_for_the_end(self) -> None:
        os.set_blocking(self._lifeline, False)
        self._loop.add_reader(self._lifeline, self._lifeline_ended)
        self._loop.add_signal_handler(signal.SIGTERM, self._asked_to_end)
        # Ctrl-C is the front door's business. A handler, not SIG_IGN: commands must start with the default action.
        self._loop.add_signal_handler(signal.SIGINT, _nothing)

    def _lifeline_ended(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            if not os.read(self._lifeline, 64):
                self._orphaned()

    def _asked_to_end(self) -> None:
        if os.getppid() != self._parent:  # the kernel's parent-death signal
            self._orphaned()
        self._signalled += 1
        order = Drain(now=self._signalled > 1, deadline_s=self._fleet.grace_s)
        for hosted in list(self._hosted):
            hosted.runner.drain(order)
        if not self._hosted and not self._ended.done():
            self._ended.set_result(0)

    def _orphaned(self) -> None:
        """The spawner is gone: nobody would hold, reap or restart what runs here. End all of it, now."""
        self._remains.kill_all()
        for hosted in self._hosted:
            hosted.socket.close()
        os._exit(EXIT_ORPHANED)

    def _give_up(self, setting: AgentSetting) -> None:
        """End this process although a handler's thread still runs; what it has to say has been stored."""
        for hosted in self._hosted:
            hosted.socket.close()
            hosted.runner.page.state("stopped")
        del setting
        os._exit(EXIT_REPLACE)

    # ------------------------------------------------------------------ the orderly end

    def _leave(self, hosted: Hosted) -> None:
        self._hosted.remove(hosted)
        task = self._loop.create_task(self._let_go(hosted))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _let_go(self, hosted: Hosted) -> None:
        await hosted.close()
        hosted.runner.executor.close()
        hosted.runner.page.close()
        if not self._hosted and not self._ended.done():
            self._ended.set_result(0)

    async def _close(self) -> None:
        with contextlib.suppress(AttributeError):
            self._pulse.stop()
        for hosted in self._hosted:  # only after an error: otherwise each has left by itself
            await hosted.close()
        self._remains.kill_all()
        self._loop.remove_reader(self._lifeline)
        self._exits.close()
        self._launcher.close()


def _nothing() -> None:
    pass
