"""What the kernel offers for supervision, and what stands in for it elsewhere. The only module that asks which platform
this is.

Linux has everything: proofs of parenthood (/proc), subreapers, parent-death signals, pidfds. macOS has none of them;
there psutil lists processes, groups are killed instead of trees, and what escapes its group escapes (`muster doctor`
says so). Standard library only; ctypes and psutil are imported when first needed, because the command line imports this
module for every short verb.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

IS_LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
#: Where descriptors cannot be listed: far beyond what a command line or a spawner ever opens.
_FDS_GUESSED_MAX = 65536
#: Struct flock: Linux puts the type first, the BSDs last.
_FLOCK = struct.Struct("@hhqqi4x") if IS_LINUX else struct.Struct("@qqihh")


class Stat(NamedTuple):
    """One process as the kernel shows it. `start_time` counts clock ticks since boot, so (pid, start_time) names it for
    ever.
    """

    parent: int
    state: str
    start_time: int
    session: int = 0


# --------------------------------------------------------------------------- what a process does to itself


@cache
def _prctl() -> Any:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).prctl
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    return function


def _call_prctl(option: int, value: int | bytes) -> None:
    if _prctl()(option, value, 0, 0, 0) != 0:
        import ctypes

        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def prepare() -> None:
    """Load what the functions below need, so that forked children find it ready."""
    if IS_LINUX:
        _prctl()
    has_children_files()


def set_subreaper() -> None:
    """Make this process the new parent of every orphan below it, instead of init. Does nothing on macOS."""
    if IS_LINUX:
        _call_prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal(sig: int) -> None:
    """Let the kernel send this process `sig` when the parent thread that forked it ends. Does nothing on macOS.

    Compare `os.getppid()` with the expected parent afterwards: it may have died before this call.
    """
    if IS_LINUX:
        _call_prctl(_PR_SET_PDEATHSIG, int(sig))


def set_process_name(name: str) -> None:
    """The name that `ps` and `top` show; the kernel keeps 15 bytes of it. Does nothing on macOS."""
    if IS_LINUX:
        _call_prctl(_PR_SET_NAME, name.encode()[:15] + b"\0")


def allow_descriptors(needed: int) -> None:
    """Raise this process's own bound on open files to what is allowed, if `needed` is more; what it starts inherits that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        # With fewer, what finds none is refused with a reason.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_fds() -> list[int]:
    """This process's open file descriptors (some may be closed already: callers expect EBADF)."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd" if IS_LINUX else "/dev/fd")]
    except OSError:  # no /proc, or a process made unreadable (PR_SET_DUMPABLE): every number it may have
        return list(range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _FDS_GUESSED_MAX)))


# --------------------------------------------------------------------------- processes


def stat_of(pid: int) -> Stat | None:
    """Parent, state letter and start time of `pid`, or None when there is no such process."""
    if not IS_LINUX:
        return _stat_of_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except OSError:
        return None
    # The command's name stands in parentheses and may contain anything, also ") ": the last one closes it.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    return Stat(int(fields[1]), fields[0].decode(), int(fields[19]), int(fields[3]))


def start_time_of(pid: int) -> int | None:
    """Clock ticks between boot and the start of `pid` (field 22 of /proc/PID/stat), or None when there is no such
    process.
    """
    stat = stat_of(pid)
    return None if stat is None else stat.start_time


def started_unix_s(pid: int) -> float | None:
    """When `pid` started, on the wall clock as it is now, or None when there is no such process, or it cannot be told."""
    ticks = start_time_of(pid)
    if ticks is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def since(pid: int | None) -> str:
    """A process and how long there has been one, for a sentence: "process 17 since 2026-01-31 09:30:00"."""
    started_s = None if pid is None else started_unix_s(pid)
    if started_s is None:
        return f"process {pid or 'unknown'}"
    return f"process {pid} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(started_s))}"


@cache
def has_children_files() -> bool:
    """Whether the kernel lists children directly (CONFIG_PROC_CHILDREN; gVisor and some small kernels do not)."""
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def children_of(pid: int) -> list[int]:
    """The child processes of `pid`, zombies included; empty when there is no such process. Raises OSError when the caller's own cannot be
    listed, for want of a descriptor: no list is not an empty list.

    Exact when `pid` is the caller and has one thread (nobody else reaps its children meanwhile). For others it is a
    moment's
    picture: a child may end or appear while it is taken.
    """
    if not IS_LINUX:
        return [child for child, stat in _all_psutil() if stat.parent == pid]
    if not has_children_files():
        return [child for child in process_ids() if (stat := stat_of(child)) is not None and stat.parent == pid]
    # One file per thread: a child hangs below the thread that forked (or adopted) it. A thread that ends meanwhile
    # hands its children to one that may have been read already: look again.
    while True:
        found: list[int] = []
        threads = _threads_of(pid)
        for thread in threads:
            try:
                with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                    found.extend(int(text) for text in file.readall().split())
            except OSError as error:
                _unless_blind(pid, error)
        if len(threads) <= 1 or threads <= _threads_of(pid):
            return found


def _threads_of(pid: int) -> set[str]:
    try:
        return set(os.listdir(f"/proc/{pid}/task"))
    except OSError as error:
        _unless_blind(pid, error)
        return set()


def _unless_blind(pid: int, error: OSError) -> None:
    """Pass over what has ended meanwhile, but not over this process's own children because it cannot look."""
    if pid == os.getpid() and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


def process_ids() -> Iterator[int]:
    """Every process id of the system."""
    if not IS_LINUX:
        for pid, _ in _all_psutil():
            yield pid
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def environ_of(pid: int) -> list[bytes]:
    """The `NAME=value` entries that `pid` was executed with; empty when it is gone, a zombie, or not ours to read.

    It is the environment at its last exec: a fork without exec shows its parent's, and later changes do not appear.
    """
    if not IS_LINUX:
        return _environ_of_psutil(pid)
    try:
        # As root every process is readable: another user's process is never ours, whatever its environment says.
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return []
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def signal_exactly(pid: int, start_time: int, sig: int) -> bool:
    """Send `sig` to the process that started at `start_time`, never to a later owner of its pid. False when it is gone."""
    if not IS_LINUX:
        if start_time_of(pid) != start_time:
            return False
        with contextlib.suppress(OSError):
            os.killpg(pid, sig)  # no trees here: the group is the best that can be had
        return _kill(pid, sig)
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if not isinstance(error, ProcessLookupError) and start_time_of(pid) == start_time:
            return _kill(pid, sig)  # no descriptor free: the short gap between look and signal is the lesser evil
        return False
    try:
        if start_time_of(pid) != start_time:
            return False
        signal.pidfd_send_signal(handle, sig)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _kill(pid: int, sig: int) -> bool:
    try:
        os.kill(pid, sig)
    except OSError:
        return False
    return True


def wait_for_exits(pids: Iterable[int], timeout_s: float) -> None:
    """Return when one of `pids` has ended (zombies have), or after `timeout_s`."""
    handles: list[int] = []
    try:
        if not IS_LINUX:
            time.sleep(min(timeout_s, 0.01))
            return
        poll = select.poll()
        for pid in list(pids)[:64]:  # the first of them is enough; the rest would only cost descriptors
            try:
                handles.append(os.pidfd_open(pid))
            except ProcessLookupError:
                return
            except OSError:
                time.sleep(min(timeout_s, 0.01))
                return
            poll.register(handles[-1], select.POLLIN)
        poll.poll(max(0.0, timeout_s) * 1000)
    finally:
        for handle in handles:
            os.close(handle)


# --------------------------------------------------------------------------- sockets and locks


@cache
def boot_id() -> str:
    """Changes with every boot: pids and start times of an earlier boot mean nothing. "-" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "-"


def control_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair that keeps message boundaries. macOS has no SEQPACKET for Unix sockets and gets DGRAM."""
    kind = socket.SOCK_SEQPACKET if IS_LINUX else socket.SOCK_DGRAM
    pair = socket.socketpair(socket.AF_UNIX, kind)
    for end in pair:
        # A `WorkerList` is one message: room for some thousands of workers, where the system's limit lets us.
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            if not IS_LINUX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return pair


def peer_uid(connection: socket.socket) -> int:
    """The user id behind a connected Unix socket, as the kernel saw it at connect."""
    if IS_LINUX:
        pid_uid_gid = struct.Struct("@iII")
        return int(
            pid_uid_gid.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, pid_uid_gid.size))[1]
        )
    # struct xucred of LOCAL_PEERCRED: version, uid, …
    return int(struct.unpack("@II", connection.getsockopt(0, 1, 8))[1])


@contextlib.contextmanager
def short_path(folder: Path, name: str) -> Iterator[str]:
    """`folder/name` in a form that fits into a socket address (about 100 bytes), however long `folder` is."""
    path = str(folder / name)
    if len(os.fsencode(path)) <= 100:
        yield path
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if IS_LINUX:
            yield f"/proc/self/fd/{handle}/{name}"
        else:
            before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fchdir(handle)
            try:
                yield name
            finally:
                os.fchdir(before)
                os.close(before)
    finally:
        os.close(handle)


def lock_owner(fd: int) -> int | None:
    """The pid that holds a POSIX write lock on the first byte of `fd`, 0 when it is in another pid namespace, None
    without one.
    """
    if IS_LINUX:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    else:
        asked = _FLOCK.pack(0, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


# --------------------------------------------------------------------------- macOS


def _stat_of_psutil(pid: int) -> Stat | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
            return Stat(process.ppid() or 0, state, int(process.create_time() * 100))
    except psutil.Error:
        return None


def _all_psutil() -> Iterator[tuple[int, Stat]]:
    import psutil

    for pid in psutil.pids():
        stat = _stat_of_psutil(pid)
        if stat is not None:
            yield pid, stat


def _environ_of_psutil(pid: int) -> list[bytes]:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.uids().effective != os.geteuid():
            return []
        return [f"{name}={value}".encode() for name, value in process.environ().items()]
    except (psutil.Error, OSError):
        return []
