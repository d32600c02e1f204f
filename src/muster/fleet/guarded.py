"""A command that runs under a lock, with all that it starts: it ends with the lock, and the lock with it.

This process is a subreaper, so nothing that the command starts gets away from it. When the command's main process has ended, or the lock
was lost, what is left of its tree is killed before the lock is let go of.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from muster.errors import CommandNotFoundError, MusterError
from muster.supervise.tree import kill_orphans, kill_trees, set_parent_death_signal, set_subreaper

#: How long the killed tree may take to be gone.
_KILL_S = 5.0


def check_command(command: Sequence[str]) -> None:
    """Raise CommandNotFoundError if there is no such command."""
    if shutil.which(command[0]) is None:
        raise CommandNotFoundError(
            f"the command {command[0]!r:.200} was not found; nothing was locked", command=command[0]
        )


async def run(command: Sequence[str], environment: Mapping[str, str], lost: asyncio.Future[MusterError]) -> int:
    """Run `command` to its end, with these additions to its environment; its exit status as a shell shows it (128 + signal).

    SIGTERM and SIGHUP are passed on to it, and SIGINT where no terminal has given it that already. If this process is killed, the kernel
    kills the command's main process.

    Raises:
        MusterError: The one that `lost` was resolved to. The command and all that it started have been killed.
        CommandNotFoundError: It cannot be executed.
    """
    set_subreaper()
    process = _start(command, environment)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _pass_on, process, number)
    ended = asyncio.ensure_future(_ended(process))
    try:
        either: set[asyncio.Future[Any]] = {ended, lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            kill_trees([process.pid])
        status = await ended
        kill_orphans((), _KILL_S)
    finally:
        ended.cancel()
    if lost.done():
        raise lost.result()
    return 128 - status if status < 0 else status


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def end_with_parent() -> None:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(137)

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        # This process has one thread, so running Python between fork and exec is safe.
        return subprocess.Popen(command, env={**os.environ, **environment}, preexec_fn=end_with_parent)  # noqa: PLW1509
    except (OSError, ValueError) as error:
        raise CommandNotFoundError(f"{command[0]!r:.200} cannot be executed: {error}", command=command[0]) from None


def _pass_on(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if number == signal.SIGINT and any(os.isatty(fd) for fd in (0, 1, 2)):
        return  # the terminal gives Ctrl-C to all of its foreground group
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """The return code, without a thread where the kernel has pidfds."""
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(process.pid)
    except (OSError, AttributeError):
        return await loop.run_in_executor(None, process.wait)
    gone = loop.create_future()
    loop.add_reader(handle, lambda: None if gone.done() else gone.set_result(None))
    try:
        await gone
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return process.wait()
