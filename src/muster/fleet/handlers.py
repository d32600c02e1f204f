"""Whether `module:function` can be run, found out before a fleet is started for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from muster.errors import HandlerNotFoundError

#: What is kept of the reason why a module cannot be imported.
REASON_CHARS_MAX = 300


def check_handler(reference: str, cwd: Path) -> None:
    """Import `reference` as a worker will, in a forked child: whatever the module does when it is imported (threads, sockets,
    `sys.exit`), this process forks the fleet afterwards and must stay clean.

    Raises:
        HandlerNotFoundError: It is no `module:function`, cannot be imported, or is not callable; no task was started.
    """
    module, colon, function = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
        raise HandlerNotFoundError(f"--handler: {reference!r:.120} is not package.module:function", handler=reference)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _import_and_report(module, function, cwd, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if words != "ok":
        reason = words or f"importing it ended the process (status {os.waitstatus_to_exitcode(status)})"
        raise HandlerNotFoundError(f"the handler {reference!r:.120} cannot be used: {reason}", handler=reference)


def _import_and_report(module: str, function: str, cwd: Path, write_end: int) -> None:
    """Runs in the child, and never returns."""
    import importlib

    words = ""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.chdir(cwd)
        sys.path.insert(0, str(cwd))
        found: object = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
        words = "ok" if callable(found) else f"{function} is not callable"
    except BaseException as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0][:REASON_CHARS_MAX]
    finally:
        os.write(write_end, words.encode(errors="replace"))
        os._exit(0)
