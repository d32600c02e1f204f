"""A child process that is stopped at each of its system calls, or after each of its instructions. Linux on x86-64.

The parent of a tracee must be the thread that traces it, so everything here happens in the thread that made it. A tracee dies with
its tracer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, NoReturn

_TRACEME, _PEEKUSER, _POKEUSER, _CONT, _SINGLESTEP = 0, 3, 6, 7, 9
_DETACH, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 17, 24, 0x4200, 0x420E
_TRACESYSGOOD, _EXITKILL = 1, 1 << 20
#: Offsets in struct user_regs_struct of x86-64.
RAX, RDX, ORIG_RAX, RIP = 10 * 8, 12 * 8, 15 * 8, 16 * 8
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_ENTRY = struct.Struct("<B3xIQQQ6Q")  # op, arch, ip, sp, nr, args
#: A child that lives longer is killed, and reported as killed by SIGALRM: nothing here waits for ever.
CHILD_S, STEPPED_CHILD_S = 30, 900

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_info = ctypes.create_string_buffer(96)


class Entry(NamedTuple):
    """The call a tracee is about to make."""

    number: int
    arguments: tuple[int, ...]


def _request(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    answer: int = _ptrace(request, pid, address, data)
    if answer == -1 and (number := ctypes.get_errno()):
        raise OSError(number, f"ptrace({request:#x}): {os.strerror(number)}")
    return answer


def spawn(body: Callable[[], object], *, traced: bool, child_s: int = CHILD_S) -> int:
    """Fork a child that runs `body` and ends with status 0, or shows what was raised and ends with 70; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(body, traced, child_s)
    return pid


def _begin_tracing() -> bool:
    """In the child: stop, to be traced by the parent from here on. False where that is not permitted."""
    try:
        _request(_TRACEME, 0)
    except OSError:
        return False
    os.kill(os.getpid(), signal.SIGSTOP)
    return True


def _child(body: Callable[[], object], traced: bool, child_s: int) -> NoReturn:
    status = 70
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(child_s)
        if traced and not _begin_tracing():
            os._exit(status)  # the parent sees that this ends instead of stopping
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


class Tracee:
    """A forked child that runs `body` under the caller's eyes; it starts stopped."""

    def __init__(self, body: Callable[[], object], *, child_s: int = CHILD_S) -> None:
        self.pid = spawn(body, traced=True, child_s=child_s)
        #: How it ended, as `os.waitstatus_to_exitcode` says it; None while it lives.
        self.ended: int | None = None
        self._deliver = 0
        self._wait()
        self._deliver = 0  # the SIGSTOP that it sent itself
        if self.ended is not None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        _request(_SETOPTIONS, self.pid, 0, _TRACESYSGOOD | _EXITKILL)
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def _wait(self) -> bool:
        """Wait for the next stop. True if it stands at a system call."""
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSTOPPED(status):
            self.ended = os.waitstatus_to_exitcode(status)
            return False
        stopped_by = os.WSTOPSIG(status)
        self._deliver = 0 if stopped_by in (_SYSCALL_STOP, signal.SIGTRAP) else stopped_by
        return stopped_by == _SYSCALL_STOP

    def _resume(self, request: int) -> bool:
        _request(request, self.pid, 0, self._deliver)
        return self._wait()

    def _to_call(self) -> bool:
        """Run to the next entry or end of a system call. False if the child has ended."""
        while self.ended is None:
            if self._resume(_SYSCALL):
                return True
        return False

    def next_call(self) -> Entry | None:
        """Run to the entry of its next system call; None when it has ended."""
        if not self._to_call():
            return None
        _request(_GET_SYSCALL_INFO, self.pid, len(_info), ctypes.addressof(_info))
        _op, _arch, _ip, _sp, number, *arguments = _ENTRY.unpack_from(_info)
        return Entry(number, tuple(arguments))

    def finish_call(self) -> bool:
        """Carry the call out and stop behind it. False if the child died in it."""
        return self._to_call()

    def fail_call(self, number: int) -> None:
        """Let the call at whose entry the child stands not happen, and return the error `number` instead."""
        _request(_POKEUSER, self.pid, ORIG_RAX, -1)
        if self.finish_call():
            _request(_POKEUSER, self.pid, RAX, -number)

    def shorten_call(self, count: int) -> None:
        """Carry out the write at whose entry the child stands with `count` bytes only."""
        whole = _request(_PEEKUSER, self.pid, RDX)
        _request(_POKEUSER, self.pid, RDX, count)
        if self.finish_call():
            _request(_POKEUSER, self.pid, RDX, whole)  # a caller may count on the register

    def step(self) -> bool:
        """Execute one instruction. False if the child has ended."""
        self._resume(_SINGLESTEP)
        return self.ended is None

    def register(self, offset: int) -> int:
        return _request(_PEEKUSER, self.pid, offset)

    def read(self, address: int, size: int) -> bytes:
        return os.pread(self._memory, size, address)

    def text(self, address: int) -> str:
        """The zero-terminated path at `address`."""
        data = self.read(address, 4096 - address % 4096)
        if b"\0" not in data:
            data += self.read(address + len(data), 4096)
        return os.fsdecode(data.partition(b"\0")[0])

    def kill(self) -> None:
        """SIGKILL, right where it stands: a call at whose entry it is does not happen."""
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.ended is None:
                self._wait()

    def let_go(self) -> None:
        """Run to its end without any further stop."""
        if self.ended is None:
            _request(_DETACH, self.pid, 0, self._deliver)
            while self.ended is None:
                self._wait()

    def close(self) -> None:
        self.kill()
        os.close(self._memory)


@cache
def why_not() -> str:
    """Why nothing can be traced here, or "" where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "crash points need ptrace on Linux, x86-64"
    try:
        tracee = Tracee(os.getppid)
        try:
            while tracee.next_call() is not None:
                tracee.finish_call()
        finally:
            tracee.close()
    except OSError as error:
        return f"crash points need ptrace, which is not permitted here ({error.strerror})"
    return "" if tracee.ended == 0 else "crash points need ptrace, and a traced process does not run here"
