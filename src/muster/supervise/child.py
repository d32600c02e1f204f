"""From `fork` to the entry function: the short path that every coordinator and worker is born on.

The child keeps nothing of the spawner but its standard streams and the descriptors that are its own: an inherited
lifeline end, socket or lock would keep things alive that must be seen to die.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from muster.supervise import platform

#: Signals the spawner handles itself; a child starts with their default actions.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: Exit status of a child whose entry function raised (EX_SOFTWARE of sysexits.h).
_EXIT_RAISED = 70


@dataclass(frozen=True)
class Birth:
    """What a child is to become."""

    name: str
    run: Callable[[], int]
    keep_fds: tuple[int, ...]
    #: Called first in the child: detaches the spawner's objects from descriptors that are about to be closed by number.
    forget: Callable[[], None]
    subreaper: bool


def fork_child(birth: Birth) -> int:
    """Fork; the child runs `birth.run` and ends with its result as exit status. Returns the pid, in the parent only.

    Raises:
        OSError: No process could be made.
    """
    parent = os.getpid()
    # Blocked until the child has default actions: else a SIGTERM in between would be swallowed by the spawner's handler
    # in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _live(birth, parent)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(birth: Birth, parent: int) -> NoReturn:
    status = _EXIT_RAISED
    try:
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        birth.forget()
        close_fds_except({0, 1, 2, *birth.keep_fds})
        os.setsid()  # a session of its own: Ctrl-C and the end of the terminal reach the command line only
        platform.set_process_name(f"muster:{birth.name}")
        platform.set_parent_death_signal(signal.SIGTERM)
        if birth.subreaper:
            platform.set_subreaper()
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)  # it died before the kernel knew that we want to be told
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        status = birth.run()
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(status)


def leave(status: int) -> NoReturn:
    """End this forked process: what was printed is written out, nothing of the process it was forked from is run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a child that has not been reaped: its pid cannot be anybody else's."""
    try:
        os.kill(pid, number)
    except (OSError, ValueError) as error:
        complain(f"cannot send signal {number} to process {pid}: {error}")


def complain(sentence: str) -> None:
    """One line for a person; a closed stderr is nobody's problem."""
    with contextlib.suppress(OSError):
        os.write(2, f"muster: {sentence}\n".encode())


def close_fds_except(keep: set[int]) -> None:
    """Close every descriptor of this process that is not in `keep`."""
    for fd in platform.open_fds():
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
