"""Files and folders of a store: types, owners, modes, names; the same few rules everywhere."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial

from muster.bus.transports.lanes.fsck.findings import DAMAGE, NOTICE, Finding

#: Of a name in a folder: "file", "folder", "fifo", or "" for one that does not belong there.
Expect = Callable[[str], str]
_TYPES = {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "fifo": stat.S_ISFIFO}


def check_entry(path: str, place: str, kind: str, lock: str | None) -> Iterator[Finding]:
    """One file, folder or FIFO: what it is, whose, how open, and (files) that no other name leads to it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        yield Finding(
            DAMAGE, place, "is a symbolic link", remedy="remove the link, not what it leads to", lock=lock,
            cure=lambda: os.unlink(path),
        )  # fmt: skip
        return
    if kind and not _TYPES[kind](found.st_mode):
        yield Finding(DAMAGE, place, f"is no {kind}; it has to be removed by hand")
        return
    if found.st_uid != os.geteuid():
        yield Finding(DAMAGE, place, f"belongs to user {found.st_uid}, not to {os.geteuid()}; nobody uses it as it is")
        return
    mode = stat.S_IMODE(found.st_mode)
    right = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
    if mode & 0o077 or mode & right != right:
        yield Finding(
            DAMAGE, place, f"has mode {mode:04o} instead of {right:04o}", remedy=f"give it mode {right:04o}", lock=lock,
            cure=lambda: os.chmod(path, right),
        )  # fmt: skip
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        yield Finding(
            DAMAGE, place, f"has {found.st_nlink} names: what is written here appears elsewhere, too",
            remedy="replace it by a copy", lock=lock, cure=lambda: _own_copy(path),
        )  # fmt: skip


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _own_copy(path: str) -> None:
    temporary = f"{os.path.dirname(path)}/tmp-fsck-{os.getpid()}"
    shutil.copyfile(path, temporary)
    os.chmod(temporary, 0o600)
    os.rename(temporary, path)


def check_folder(path: str, place: str, expect: Expect, lock: str | None) -> Iterator[Finding]:
    """A folder and what lies in it. Temporary files that nobody writes any more are removed; unknown names are told and left alone."""
    yield from check_entry(path, place, "folder", lock)
    if os.path.islink(path):
        return  # what it leads to is none of ours
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return
    temporary = [name for name in names if name.startswith("tmp-")]
    for name in temporary:
        yield Finding(
            NOTICE, f"{place}/{name}", "is a temporary file of a process that was ended", remedy="remove it", lock=lock,
            cure=partial(_remove, f"{path}/{name}"),
        )  # fmt: skip
    for name in names:
        if name in temporary:
            continue
        kind = expect(name)
        if not kind and not os.path.islink(f"{path}/{name}"):
            yield Finding(NOTICE, f"{place}/{name}", "does not belong to a store; it is left alone")
        elif kind == "file" and temporary and os.lstat(f"{path}/{name}").st_nlink > 1:
            continue  # a file that is being put in place has two names; with its temporary one gone it has one
        else:
            yield from check_entry(f"{path}/{name}", f"{place}/{name}", kind, lock)
