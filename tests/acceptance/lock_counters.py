"""Many processes that count in one file under one lock, and are killed while they do: `lock_counters.py STORE FILE PROCESSES KILLS SEED`.

The file holds every increment as a line "token process", written by replacing it whole. Who has read it refuses to write if a greater token
than its own is in there. What a process was told is written counts as acknowledged. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import muster
import muster.bus.lease
import muster.bus.transports.lanes.transport
import muster.fleet.places  # all of them here, so that no fork has to import anything
from muster.errors import MusterError

#: The file is counted in so often before the end that every kill has something to spoil.
COUNTS_PER_KILL = 2


def increment(file: Path, name: str, token: int) -> bool:
    """One line more, unless somebody with a greater token was here."""
    lines = file.read_text().splitlines() if file.exists() else []
    if lines and int(lines[-1].split()[0]) >= token:
        return False
    fresh = file.with_name(f"{name}.new")
    fresh.write_text("\n".join([*lines, f"{token} {name}"]) + "\n")
    os.rename(fresh, file)
    return True


async def count(store: Path, file: Path, name: str, acks: int) -> None:
    async with muster.join(name, store=store, wait_s=30) as me:
        while True:
            async with me.lock("counter") as lease:
                if increment(file, name, lease.token):
                    os.write(acks, f"{lease.token}\n".encode())


def start(store: Path, file: Path, name: str, acks: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(count(store, file, name, acks))
        except MusterError as error:
            print(f"{name}: {error.code}: {error.message}", file=sys.stderr)
        finally:
            os._exit(3)
    return pid


def main(store: Path, file: Path, processes: int, kills_min: int, seed: int) -> None:
    chance = random.Random(seed)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    alive = {f"p-{n}": start(store, file, f"p-{n}", writing) for n in range(processes)}
    said = b""
    kills = 0
    while kills < kills_min or said.count(b"\n") < COUNTS_PER_KILL * kills_min:
        time.sleep(0.05)
        said += drain(reading)
        name = chance.choice(list(alive))
        if chance.random() < 0.8:
            os.kill(alive[name], signal.SIGKILL)
            assert os.waitpid(alive[name], 0)[1] == signal.SIGKILL, f"{name} had ended by itself"
            alive[name] = start(store, file, name, writing)
            kills += 1
    for pid in alive.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said += drain(reading)
    written = [int(line.split()[0]) for line in file.read_text().splitlines()]
    acked = [int(line) for line in said.split()]
    print(json.dumps({"written": written, "acked": acked, "kills": kills}))


def drain(fd: int) -> bytes:
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            return b"".join(parts)
        parts.append(part)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
