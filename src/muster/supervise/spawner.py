"""Starting a spawner: the fork that becomes the root of a fleet, and the first words between it and its starter."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from muster.core.names import OPERATOR
from muster.errors import FleetRunningError, MusterError, SpawnFailedError, StoreVersionError, UnsafePermissionsError
from muster.supervise import lock, platform
from muster.supervise.client import SpawnerClient
from muster.supervise.entries import Entries

if TYPE_CHECKING:
    from muster.supervise.loop import Spawner
    from muster.supervise.shutdown import Ending

__all__ = ["Entries", "SpawnerClient", "start_spawner"]

#: Errors of the starting spawner that keep their class; every other one is a `SpawnFailedError`.
_PASSED_ON: dict[str, type[MusterError]] = {
    error.code: error for error in (FleetRunningError, StoreVersionError, UnsafePermissionsError)
}
#: Longest time until a spawner listens; most of it is reserved for killing what a crashed fleet left behind.
_READY_S = 30.0
#: A command line that holds the fleet and reads nothing for this long is not waited for any more.
_READER_STALLS_S = 2.0
#: Output of a spawner in the background.
_LOG = "spawner.log"


def start_spawner(store: Path, entries: Entries, *, foreground: bool) -> SpawnerClient:
    """Fork the spawner of the fleet in `store` and return when it listens. In the child this function never returns.

    The caller has one thread and no running event loop. The spawner leads a new session, holds `spawner.lock`, has
    closed every inherited descriptor but the standard streams, and starts the coordinator at once. Leftovers of a
    crashed spawner on the same store have been killed and proven dead when this returns.

    Args:
        store: The fleet's directory; its `spec.json` says the rest.
        entries: What coordinator and workers run.
        foreground: The returned client holds the fleet: when it is closed or this process dies, the fleet is drained.
            Otherwise the fleet is on its own, and its output goes to `spawner.log` in the store.

    Raises:
        FleetRunningError: A living spawner holds the store (`facts["pid"]`); nothing was started.
        StoreVersionError, UnsafePermissionsError: The fleet's description cannot be used; nothing was started.
        SpawnFailedError: It did not become ready; nothing of it is left.
    """
    store = Path(os.path.abspath(store))
    pid = lock.running_pid(store)
    if pid is not None:
        raise lock.running_error(store, pid)
    if threading.active_count() > 1:
        raise SpawnFailedError("a spawner can only be started by a process with a single thread")
    _occupy_streams()
    for stream in (sys.stdout, sys.stderr):  # else the child would write what is buffered a second time
        with contextlib.suppress(Exception):
            stream.flush()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        child = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise SpawnFailedError(f"cannot start the spawner: {error.strerror}") from error
    if child == 0:
        ours.detach()
        _become_spawner(store, entries, theirs, foreground)
    theirs.close()
    return _hear_first_words(ours, child)


def _occupy_streams() -> None:
    """Started with closed standard streams: else a socket would get number 0, 1 or 2 and be taken for one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _hear_first_words(connection: socket.socket, pid: int) -> SpawnerClient:
    """Read the child's verdict on itself. Raises what it says."""
    connection.settimeout(_READY_S)
    text = b""
    try:
        while not text.endswith(b"\n"):
            part = connection.recv(1 << 16)
            if not part:
                break
            text += part
    except TimeoutError:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    except BaseException:  # interrupted by the user
        connection.close()
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
        raise
    words = json.loads(text) if text.endswith(b"\n") else {"error": {"code": SpawnFailedError.code}}
    if "error" not in words:
        return SpawnerClient(connection, pid, is_parent=True)
    connection.close()
    _, raw = os.waitpid(pid, 0)
    error = words["error"]
    how = f"the spawner ended with status {os.waitstatus_to_exitcode(raw)} before it was ready"
    raise _PASSED_ON.get(error["code"], SpawnFailedError)(error.get("message", how), pid=error.get("pid", pid))


def _become_spawner(store: Path, entries: Entries, starter: socket.socket, foreground: bool) -> NoReturn:
    from muster.supervise import child

    status = 1
    try:
        status = _live(store, entries, starter, foreground)
    except MusterError as error:
        _say(starter, {"error": error.as_dict()})
    except BaseException as error:
        traceback.print_exc()
        _say(
            starter,
            {
                "error": {
                    "code": SpawnFailedError.code,
                    "message": f"the spawner failed: {type(error).__name__}: {error}",
                }
            },
        )
    child.leave(status)


def _say(starter: socket.socket, words: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        starter.send(json.dumps(words).encode() + b"\n")


def _live(store: Path, entries: Entries, starter: socket.socket, foreground: bool) -> int:
    from muster.bus.store import read_spec
    from muster.supervise import child, leftovers

    # What the starter leaves as garbage is not ours to finalise: a file object collected here would close a number that
    # has long been given to another file. The same call keeps the collector's marks off pages that all children share.
    gc.freeze()
    os.setsid()
    child.close_fds_except({0, 1, 2, starter.fileno()})
    for number in child.HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _replace_streams(store, foreground)
    spec = read_spec(store)
    held = lock.SpawnerLock(store)
    platform.prepare()
    platform.set_process_name("muster:spawner")
    platform.set_subreaper()
    leftovers.reap_leftovers(store, spec.store_id)
    try:
        entries.preload()
    except Exception as error:
        raise SpawnFailedError(f"the workers' code cannot be loaded: {type(error).__name__}: {error}") from error
    gc.collect()
    gc.freeze()
    if sys.version_info < (3, 12):  # later names are immortal: replacing one in the cache writes to no other page
        sys._clear_type_cache()
    from muster.supervise.loop import Spawner

    spawner = Spawner(store, spec, entries)
    spawner.server.adopt(starter, holds=foreground)
    _say(starter, {"ok": True, "pid": spawner.family.pid})
    status = _run(spawner)
    ending = spawner.ending
    _tidy_up(spawner, held, ending)
    spawner.server.announce_end(status if ending is None else ending.exit_status)
    return status if ending is None else ending.exit_status


def _run(spawner: Spawner) -> int:
    """The loop, and the net below it: whatever happens in it, nothing of the fleet outlives this process."""
    try:
        return spawner.run()
    except BaseException:
        traceback.print_exc()
        from muster.supervise import tree

        tree.kill_orphans((), 5.0)
        return 1


def _replace_streams(store: Path, foreground: bool) -> None:
    """Standard input is empty for the whole fleet; in the background nothing holds the terminal or a pipe of the
    starter open.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if foreground:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    try:
        log = os.open(store / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _tidy_up(spawner: Spawner, held: lock.SpawnerLock, ending: Ending | None) -> None:
    """Nothing of the fleet lives: leave the store as its description wants it, and let the next spawner in."""
    if ending is None or not ending.survivors:
        spawner.family.record.close()
    spawner.server.close()
    # Only an orderly end removes the store: after a kill it holds what the next start needs.
    if spawner.finished is not None and spawner.spec.ephemeral and ending is not None and not ending.survivors:
        try:
            _remove_when_read(spawner)
        except Exception as error:  # a store that stays behind is a nuisance, not a failed run
            from muster.supervise.child import complain

            complain(f"the store {spawner.store} was not removed: {error}")
    held.release()


def _remove_when_read(spawner: Spawner) -> None:
    """Remove the store, unless messages of users are unread in it, or the command line that holds the fleet still reads
    its own.

    A reader that makes no progress (its output is a pipe that nobody empties) keeps the store: nothing is taken from
    under it.
    """
    import shutil

    from muster.bus.store import remove_store, unread
    from muster.bus.transports.lanes import inspect

    def depth() -> int:
        return sum(view.depth for view in inspect.lanes_to(spawner.store, OPERATOR))

    last, ends = -1, 0.0
    while spawner.server.is_held and (left := depth()) > 0:
        if left != last:
            last, ends = left, time.monotonic() + _READER_STALLS_S
        if time.monotonic() >= ends:
            return
        spawner.serve_clients(0.02)
    if unread(spawner.store) == 0:
        remove_store(spawner.store)
        spool = spawner.spec.spool
        if spool is not None and not spawner.server.is_held:  # who held the fleet would read it, and remove it
            shutil.rmtree(spool, ignore_errors=True)
