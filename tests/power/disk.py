"""A disk whose power can be cut: an ext4 image on a loop device, and copies of what had reached it at some moment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from muster.testing import eventually

IMAGE_BYTES: Final = 64 << 20
PAGE: Final = 4096
#: sync_file_range(2): wait for writes under way, write the dirty pages, wait for them. No journal commit, no flush of the disk.
_WRITE_NOW: Final = 1 | 2 | 4
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    """`image` on a loop device at `point`; unmounted at the end, whatever happens."""
    point.mkdir()
    run("mount", "-t", "ext4", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        run("umount", "-l", str(point))


def why_not() -> str:
    """Why no power can be cut here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if any(shutil.which(tool) is None for tool in ("mkfs.ext4", "mount", "umount", "cp")):
        return "needs mkfs.ext4 and mount"
    with workplace() as folder:
        try:
            with mounted(make_image(folder), folder / "try"):
                return ""
        except subprocess.CalledProcessError as error:
            return f"loop mounts do not work here: {error.stderr.strip()}"


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder for images, in memory where there is room: a loop device flushes its file at every sync."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 4 * IMAGE_BYTES
    folder = Path(tempfile.mkdtemp(prefix="muster-power-", dir=shared if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_image(folder: Path) -> Path:
    """An empty file system in a file."""
    image = folder / "disk"
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    return image


def cut_power(image: Path, point: Path, copy: Path) -> None:
    """Copy what has reached the disk. Nothing on `point` may be at work any more; nothing is flushed.

    A copy takes longer than a moment: it counts only if the kernel, too, wrote nothing while it was made.
    """

    def copied_in_silence() -> bool:
        before, in_flight = _requests(point)
        if in_flight:
            return False
        run("cp", "--sparse=always", str(image), str(copy))
        return _requests(point) == (before, 0)

    eventually(copied_in_silence, 10.0, "a moment without writes to the disk")


def _requests(point: Path) -> tuple[int, int]:
    """Writes that the disk has finished, and requests in flight."""
    device = point.stat().st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[4]), int(fields[8])


def write_some_pages(point: Path, dice: random.Random) -> None:
    """Write pages chosen by `dice` to the disk, as the kernel may do at any moment and in any order, and no others."""
    files = [path for path in sorted(point.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in dice.sample(files, min(len(files), dice.randint(0, 8))):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            pages = max(1, os.fstat(fd).st_size // PAGE)
            for _ in range(dice.randint(1, 3)):
                at = dice.randrange(pages) * PAGE
                _libc.sync_file_range(fd, ctypes.c_int64(at), ctypes.c_int64(PAGE), _WRITE_NOW)
        finally:
            os.close(fd)
