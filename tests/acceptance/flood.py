"""Senders, each a process, flood a recipient that does not listen yet; and what can be seen of them from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from muster.testing import eventually

from .place import PATIENCE_S, Place

#: `sender.py NAME COUNT BYTES WAIT_S NOTE`: sends until COUNT messages are accepted. Refused ones are tried again, as late as the refusal
#: says. NOTE holds how many were accepted so far; at the end a line tells what the bus has counted.
SENDER = """
import asyncio, json, os, sys, time, muster

name, count, body_bytes, wait_s, note = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]

async def main():
    accepted = refused = 0
    filling = "x" * body_bytes
    note_fd = os.open(note, os.O_WRONLY | os.O_CREAT, 0o600)
    async with muster.join(name, wait_s=30) as me:
        while accepted < count:
            try:
                await me.send("sink", [accepted, filling], wait_s=wait_s)
            except (muster.InboxFullError, muster.OutboxFullError) as error:
                refused += 1
                await asyncio.sleep(error.retry_after_s)
                continue
            accepted += 1
            os.pwrite(note_fd, b"%9d" % accepted, 0)
        tried = me.stats.refused_full
    print(json.dumps({"sender": name, "accepted": accepted, "refused": refused, "tried_in_vain": tried}))

asyncio.run(main())
"""
#: `sink.py OVERFLOW COUNT GO HEARD`: joins, listens once GO exists, notes each message in HEARD before it acks it, and tells what it saw.
SINK = """
import asyncio, json, os, sys, muster

overflow, count, go, heard = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

async def main():
    deepest = got = 0
    async with muster.join("sink", wait_s=30, overflow=overflow) as me:
        print("joined", flush=True)
        while not os.path.exists(go):
            await asyncio.sleep(0.02)
        with open(heard, "w") as file:
            while got < count:
                if got % 64 == 0:
                    deepest = max(deepest, me.depth())
                async with await me.receive() as delivery:
                    print(delivery.sender, delivery.seq, delivery.body[0], file=file, flush=True)
                got += 1
            more = await me.receive(timeout_s=0.2)
            assert more is None, "more than was accepted"
    print(json.dumps({"deepest": deepest, "got": got}))

asyncio.run(main())
"""


class Bounds(NamedTuple):
    """What the fleet of a flood declares (`[bus]`)."""

    senders: int
    inbox_messages: int
    #: Of one sender's segments; there is one lane to the sink.
    outbox_bytes: int
    body_bytes: int

    @property
    def agents(self) -> int:
        """Room on the roster: the senders, the sink, the coordinator and its companions."""
        return self.senders + 8

    @property
    def fleet_bytes(self) -> int:
        return self.agents * self.outbox_bytes

    def toml(self, more: str = "") -> str:
        """The fleet's file."""
        return (
            f'[fleet]\nname = "flood"\n[agents.sink]\n{more}[bus]\nagents_max = {self.agents}\n'
            f"inbox_messages_max = {self.inbox_messages}\nlane_messages_max = {self.inbox_messages}\n"
            f"outbox_bytes_max = {self.outbox_bytes}\nlane_bytes_max = {self.outbox_bytes}\n"
            f"fleet_bytes_max = {self.fleet_bytes}\n"
        )


class Blocked(NamedTuple):
    """What processes did while nothing could be sent: summed over all of them."""

    switches: int
    cpu_ns: int


def segment_bytes(store: Path) -> tuple[int, int]:
    """Bytes that segments take on the store: of the sender that has most, and of all. A segment that vanishes meanwhile is none."""
    most = total = 0
    for outbox in store.glob("agents/*/outbox"):
        held = 0
        for lane in sorted(outbox.iterdir()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(lane):
                    if name.endswith(".seg"):
                        with contextlib.suppress(FileNotFoundError):
                            held += os.stat(lane / name).st_blocks * 512
        most, total = max(most, held), total + held
    return most, total


class Flood:
    """The processes of one flood. Everything ends with `close`."""

    def __init__(self, place: Place, bounds: Bounds, *, overflow: str, times: int, wait_s: float) -> None:
        """Messages of `times` the capacity are sent, each sender an equal part of them."""
        self.place, self.bounds = place, bounds
        self.each = times * bounds.inbox_messages // bounds.senders
        self.store = place.root / "flood"
        self.heard, self.go = place.work / "heard", place.work / "go"
        self.most_bytes = self.total_bytes = self.samples = 0
        self.sample_s = 0.0
        self._env = place.env | {"MUSTER_STORE": str(self.store)}
        self._notes = {f"s-{number}": place.work / f"note-{number}" for number in range(bounds.senders)}
        count = self.each * bounds.senders
        self.sink = self._start(place.script("sink.py", SINK), overflow, count, self.go, self.heard)
        assert self.sink.stdout is not None
        assert self.sink.stdout.readline() == "joined\n"
        sender = place.script("sender.py", SENDER)
        self.senders = [
            self._start(sender, name, self.each, bounds.body_bytes, wait_s, note) for name, note in self._notes.items()
        ]

    def _start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=self.place.work, env=self._env, stdout=subprocess.PIPE, text=True
        )

    def accepted(self) -> int:
        """How many messages were accepted so far."""
        total = 0
        for note in self._notes.values():
            with contextlib.suppress(FileNotFoundError):
                total += int(note.read_bytes() or b"0")
        return total

    def sample(self) -> None:
        """Look how many bytes the segments take now."""
        began_s = time.monotonic()
        most, total = segment_bytes(self.store)
        self.sample_s = time.monotonic() - began_s
        self.most_bytes, self.total_bytes = max(self.most_bytes, most), max(self.total_bytes, total)
        self.samples += 1

    def until_nothing_moves(self) -> int:
        """Wait until no sender can store any more; how many messages were accepted by then."""
        last, since = -1, 0
        asleep: set[int] = set()

        def still() -> bool:
            nonlocal last, since
            self.sample()
            now = self.accepted()
            if now != last or not all(_is_begun(note) for note in self._notes.values()):
                last, since = now, 0
                asleep.clear()
            since += 1
            # Whoever only waits for a processor is not asleep.
            asleep.update(sender.pid for sender in self.senders if _is_asleep(sender.pid))
            return since > 20 and len(asleep) == len(self.senders)  # looks, of up to 50 ms

        eventually(still, 2 * PATIENCE_S, "the senders are stopped by full inboxes")
        return last

    def spent(self) -> Blocked:
        """Voluntary switches and time on processors of all senders so far."""
        switches = cpu_ns = 0
        for sender in self.senders:
            for line in Path(f"/proc/{sender.pid}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    switches += int(line.split()[1])
            for task in Path(f"/proc/{sender.pid}/task").iterdir():
                cpu_ns += int((task / "schedstat").read_text().split()[0])
        return Blocked(switches, cpu_ns)

    def drain(self, timeout_s: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Let the sink listen, and sample until everybody has ended: what the senders tell, and what the sink does."""
        self.go.touch()

        def ended() -> bool:
            self.sample()
            return all(process.poll() is not None for process in (*self.senders, self.sink))

        deadline = time.monotonic() + timeout_s
        while not ended():  # more often than `eventually` looks: what matters is what is seen on the way
            assert time.monotonic() < deadline, f"they have not ended: {self.accepted()} accepted"
            time.sleep(max(0.002, 4 * self.sample_s))  # looking must not take a processor from those who work
        assert [process.returncode for process in (*self.senders, self.sink)] == [0] * (len(self.senders) + 1)
        told = []
        for process in (*self.senders, self.sink):
            assert process.stdout is not None
            told.append(json.loads(process.stdout.read()))
        return told[:-1], told[-1]

    def heard_by_sender(self) -> dict[str, list[tuple[int, int]]]:
        """Sender -> (number on its lane, which of its messages), in the order of delivery."""
        heard: dict[str, list[tuple[int, int]]] = {}
        for line in self.heard.read_text().splitlines():
            sender, seq, number = line.split()
            heard.setdefault(sender, []).append((int(seq), int(number)))
        return heard

    def close(self) -> None:
        """End what still runs."""
        for process in (*self.senders, self.sink):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _is_begun(note: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return note.stat().st_size > 0
    return False
