"""Commands of the operator that run on a schedule, `[hooks.NAME]` of fleet.toml: one at a time, bounded in time, nothing left behind.

The next run of a hook is due one interval after the end of the last; ends stand in the coordinator's log, so a new coordinator goes on with
the schedule. The coordinator is a subreaper while it has hooks: whatever a hook started, however detached, hangs below this process when
the hook's main process has ended, and is killed. If the coordinator dies, all of that falls to the spawner, which ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from muster.agent.command import resolve, search_path
from muster.agent.exits import Exits
from muster.agent.launch import Launcher, Order
from muster.agent.output import Capture
from muster.coordinator.events import HookEnded
from muster.coordinator.services import Loop
from muster.coordinator.state import RUNNING
from muster.supervise.tree import set_subreaper, sweep_orphans

if TYPE_CHECKING:
    from pathlib import Path

    from muster.coordinator.shell import Shell
    from muster.core.spec import FleetSpec, HookSpec

#: From SIGTERM to SIGKILL, and how long killed processes may take to be gone before that is noted and left to the next look.
GRACE_S, PROOF_S = 2.0, 5.0
#: Characters of a hook's last words that are kept.
DETAIL_MAX = 300
_LOOK_S = 0.02


class HookRunner(Loop):
    """A service of the root coordinator."""

    def __init__(self, store: Path, spec: FleetSpec, shell: Shell) -> None:
        super().__init__("hooks")
        self._store, self._spec, self._shell = store, spec, shell
        self._ended_s: dict[str, float] = {}

    def due_s(self, hook: HookSpec) -> float:
        """When a hook is to run next, on the clock of the facts."""
        state = self._shell.machine.state
        known = state.supervision.hooks.get(hook.name)
        # What has just ended here is in the log a turn later.
        last_s = max(self._ended_s.get(hook.name, 0.0), 0.0 if known is None else known.at_s)
        return max(last_s, state.started_s) + hook.every_s

    async def _run(self) -> None:
        set_subreaper()
        launcher, exits = Launcher(), Exits(asyncio.get_running_loop())
        try:
            while True:
                hook = min(self._spec.hooks, key=self.due_s)
                await asyncio.sleep(max(0.0, self.due_s(hook) - self._shell.clock.now_s()))
                if self._shell.machine.state.phase != RUNNING:
                    return
                await self._carry_out(hook, launcher, exits)
        finally:
            exits.close()
            launcher.close()

    async def _carry_out(self, hook: HookSpec, launcher: Launcher, exits: Exits) -> None:
        began = time.monotonic()
        try:
            outcome, detail = await self._finish(hook, launcher, exits)
        except OSError as error:  # no descriptor or no memory left: the next time may be better
            outcome, detail = "failed", f"it could not be run: {error.strerror}"
        shell = self._shell
        took_s = round(time.monotonic() - began, 3)
        shell.notes.write("hook.ended", hook=hook.name, outcome=outcome, took_s=took_s, detail=detail)
        ended_s = self._ended_s[hook.name] = shell.clock.now_s()
        shell.intake.facts.append(HookEnded(ended_s, hook.name, outcome, detail))
        shell.wake.set()

    async def _finish(self, hook: HookSpec, launcher: Launcher, exits: Exits) -> tuple[str, str]:
        output = Capture(None)
        try:
            outcome, why = await self._end(hook, launcher, exits, output)
            said = output.take(hook.name).head[-4 * DETAIL_MAX :].decode(errors="replace").strip()
            return outcome, why or said[-DETAIL_MAX:]
        finally:
            output.close()

    async def _end(self, hook: HookSpec, launcher: Launcher, exits: Exits, output: Capture) -> tuple[str, str]:
        """Start it, wait for its end or end it, and kill all that is left: (outcome, why if it is not the hook's own word)."""
        path = resolve(hook.command[0], search_path({}), hook.cwd)
        if path is None:
            return "failed", f"the command {hook.command[0]!r:.100} was not found"
        order = Order(path, list(hook.command), self._environment(hook), hook.cwd, output.fd, output.fd)
        try:
            pid = launcher.launch(order)
        except (OSError, ValueError) as error:
            return "failed", f"the command {hook.command[0]!r:.100} cannot be started: {error}"
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        exits.watch(pid, lambda status: None if ended.done() else ended.set_result(status))
        is_late = False
        try:
            done, _ = await asyncio.wait({ended}, timeout=hook.timeout_s)
            if not done:
                is_late = True
                _signal(pid, signal.SIGTERM)
                await asyncio.wait({ended}, timeout=GRACE_S)
        finally:
            if not ended.done():
                _signal(pid, signal.SIGKILL)
            is_clear = await _clear()
        code = os.waitstatus_to_exitcode(await ended) if not ended.cancelled() else -signal.SIGKILL
        if not is_clear:
            self._shell.notes.write("hook.survivors", hook=hook.name)
        if is_late:
            return "timeout", f"was killed after {hook.timeout_s:g} s"
        return ("done", "") if code == 0 else ("failed", "") if code > 0 else ("failed", f"died by signal {-code}")

    def _environment(self, hook: HookSpec) -> list[bytes]:
        entries = {
            **os.environ,
            "MUSTER_STORE_ID": self._spec.store_id,
            "MUSTER_FLEET": self._spec.name,
            "MUSTER_STORE": str(self._store),
            "MUSTER_HOOK": hook.name,
        }
        return [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in entries.items()]


def _signal(pid: int, number: int) -> None:
    """To the session of a hook's main process, which is not reaped yet: the number is nobody else's."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, number)


async def _clear() -> bool:
    """Kill and reap whatever is left below this process; whether that is proven. Hooks are its only children."""
    ends = time.monotonic() + PROOF_S
    while sweep_orphans(()):
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
