"""Runs a command per attempt.

The life of an attempt: fill the template → start the command in a session of its own → it ends and is reaped → prove that
nothing of its tree is left, killing what is (`remains`) → read its output → report. All of it happens in callbacks of the event loop;
nothing waits, and no process is started besides the command itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING, Any

from muster.agent.attempt import Ended, Ending, input_text, result_of
from muster.agent.bounds import time_bound
from muster.agent.launch import LaunchError, Order
from muster.agent.output import Capture
from muster.agent.remains import Marks
from muster.core.presets import PRESETS
from muster.core.template import expand, expand_shell
from muster.errors import CommandNotFoundError, ConfigError, MusterError, SpawnFailedError, UsageError

if TYPE_CHECKING:
    import asyncio

    from muster.agent.attempt import AgentSetting, Attempt
    from muster.agent.bounds import MemoryWatch
    from muster.agent.coding import Session
    from muster.agent.exits import Exits
    from muster.agent.launch import Launcher
    from muster.agent.output import Captured
    from muster.agent.remains import Remains
    from muster.errors import AttemptLimitError

#: Waits in seconds between looks at a tree that does not end: something in it is in uninterruptible sleep.
_CLEAR_AGAIN_S = (0.005, 0.02, 0.1, 0.5)
#: Waits in seconds before a command is started again that could not be forked for want of processes or memory.
_FORK_AGAIN_S = (0.05, 0.2, 1.0, 3.0)
_SHELL = b"/bin/sh"


class _NotStartedError(Exception):
    """The attempt ends without a process; shown as the result's error."""

    def __init__(self, error: MusterError, exit_status: int | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.exit_status = exit_status


class CommandExecutor:
    """Works on attempts of one agent by running its kind's command."""

    def __init__(
        self, setting: AgentSetting, launcher: Launcher, exits: Exits, remains: Remains, memory: MemoryWatch
    ) -> None:
        self.setting = setting
        self.memory = memory
        self.launcher = launcher
        self.exits = exits
        self.remains = remains
        self.loop: asyncio.AbstractEventLoop = setting.loop
        self.stop_signal = signal_number(setting.kind.stop_signal)
        self._environment = environment(setting)
        self._search = search_path(setting.kind.env)
        self._found: dict[str, bytes] = {}
        self._captures: list[tuple[Capture, Capture]] = []
        self._running: dict[tuple[int, int], _Running] = {}

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """See `Executor`."""
        attempt.begin()
        running = self._running[attempt.key] = _Running(self, attempt, ended)
        running.begin()

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """See `Executor`."""
        running = self._running.get(attempt.key)
        if running is not None:
            running.stop(grace_s)

    def close(self) -> None:
        """See `Executor`."""
        for pair in self._captures:
            for capture in pair:
                capture.close()
        self._captures.clear()

    # ------------------------------------------------------------------ used by _Running

    def order(self, attempt: Attempt, captures: tuple[Capture, Capture]) -> Order:
        """What to start for `attempt`. Raises _NotStartedError."""
        kind = self.setting.kind
        template = kind.command or ()
        if kind.coding is not None and attempt.session:
            coding = kind.coding
            template = PRESETS[coding.preset].command(coding.args, attempt.session, coding.prompt)
        text = input_text(attempt.input)
        try:
            if kind.shell:
                argv, path = ["/bin/sh", "-c", expand_shell(template, text, attempt.number)], _SHELL
            else:
                argv = expand(template, text, attempt.number)
                path = self._found.get(argv[0]) or self._resolve(argv[0])
        except ConfigError as error:
            raise _NotStartedError(error, 126) from None
        usual = self._environment
        if attempt.env:
            replaced = tuple(os.fsencode(name) + b"=" for name in attempt.env)
            usual = [entry for entry in usual if not entry.startswith(replaced)]
            usual += [os.fsencode(f"{name}={value}") for name, value in attempt.env.items() if value is not None]
        env = [*usual, b"MUSTER_TASK=%d" % attempt.number, b"MUSTER_ATTEMPT=%d" % attempt.attempt]
        return Order(path, argv, env, attempt.cwd or kind.cwd, captures[0].fd, captures[1].fd, kind.bounds.fds)

    def _resolve(self, name: str) -> bytes:
        try:
            path = resolve(name, self._search, self.setting.kind.cwd)
        except ValueError:
            raise _NotStartedError(UsageError("a command's name cannot contain a NUL byte"), 126) from None
        if path is None:
            raise _NotStartedError(
                CommandNotFoundError(f"the command {name!r:.200} was not found", command=name[:200]), 127
            )
        if len(self._found) < 1000:
            self._found[name] = path
        return path

    def forget(self, name: str) -> bool:
        """Look `name` up again next time; whether it was remembered."""
        return self._found.pop(name, None) is not None

    def borrow(self) -> tuple[Capture, Capture]:
        if self._captures:
            return self._captures.pop()
        spool = self.setting.fleet.spool
        out = Capture(spool)
        try:
            return out, Capture(spool)
        except OSError:
            out.close()
            raise

    def finish(self, attempt: Attempt, captures: tuple[Capture, Capture] | None) -> None:
        del self._running[attempt.key]
        if captures is not None:
            self._captures.append(captures)


class _Running:
    """One attempt from its start to its report."""

    __slots__ = ("_attempt", "_captures", "_coding", "_ended", "_looks", "_owner", "_session", "_timers", "_tries")

    def __init__(self, owner: CommandExecutor, attempt: Attempt, ended: Ended) -> None:
        self._owner = owner
        self._attempt = attempt
        self._ended = ended
        self._captures: tuple[Capture, Capture] | None = None
        self._coding: Session | None = None
        self._session = 0  # of the main process that has ended
        self._timers: list[asyncio.TimerHandle] = []
        self._tries = 0
        self._looks = 0

    def begin(self) -> None:
        attempt, owner = self._attempt, self._owner
        if attempt.stop:
            self._report(Ending("cancelled"))
            return
        try:
            if self._captures is None:
                self._captures = owner.borrow()
            pid = self._launch(owner.order(attempt, self._captures))
        except _NotStartedError as error:
            self._report(Ending("failed", exit_status=error.exit_status, error=error.error.as_dict()))
            return
        except OSError as error:
            self._fork_again(error)
            return
        attempt.pid = pid
        owner.remains.mains.add(pid)
        owner.exits.watch(pid, self._exited)
        if owner.setting.kind.coding is not None:
            from muster.agent.coding import Session  # most fleets do without

            self._coding = Session(owner.setting.kind.coding, self._captured[0].fd, owner.loop, self._moved)
        bounds = owner.setting.kind.bounds
        if (bound := time_bound(attempt, bounds)) is not None:
            self._timers.append(owner.loop.call_later(bound.after_s, self._timed_out, bound.error))
        if bounds.rss_bytes is not None:
            owner.memory.watch(attempt.key, bounds.rss_bytes, self._processes, self._grew)

    def _launch(self, order: Order) -> int:
        """Start it. Raises _NotStartedError for what trying again cannot help, OSError for want of processes or memory."""
        name = order.argv[0]
        for _ in range(3):
            try:
                return self._owner.launcher.launch(order)
            except LaunchError as error:
                if error.errno == errno.ENOENT and not error.is_directory and self._owner.forget(name):
                    order = self._owner.order(self._attempt, self._captured)  # it has moved since it was found
                elif error.errno == errno.ENOEXEC and order.path != _SHELL:
                    # A script without "#!": execvp(3), and with it xargs and every shell, runs it by sh.
                    order = order._replace(path=_SHELL, argv=["/bin/sh", os.fsdecode(order.path), *order.argv[1:]])
                else:
                    raise _NotStartedError(*_explain(error, name, order.cwd)) from None
            except ValueError as error:
                raise _NotStartedError(
                    UsageError(f"the input cannot be an argument of a command: {error}"), 126
                ) from None
        raise _NotStartedError(
            CommandNotFoundError(f"the command {name!r:.200} was not found", command=name[:200]), 127
        )

    @property
    def _captured(self) -> tuple[Capture, Capture]:
        assert self._captures is not None
        return self._captures

    def _fork_again(self, error: OSError) -> None:
        if self._tries >= len(_FORK_AGAIN_S):
            failed = SpawnFailedError(f"no process could be started: {error.strerror}")
            self._report(Ending("failed", error=failed.as_dict()))
            return
        self._timers.append(self._owner.loop.call_later(_FORK_AGAIN_S[self._tries], self.begin))
        self._tries += 1

    # ------------------------------------------------------------------ the end

    def _exited(self, status: int) -> None:
        self._cancel_timers()
        self._owner.memory.forget(self._attempt.key)
        self._session = self._attempt.pid
        self._owner.remains.mains.discard(self._session)
        self._attempt.pid = 0
        self._clear(status)

    def _clear(self, status: int) -> None:
        """Report when nothing of the tree is left, and not before: the task is free again with the report."""
        remains = self._owner.remains
        if not remains.is_clear() and not remains.clear(self._marks(self._session)):
            wait_s = _CLEAR_AGAIN_S[min(self._looks, len(_CLEAR_AGAIN_S) - 1)]
            self._looks += 1
            self._owner.loop.call_later(wait_s, self._clear, status)
            return
        self._report(self._ending(status))

    def _ending(self, status: int) -> Ending:
        code = os.waitstatus_to_exitcode(status)
        exit_status, killed_by = (code, None) if code >= 0 else (None, -code)
        name = f"{self._attempt.number}.{self._attempt.attempt}"
        out, err = self._captured
        coding, transcript = self._coding, None
        if coding is not None:  # before the output is taken away
            coding.end()
            transcript = coding.keep(self._attempt)
        outputs = (out.take(f"{name}.out"), err.take(f"{name}.err"))
        ending = self._plain_ending(exit_status, killed_by, outputs)
        return ending if coding is None else coding.judge(ending, transcript)

    def _plain_ending(
        self, exit_status: int | None, killed_by: int | None, outputs: tuple[Captured, Captured]
    ) -> Ending:
        if self._attempt.breach is not None:
            return Ending("failed", exit_status, killed_by, error=self._attempt.breach.as_dict(), outputs=outputs)
        if self._attempt.stop:
            return Ending(self._attempt.stop, exit_status, killed_by, outputs=outputs)
        if killed_by is not None:
            return Ending("killed", None, killed_by, outputs=outputs)
        return Ending("failed" if exit_status else "done", exit_status, outputs=outputs)

    def _moved(self, state: str) -> None:
        self._attempt.state = state
        self._attempt.moved()

    def _report(self, ending: Ending) -> None:
        self._cancel_timers()
        self._owner.finish(self._attempt, self._captures)
        self._ended(self._attempt, result_of(self._attempt, ending))

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # ------------------------------------------------------------------ stopping

    def _timed_out(self, breach: AttemptLimitError | None) -> None:
        self._attempt.stop, self._attempt.breach = "timeout", breach
        self.stop(self._owner.setting.kind.kill_grace_s)

    def _marks(self, session: int) -> Marks:
        return Marks.of(session, self._owner.setting.agent, self._attempt.number, self._attempt.attempt)

    def _processes(self) -> list[int]:
        return self._owner.remains.processes_of(self._attempt.pid, self._marks(self._attempt.pid))

    def _grew(self, breach: AttemptLimitError) -> None:
        """Ends it at once: a process that eats memory is not asked politely. What left its group dies when it has been reaped."""
        self._attempt.breach = breach
        self._signal(self._attempt.pid, signal.SIGKILL)

    def stop(self, grace_s: float) -> None:
        pid = self._attempt.pid
        if not pid:
            if self._timers and not self._session:  # waiting to be forked
                self._report(Ending("cancelled"))
            return
        self._signal(pid, self._owner.stop_signal)
        self._timers.append(self._owner.loop.call_later(grace_s, self._signal, pid, signal.SIGKILL))

    def _signal(self, pid: int, sig: int) -> None:
        # The main process is not reaped before its attempt forgets the pid, so neither number can have a new owner.
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(pid, sig)
                if sig != signal.SIGKILL:
                    return


def _explain(error: LaunchError, name: str, cwd: str | None) -> tuple[MusterError, int]:
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        raise OSError(error.errno, error.strerror)
    if error.is_directory:
        return CommandNotFoundError(
            f"the working directory {cwd!r:.200} cannot be entered: {error.strerror}", cwd=cwd
        ), 126
    if error.errno == errno.E2BIG:
        return UsageError(f"the arguments of {name!r:.200} are longer than the system allows"), 126
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFoundError(f"the command {name!r:.200} was not found", command=name[:200]), 127
    return CommandNotFoundError(
        f"the command {name!r:.200} cannot be executed: {error.strerror}", command=name[:200]
    ), 126


def signal_number(name: str) -> int:
    """The number of `TERM` or `SIGTERM`. Raises ConfigError."""
    try:
        return int(signal.Signals["SIG" + name.upper().removeprefix("SIG")])
    except KeyError:
        raise ConfigError(f"there is no signal {name!r}", signal=name) from None


def identity(setting: AgentSetting) -> dict[str, str]:
    """The variables that tell a child process who and where it is. None of them is a secret."""
    return {
        "MUSTER_STORE_ID": setting.fleet.store_id,
        "MUSTER_FLEET": setting.fleet.name,
        "MUSTER_STORE": str(setting.store),
        "MUSTER_AGENT": setting.agent,
        "MUSTER_SOCKET": setting.socket,
    }


def environment(setting: AgentSetting) -> list[bytes]:
    """What every command of an agent gets, encoded once: this process's environment, the kind's, and who it is."""
    entries: dict[str, str] = {**os.environ, **setting.kind.env, **identity(setting)}
    for name in ("MUSTER_TASK", "MUSTER_ATTEMPT"):  # of an outer fleet; each start adds its own
        entries.pop(name, None)
    return [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in entries.items()]


def search_path(env: dict[str, str]) -> list[str]:
    """The directories of the PATH that a command with the additional variables `env` is looked up in."""
    path: str = env.get("PATH", os.environ.get("PATH", os.defpath))
    return path.split(os.pathsep)


def resolve(name: str, directories: list[str], cwd: str | None) -> bytes | None:
    """The executable that `name` means, or None; a name with a slash means itself, seen from `cwd`. Raises ValueError for a NUL byte."""
    if "\0" in name:
        raise ValueError("embedded null byte")
    if "/" in name:
        return os.fsencode(name)
    candidate: Any = None
    for directory in directories:
        path = os.path.join(directory, name)
        seen_from_cwd = os.path.join(cwd, path) if cwd else path
        if os.access(seen_from_cwd, os.X_OK) and os.path.isfile(seen_from_cwd):
            return os.fsencode(path)
        if candidate is None and os.path.isfile(seen_from_cwd):
            candidate = path  # found but not executable: executing it gives the better error
    return os.fsencode(candidate) if candidate and name else None
