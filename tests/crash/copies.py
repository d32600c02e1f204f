"""Stores as they are at an instant: copied, put back, compared."""

from __future__ import annotations

import os
import shutil
import stat
from hashlib import blake2b
from pathlib import Path


def copy_store(source: Path, target: Path) -> None:
    """Make `target` what `source` is, names, modes and bytes; bells come out empty, as after the death of all who held them."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        _copy(str(source), str(target))


def _copy(source: str, target: str) -> None:
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            found, path = entry.stat(follow_symlinks=False), f"{target}/{entry.name}"
            if stat.S_ISDIR(found.st_mode):
                _copy(entry.path, path)
            elif stat.S_ISFIFO(found.st_mode):
                os.mkfifo(path, stat.S_IMODE(found.st_mode))
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(entry.path, "rb", buffering=0) as file:
                    data = file.read()
                while data:
                    data = data[os.write(fd, data) :]
                os.close(fd)
            os.chmod(path, stat.S_IMODE(found.st_mode))
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))


def files_of(store: Path) -> list[str]:
    """Paths of everything in the store, sorted."""
    return sorted(os.path.join(above, name) for above, folders, files in os.walk(store) for name in (*folders, *files))


def digest_of(store: Path) -> bytes:
    """What tells two states of a store apart: the names in it and the bytes of its files."""
    digest = blake2b(digest_size=16)
    for path in files_of(store):
        found = os.lstat(path)
        digest.update(f"{path}\0{found.st_mode}\0{found.st_size}\0".encode())
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb", buffering=0) as file:
                digest.update(file.read())
    return digest.digest()
