"""Where the fleet's proxy listens, and whether that very process still lives: the file `proxy` of the store.

Whoever was cut off by a proxy must be able to tell that the proxy had died, not a moment later. The kernel marks a process that begins to
exit (PF_EXITING, `do_exit` in kernel/exit.c) before it closes the first of its sockets, so a client that saw its connection end by the
death of the proxy finds it marked, or gone.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

FILE = "proxy"
_PF_EXITING = 0x4


class Life(msgspec.Struct, frozen=True):
    """One process of the proxy. `start_time`: clock ticks after boot, which make the pid unambiguous."""

    port: int
    pid: int
    start_time: int

    def is_over(self) -> bool:
        """Whether the process has ended or begun to end."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb", buffering=0) as file:
                text = file.read(1024)
        except OSError:
            return True
        fields = text[text.rfind(b")") + 2 :].split()
        return len(fields) < 20 or int(fields[19]) != self.start_time or bool(int(fields[6]) & _PF_EXITING)


_decode = msgspec.json.Decoder(Life).decode


def read(store: Path) -> Life | None:
    """The last proxy of the fleet, or None if there was none yet."""
    try:
        return _decode((store / FILE).read_bytes())
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def write(store: Path, life: Life) -> None:
    """From now on `life` is the fleet's proxy."""
    replace(store / FILE, msgspec.json.encode(life))


def replace(path: Path, data: bytes) -> None:
    """A private file whose reader sees the old content or the new. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, path)
