"""Outputs of ended tasks on their way to the operator: after their line is on disk, in input order if asked, never faster than read.

The delivery of a result is acked only when its output is out of this process's hands (posted, kept in a file for its turn, or dropped
because nobody is there to read it), so a coordinator that dies loses no output.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from muster.bus.transports.lanes.locks import holder
from muster.core.names import OPERATOR
from muster.core.protocol import Result, TaskOutput
from muster.errors import BusError
from muster.security.permissions import make_private_dir

if TYPE_CHECKING:
    from collections.abc import Iterable

    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery

#: Outputs that may wait for credit before assignment stops, and before it goes on.
WAITING_MAX, WAITING_LOW = 1000, 200
WAITING_BYTES_MAX = 32 << 20


class Output(msgspec.Struct):
    """One output and the delivery that is acked when it is out of our hands."""

    body: TaskOutput
    delivery: Delivery | None
    is_held: bool = False


def output_of(result: Result, agent: str) -> TaskOutput | None:
    """What the operator is told of a result; None if there is nothing to show: done, and silent."""
    ok = result.outcome == "done"
    if ok and not result.stdout_bytes and not result.stderr_bytes:
        return None
    return TaskOutput(
        number=result.number,
        attempt=result.attempt,
        agent=agent,
        ok=ok,
        exit_status=result.exit_status,
        stdout=b"" if result.stdout_file else result.stdout,
        stderr=b"" if result.stderr_file else result.stderr,
        stdout_file=result.stdout_file,
        stderr_file=result.stderr_file,
    )


def forget_files(result: Result | TaskOutput) -> None:
    """Unlink spool files nobody will read."""
    for path in (result.stdout_file, result.stderr_file):
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)


class OutputFlow:
    """The way to the operator. `is_jammed` asks the fleet to assign nothing more for now."""

    def __init__(self, bus: Bus, store: Path, *, keep_order: bool, is_shown: bool = True) -> None:
        """`is_shown`: the fleet is a run, whose operator prints outputs; a standing fleet's ends are told to who asked."""
        self._bus = bus
        self._is_shown = is_shown
        self._lock = str(store / "agents" / OPERATOR / "inbox.lock")
        self._waiting: deque[Output] = deque()
        self._waiting_bytes = 0
        self.is_jammed = False
        self.dropped = 0
        self._held_dir = store / "coordinator" / "held" if keep_order else None
        self._open: list[int] = []  # heap of numbers that have not ended; ended ones leave when they come to the top
        self._ended: set[int] = set()
        self._doubtful: list[int] = []
        self._ready: list[tuple[int, int]] = []  # heap of (number, attempt) kept for their turn
        self._held: dict[int, Output] = {}
        if self._held_dir is not None:
            make_private_dir(self._held_dir)
            self._load_held(self._held_dir)

    @property
    def waiting(self) -> int:
        """Outputs that wait for the operator to read."""
        return len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether no delivery is kept back on behalf of an output."""
        return not self._waiting and all(held.delivery is None for held in self._held.values())

    def operator_is_there(self) -> bool:
        """Whether a living process holds the operator's inbox."""
        return holder(self._lock) is not None

    def expect(self, number: int) -> None:
        """A task was accepted: with kept order, outputs of later ones wait for it."""
        if self._held_dir is not None:
            heappush(self._open, number)

    def expect_again(self, numbers: Iterable[int]) -> None:
        """Tasks that ended before this process began: until `all_came_again`, their outputs may still come, and later ones wait."""
        if self._held_dir is not None:
            self._doubtful = list(numbers)
            self._open += self._doubtful
            heapify(self._open)

    def all_came_again(self) -> None:
        """Every result that was not acked before this process began has been taken: what did not come again had its turn."""
        if self._doubtful:
            self._ended.update(self._doubtful)
            self._doubtful = []
            self._release_in_order()

    def end(self, number: int, body: TaskOutput | None, delivery: Delivery | None) -> None:
        """A task is over and its line is on disk; pass its output on and ack `delivery` once that is done."""
        if body is not None and not self._is_shown:
            forget_files(body)
            body = None
        if self._held_dir is None:
            if body is not None:
                self._post(Output(body, delivery))
            elif delivery is not None:
                delivery.ack()
            return
        self._ended.add(number)
        if body is not None:
            self._keep(Output(body, delivery))
        elif delivery is not None:
            delivery.ack()
        self._release_in_order()

    def retry(self) -> None:
        """Try again what waits; if nobody is there to read, drop it: it is in the results file."""
        while self._waiting:
            if not self._try(self._waiting[0]):
                if not self.operator_is_there():
                    self._drop_all()
                return
            done = self._waiting.popleft()
            self._waiting_bytes -= _size(done.body)
        if len(self._waiting) <= WAITING_LOW:
            self.is_jammed = False

    def _post(self, output: Output) -> None:
        if self._waiting or not self._try(output):
            self._waiting.append(output)
            self._waiting_bytes += _size(output.body)
            self.is_jammed = len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX

    def _try(self, output: Output) -> bool:
        body = output.body
        try:
            self._bus.post_struct(OPERATOR, body, message_id=f"output-{body.number}-{body.attempt}")
        except BusError:  # no credit, or no room in the store
            return False
        self._out_of_hands(output)
        return True

    def _drop_all(self) -> None:
        for output in self._waiting:
            self.dropped += 1
            forget_files(output.body)
            self._out_of_hands(output)
        self._waiting.clear()
        self._waiting_bytes = 0
        self.is_jammed = False

    def _out_of_hands(self, output: Output) -> None:
        if output.delivery is not None:
            output.delivery.ack()
        if output.is_held and self._held_dir is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._held_dir / str(output.body.number))

    # ------------------------------------------------------------------ kept order

    def _keep(self, output: Output) -> None:
        """Keep an output for its turn: in a file, so that it survives this process and needs no delivery kept open."""
        assert self._held_dir is not None
        self._skip_ended()
        number = output.body.number
        if self._open and self._open[0] < number:
            path = self._held_dir / str(number)
            try:
                temporary = path.with_name("tmp")
                temporary.write_bytes(msgspec.msgpack.encode(output.body))
                os.rename(temporary, path)
            except OSError:
                pass  # no room: the delivery stays open instead
            else:
                if output.delivery is not None:
                    output.delivery.ack()
                # What waits in a file needs no memory: its body is read again when its turn comes.
                output = Output(
                    TaskOutput(number=number, attempt=output.body.attempt, agent="", ok=True, exit_status=0), None, True
                )
        self._held[number] = output
        heappush(self._ready, (number, output.body.attempt))

    def _skip_ended(self) -> None:
        while self._open and self._open[0] in self._ended:
            self._ended.discard(heappop(self._open))

    def _release_in_order(self) -> None:
        self._skip_ended()
        while self._ready and (not self._open or self._ready[0][0] < self._open[0]):
            number, _ = heappop(self._ready)
            output = self._held.pop(number, None)
            if output is None:
                continue
            if output.is_held and self._held_dir is not None:
                try:
                    output.body = msgspec.msgpack.decode((self._held_dir / str(number)).read_bytes(), type=TaskOutput)
                except (OSError, msgspec.MsgspecError):
                    continue
            self._post(output)

    def _load_held(self, directory: Path) -> None:
        for name in sorted(os.listdir(directory)):
            if name.isdecimal():
                body = TaskOutput(number=int(name), attempt=0, agent="", ok=True, exit_status=0)
                self._held[int(name)] = Output(body, None, True)
                heappush(self._ready, (int(name), 0))


def _size(body: TaskOutput) -> int:
    return len(body.stdout) + len(body.stderr) + 256
