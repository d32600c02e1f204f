"""Which system calls change a store, what they are called in the list of crash points, and what can go wrong with each."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from .ptrace import Entry, Tracee

#: The call by which a scenario marks where the part it is about begins and ends: it changes nothing, and muster never makes it.
MARK: Final = 110  # getppid

_AT_FDCWD: Final = -100
_SETLKS: Final = frozenset({6, 7, 37, 38})  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW


@dataclass(frozen=True)
class _Kind:
    """A system call: its name in the list, and in which arguments its files are (descriptor, path, or directory and path)."""

    name: str
    fds: tuple[int, ...] = ()
    paths: tuple[int | tuple[int, int], ...] = ()


_fd = partial(_Kind, fds=(0,))
_path = partial(_Kind, paths=(0,))
_at = partial(_Kind, paths=((0, 1),))
#: Numbers of x86-64.
_KINDS: Final = {
    1: _fd("write"), 18: _fd("pwrite"), 20: _fd("writev"), 296: _fd("pwritev"), 328: _fd("pwritev"), 40: _fd("sendfile"),
    326: _Kind("copy_file_range", fds=(2,)), 9: _Kind("mmap", fds=(4,)), 26: _Kind("msync"),
    72: _fd("lock"), 73: _fd("flock"), 74: _fd("fsync"), 75: _fd("fsync"), 277: _fd("sync_file_range"),
    76: _path("truncate"), 77: _fd("truncate"), 285: _fd("fallocate"),
    2: _path("open"), 85: _path("open"), 257: _at("open"), 437: _at("open"),
    82: _Kind("rename", paths=(0, 1)), 264: _Kind("rename", paths=((0, 1), (2, 3))), 316: _Kind("rename", paths=((0, 1), (2, 3))),
    86: _Kind("link", paths=(0, 1)), 265: _Kind("link", paths=((0, 1), (2, 3))),
    88: _Kind("symlink", paths=(1,)), 266: _Kind("symlink", paths=((1, 2),)),
    87: _path("unlink"), 263: _at("unlink"), 84: _path("rmdir"), 83: _path("mkdir"), 258: _at("mkdir"),
    133: _path("mknod"), 259: _at("mknod"), 90: _path("chmod"), 91: _fd("chmod"), 268: _at("chmod"), 452: _at("chmod"),
    92: _path("chown"), 93: _fd("chown"), 94: _path("chown"), 260: _at("chown"), 235: _path("utime"), 280: _at("utime"),
    188: _path("setxattr"), 189: _path("setxattr"), 190: _fd("setxattr"),
}  # fmt: skip

_GROWS: Final = ("EIO", "ENOSPC")
#: Errors that the kernel can give for each call, in the order they are tried. What only reads or frees needs no room.
_ERRORS: Final = {
    "open": ("EIO", "EINTR", "EMFILE"),
    "mmap": ("ENOMEM",),
    "lock": ("ENOLCK",),
    "flock": ("ENOLCK",),
    "chmod": ("EIO",),
    "chown": ("EIO",),
    "unlink": ("EIO",),
    "rmdir": ("EIO",),
    "fallocate": (*_GROWS, "EINTR"),
    "truncate": (*_GROWS, "EINTR"),
    "fsync": (*_GROWS, "EINTR"),
    "write": (*_GROWS, "EINTR"),
    "pwrite": (*_GROWS, "EINTR"),
}
_WRITES: Final = frozenset({"write", "pwrite"})
#: Modes besides the errors. `full`: from this call on, everything that needs room fails with ENOSPC.
BEFORE, AFTER, SHORT, FULL = "before", "after", "short", "full"

_PATTERNS: Final = (
    (re.compile(r"\d{20}\.seg"), "<seq>.seg"),
    (re.compile(r"\b(tmp(?:-[a-z]+)??)-[0-9][0-9a-f-]*"), r"\1-*"),
    (re.compile(r"spare-\d+"), "spare-<n>"),
    (re.compile(r"\.[0-9a-f]{32}\.\d+"), ".<lane id>.<seq>"),
)


@dataclass(frozen=True)
class Call:
    """A call that changes the store, named so that every run of the same code names it alike."""

    name: str
    target: str
    is_pipe: bool = False
    creates: bool = False
    size: int = 0

    @property
    def label(self) -> str:
        return f"{self.name} {self.target}"

    @property
    def modes(self) -> tuple[str, ...]:
        """All that can befall it."""
        if self.is_pipe and self.name == "write":  # short records go into a FIFO whole, or find it full
            return (BEFORE, AFTER, "EIO", "EINTR", "EAGAIN")
        errors = _ERRORS.get(self.name, _GROWS)
        if self.creates:
            errors = (*errors, "ENOSPC")
        more = (SHORT,) if self.name in _WRITES and self.size > 1 else ()
        return (BEFORE, AFTER, *errors, *more, *((FULL,) if "ENOSPC" in errors else ()))

    @property
    def needs_room(self) -> bool:
        return FULL in self.modes


def error_number(mode: str) -> int:
    number: int = getattr(errno, mode)
    return number


def _signed(value: int) -> int:
    return value - (1 << 32) if (value & 0xFFFFFFFF) >= 1 << 31 else value & 0xFFFFFFFF


def _behind(tracee: Tracee, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{tracee.pid}/fd/{fd}").removesuffix(" (deleted)")
    except OSError:
        return ""


def _path_of(tracee: Tracee, entry: Entry, where: int | tuple[int, int]) -> str:
    if isinstance(where, int):
        return tracee.text(entry.arguments[where])
    directory, name = _signed(entry.arguments[where[0]]), tracee.text(entry.arguments[where[1]])
    if directory == _AT_FDCWD or name.startswith("/"):
        return name
    return f"{_behind(tracee, directory)}/{name}"


def _mapped_at(tracee: Tracee, address: int) -> str:
    with open(f"/proc/{tracee.pid}/maps", encoding="utf-8", errors="replace") as table:
        for line in table:
            bounds, _, rest = line.partition(" ")
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low <= address < high:
                return rest.split(maxsplit=4)[-1].strip()
    return ""


def _changes(kind: _Kind, entry: Entry) -> bool:
    """Whether a call of this kind changes anything with these arguments."""
    arguments = entry.arguments
    if kind.name == "open":
        if entry.number in (85, 437):  # creat, openat2
            return True
        flags = arguments[1 if entry.number == 2 else 2]
        return bool(flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC))
    if kind.name == "mmap":  # shared and writable
        return bool(arguments[2] & 2 and arguments[3] & 1) and _signed(arguments[4]) >= 0
    if kind.name == "lock":
        return arguments[1] in _SETLKS
    return True


def change(tracee: Tracee, entry: Entry, store: Path) -> Call | None:
    """The change that the call at whose entry the tracee stands would make to `store`, or None."""
    kind = _KINDS.get(entry.number)
    if kind is None or not _changes(kind, entry):
        return None
    touched = [_behind(tracee, _signed(entry.arguments[at])) for at in kind.fds]
    touched += [_path_of(tracee, entry, where) for where in kind.paths]
    if kind.name == "msync":
        touched = [_mapped_at(tracee, entry.arguments[0])]
    below = f"{store}/"
    if not any(f"{path}/".startswith(below) for path in touched):
        return None
    target = " -> ".join(path.removeprefix(below) if path != str(store) else "." for path in touched)
    for pattern, name in _PATTERNS:
        target = pattern.sub(name, target)
    creates = (
        kind.name == "open"
        and entry.number != 437
        and bool(entry.number == 85 or entry.arguments[1 if entry.number == 2 else 2] & os.O_CREAT)
    )
    size = entry.arguments[2] if kind.name in _WRITES else 0
    return Call(kind.name, target, is_pipe=target.endswith("bell"), creates=creates, size=size)
