"""Small file systems of one's own, and children that work on them as root or as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

NOBODY: Final = 65534
CHILD_S: Final = 50


@contextlib.contextmanager
def mounted(kind: str, options: str = "", *, image_bytes: int = 0, uid: int = 0) -> Iterator[Path]:
    """A new file system of `kind` on a temporary folder that belongs to `uid`; unmounted and removed at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="muster-full-"))
    folder.chmod(0o755)
    point = folder / "mount"
    point.mkdir()
    source = kind
    try:
        if image_bytes:
            source = str(folder / "image")
            with open(source, "wb") as image:
                image.truncate(image_bytes)
            subprocess.run([f"mkfs.{kind}", "-q", source], check=True)
            options = ",".join(filter(None, (options, "loop")))
        subprocess.run(["mount", "-t", kind, *(["-o", options] if options else []), source, str(point)], check=True)
        try:
            os.chown(point, uid, uid)
            yield point
        finally:
            subprocess.run(["umount", "-l", str(point)], check=True)
    finally:
        shutil.rmtree(folder)


def in_child(uid: int, work: Callable[[], None]) -> None:
    """Run `work` in a forked child as `uid`. Its failure, or the signal that ended it, fails the caller."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(CHILD_S)
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc()[-60_000:].encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child ended with {code}\n{told}"


class Ballast:
    """A file that takes all the room that is left; what frees room while it stands is not taken again."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ballast"

    def fill(self) -> None:
        with open(self.path, "ab", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def drop(self) -> None:
        self.path.unlink()
