"""Whether `module:function` can be run, found out before a fleet is started for it."""

from __future__ import annotations

import os
from pathlib import Path

from muster.errors import HandlerNotFoundError

#: What is kept of the reason why a module cannot be imported.
REASON_CHARS_MAX = 500


def check_handler(reference: str, cwd: Path) -> None:
    """Import `reference` as a worker will, in a forked child: whatever the module does when it is imported (threads, sockets,
    `sys.exit`), this process forks the fleet afterwards and must stay clean.

    Raises:
        HandlerNotFoundError: It is no `module:function`, cannot be imported, or is not callable; no task was started.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _import_and_report(reference, cwd, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if words != "ok":
        how = f"status {os.waitstatus_to_exitcode(status)}"
        raise HandlerNotFoundError(
            words or f"importing the handler {reference!r:.120} ended the process: {how}", handler=reference
        )


def _import_and_report(reference: str, cwd: Path, write_end: int) -> None:
    """Runs in the child, and never returns."""
    words = ""
    try:
        from muster.agent.handler import load_handler

        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.chdir(cwd)
        load_handler(reference, str(cwd))
        words = "ok"
    except BaseException as error:
        words = " ".join(str(error).split())[:REASON_CHARS_MAX] or type(error).__name__
    finally:
        os.write(write_end, words.encode(errors="replace"))
        os._exit(0)
