"""One life, executed instruction by instruction between its marks: every state that its store passes through is copied.

The tracer maps the store's files itself and compares their bytes after each instruction; only a system call can make, rename or remove
files, so their names are read again after those. An instruction at which nothing changed leaves the state that was copied before, so
the copies are all that a death at any instruction can leave behind.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .calls import MARK
from .copies import digest_of
from .faults import body_of
from .life import Act
from .ptrace import RAX, RIP, STEPPED_CHILD_S, Tracee

_SYSCALL = b"\x0f\x05"


@dataclass
class Steps:
    """How many instructions there were, and how many states of the store differed from all before."""

    instructions: int = 0
    states: int = 0


class _Watch:
    """What a process can change of a store: by a call anything, by an instruction the files that it has mapped."""

    def __init__(self, store: Path, pid: int) -> None:
        self._store = store
        self._pid = pid
        self._digest = b""
        self._inodes: list[int] = []
        self._maps: list[mmap.mmap] = []
        self._stored: list[bytes] = []

    def call_changed(self) -> bool:
        """Whether a system call changed anything: names, modes, sizes, bytes."""
        self._map()
        self._stored = [mapped[:] for mapped in self._maps]
        before, self._digest = self._digest, digest_of(self._store)
        return self._digest != before

    def store_changed(self) -> bool:
        """Whether an instruction changed the bytes of a file."""
        stored = [mapped[:] for mapped in self._maps]
        if stored == self._stored:
            return False
        self._stored = stored
        return True

    def _map(self) -> None:
        """Map what the process maps now. A file that was removed is no part of the store any more."""
        with open(f"/proc/{self._pid}/maps", encoding="utf-8", errors="replace") as table:
            lines = [line.rstrip("\n").split(maxsplit=5) for line in table]
        ours = [
            line for line in lines if len(line) == 6 and line[1] == "rw-s" and line[5].startswith(f"{self._store}/")
        ]
        paths = {int(line[4]): line[5] for line in ours if not line[5].endswith(" (deleted)")}
        if list(paths) != self._inodes:
            self._inodes = list(paths)
            self.close()
            for path in paths.values():
                with open(path, "rb") as file:
                    self._maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))

    def close(self) -> None:
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()


@contextlib.contextmanager
def _on_one_processor() -> Iterator[None]:
    """Tracer and tracee take turns: on one processor the change from one to the other is cheapest."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def step_through(act: Act, store: Path, notes: Path, on_state: Callable[[int], None]) -> Steps:
    """Play one life, calling `on_state` with the number of the instruction at each new state of its store; the child stands still then."""
    steps, seen = Steps(), set[bytes]()

    def look() -> None:
        digest = digest_of(store)
        if digest not in seen:
            seen.add(digest)
            steps.states += 1
            on_state(steps.instructions)

    with _on_one_processor():
        tracee = Tracee(partial(body_of, act, store, notes), child_s=STEPPED_CHILD_S)
        watch = _Watch(store, tracee.pid)
        try:
            while (entry := tracee.next_call()) is not None and entry.number != MARK:
                tracee.finish_call()
            assert tracee.finish_call(), "the life ended before its first mark"
            watch.call_changed()
            look()
            is_call: dict[int, bool] = {}  # by address: code does not change
            while True:
                at = tracee.register(RIP)
                called = is_call.get(at)
                if called is None:
                    called = is_call[at] = tracee.read(at, 2) == _SYSCALL
                if called and tracee.register(RAX) == MARK:
                    break
                assert tracee.step(), "the life ended before its second mark"
                steps.instructions += 1
                if watch.call_changed() if called else watch.store_changed():
                    look()
            tracee.let_go()
            assert tracee.ended == 0, f"the life ended with {tracee.ended}"
        finally:
            watch.close()
            tracee.close()
    return steps
