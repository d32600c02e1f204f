"""The operator's side of a run: submits inputs, prints outputs, shows progress, passes on signals, and says how it ended.

Everything that must survive this process is elsewhere: tasks in the coordinator's log, results in the results file. If this process
is killed, the spawner notices and drains the fleet; if the fleet is killed, what was recorded is on disk for `--resume`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.core import limits
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.protocol import InputEnd, Progress, RunEnded, Submit, TaskInput, TaskOutput
from muster.errors import (
    BodyEncodingError,
    CoordinatorLostError,
    FleetNotRunningError,
    InboxFullError,
    MusterError,
    OutboxFullError,
    StoreFullError,
)
from muster.fleet.display import Display
from muster.fleet.inputs import Item
from muster.fleet.output import Batch, OutputWriter
from muster.security.keys import Keyring, load_master
from muster.supervise.client import SpawnerClient

#: Bytes of inputs in one message; the rest of `BODY_BYTES_MAX` is for its framing.
SUBMIT_BYTES_MAX = limits.BODY_BYTES_MAX // 2
#: Deliveries taken in one go before their outputs are handed to the writing thread.
TAKE_MAX = 64
#: After the fleet has ended: time for its last message to be found in the inbox.
LAST_WORDS_S = 1.0
#: Exit status of a process that wrote into a closed pipe, as shells count it.
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE


@dataclass
class Plan:
    """What to submit: `first` was checked against a results file, `rest` follows it. `numbered` inputs are already behind us."""

    rest: Iterator[list[Item]]
    first: list[tuple[int, Item]] = field(default_factory=list)
    numbered: int = 0
    #: Tasks that an earlier run has recorded as done: nothing waits for them.
    done: set[int] = field(default_factory=set)
    #: Signals that came while the fleet was being started.
    signals: list[int] = field(default_factory=list)


@dataclass
class Outcome:
    """How a run ended. `ended` is None when the fleet was lost before it could say."""

    exit_status: int
    ended: RunEnded | None = None
    error: MusterError | None = None
    #: The error was told on standard error when it happened.
    error_was_said: bool = False
    failures: list[str] = field(default_factory=list)


class RunClient:
    """One run, seen from the command line. Use it once: `outcome = await RunClient(…).run()`."""

    def __init__(self, store: Path, spawner: SpawnerClient, plan: Plan, display: Display, writer: OutputWriter) -> None:
        self._store = store
        self._spawner = spawner
        self._plan = plan
        self._display = display
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[RunEnded] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._room = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._batches_out = 0
        self._progress: Progress | None = None
        self._submitted = 0
        self._seen: set[tuple[int, int]] = set()
        self._signals: list[int] = []
        self._pipe_broken = False
        self._input_error: MusterError | None = None
        self._failures: list[str] = []

    async def run(self) -> Outcome:
        """Carry the run through to its end.

        Never raises for what happens to the fleet: that is in the outcome.
        """
        keyring = Keyring.from_master(load_master(self._store), OPERATOR)
        bus = await Bus.open(self._store, OPERATOR, keyring, wait_s=limits.IDENTITY_WAIT_S)
        self._loop.add_reader(self._spawner.fileno(), self._on_spawner)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._on_signal, number)
        for early in self._plan.signals:
            self._on_signal(early)
        tasks = [asyncio.create_task(self._feed(bus)), asyncio.create_task(self._take(bus))]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        try:
            ended = await self._until_ended()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._flushed()
        finally:
            self._loop.remove_reader(self._spawner.fileno())
            await bus.close()
        status = await self._until_gone(ended)
        return self._outcome(ended, status)

    # ------------------------------------------------------------------ submitting

    async def _feed(self, bus: Bus) -> None:
        """Submit inputs as they come, never more than the coordinator is willing to hold, then say that this was all."""
        number = self._plan.numbered
        await self._submit(bus, self._plan.first)
        try:
            async for batch in self._read_ahead():
                numbered = list(enumerate(batch, number + 1))
                number += len(batch)
                await self._submit(bus, numbered)
        except MusterError as error:
            # What was submitted stays accepted and is carried out; the run then ends with this error's exit status.
            self._input_error = error
            self._display.say(f"muster: {error.message}; finishing what was read before it")
        await self._post(bus, InputEnd(total=number))

    async def _read_ahead(self) -> Any:
        """Batches of inputs, read in a thread: a source that is slow or blocked holds up nothing else."""
        batches: asyncio.Queue[list[Item] | MusterError | None] = asyncio.Queue(maxsize=2)

        def put(item: list[Item] | MusterError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants inputs any more
                asyncio.run_coroutine_threadsafe(batches.put(item), self._loop).result()

        def read() -> None:
            try:
                for batch in self._plan.rest:
                    put(batch)
                put(None)
            except MusterError as error:
                put(error)

        # A daemon: a read of a silent terminal or pipe cannot be interrupted, and must not keep the process from ending.
        threading.Thread(target=read, name="inputs", daemon=True).start()
        while (item := await batches.get()) is not None:
            if isinstance(item, MusterError):
                raise item
            yield item

    async def _submit(self, bus: Bus, numbered: list[tuple[int, Item]]) -> None:
        for part in _parts(numbered, self._plan.done):
            while self._progress is not None and self._open_tasks() > limits.OPEN_TASKS_MAX:
                self._room.clear()
                await self._room.wait()
            await self._post(bus, Submit(tasks=part))
            self._submitted += len(part)

    def _open_tasks(self) -> int:
        progress = self._progress
        return 0 if progress is None else self._submitted - progress.done - progress.failed

    async def _post(self, bus: Bus, struct: msgspec.Struct) -> None:
        while True:
            try:
                bus.post_struct(COORDINATOR, struct)
                return
            except (InboxFullError, OutboxFullError, StoreFullError) as error:
                await asyncio.sleep(error.retry_after_s or limits.INBOX_FULL_RETRY_S)

    # ------------------------------------------------------------------ receiving

    async def _take(self, bus: Bus) -> None:
        while True:
            delivery = await bus.receive()
            outputs: list[tuple[Delivery, TaskOutput]] = []
            while delivery is not None:
                output = self._handle(delivery)
                if output is not None:
                    outputs.append((delivery, output))
                if len(outputs) >= TAKE_MAX or self._ended.done():
                    break
                delivery = bus.receive_nowait()
            if outputs:
                self._print(outputs)
            await self._writable.wait()
            if self._ended.done():
                return

    def _handle(self, delivery: Delivery) -> TaskOutput | None:
        """Deal with one message; an output is returned and acked only once it is written."""
        if delivery.sender != COORDINATOR:
            # Somebody wrote to the operator: a person reads it here, so here it is shown, and only then acked.
            self._display.say(f"{delivery.sender}: {_shown(delivery)}")
            delivery.ack()
            return None
        try:
            match delivery.type:
                case "task.output":
                    return self._new_output(delivery, delivery.decode(TaskOutput))
                case "run.progress":
                    self._progress = delivery.decode(Progress)
                    self._room.set()
                    self._display.update(self._progress)
                case "run.ended":
                    if not self._ended.done():
                        self._ended.set_result(delivery.decode(RunEnded))
        except BodyEncodingError as error:
            delivery.dead_letter(error.message)
            return None
        delivery.ack()
        return None

    def _new_output(self, delivery: Delivery, output: TaskOutput) -> TaskOutput | None:
        key = (output.number, output.attempt)
        if key in self._seen:  # a restarted coordinator tells again what it does not know to have arrived
            delivery.ack()
            return None
        self._seen.add(key)
        if not output.ok and len(self._failures) < 5:
            how = "an error" if output.exit_status is None else f"exit status {output.exit_status}"
            self._failures.append(f"task {output.number}: {how}")
        return output

    def _print(self, outputs: list[tuple[Delivery, TaskOutput]]) -> None:
        self._batches_out += 1
        if self._batches_out >= 16:
            self._writable.clear()

        def finished(error: OSError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._written, outputs, error)

        self._writer.put(Batch([output for _, output in outputs], finished))

    def _written(self, outputs: list[tuple[Delivery, TaskOutput]], error: OSError | None) -> None:
        self._batches_out -= 1
        self._writable.set()
        for delivery, _ in outputs:
            with contextlib.suppress(MusterError):
                delivery.ack()
        if error is not None and not self._pipe_broken:
            # Nobody reads the outputs any more. As a process killed by SIGPIPE would, the run ends, and says nothing.
            self._pipe_broken = True
            self._display.close()
            self._stop("now", "the reader of the output went away")

    # ------------------------------------------------------------------ stopping

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        name = signal.Signals(number).name
        if len(self._signals) == 1:
            self._stop("drain", name)
            running = self._progress.running if self._progress is not None else 0
            again = "; Ctrl-C again kills them" if number == signal.SIGINT else ""
            self._display.say(f"muster: stopping: {running} running tasks may finish{again}")
        elif len(self._signals) == 2:
            self._stop("now", name)
            self._display.say("muster: killing what still runs")
        elif len(self._signals) > 3:
            self._gone.set()  # whoever insists gets the prompt back; the spawner ends the fleet behind it

    def _stop(self, mode: Any, reason: str) -> None:
        with contextlib.suppress(FleetNotRunningError, TimeoutError):
            self._spawner.stop(mode, reason, timeout_s=2.0)

    def _on_spawner(self) -> None:
        """The spawner has said its last word, or is dead."""
        self._loop.remove_reader(self._spawner.fileno())
        self._gone.set()

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not self._ended.done():
            error = task.exception()
            assert error is not None
            self._ended.set_exception(error)
            self._stop("drain", "the command line failed")

    # ------------------------------------------------------------------ the end

    async def _until_ended(self) -> RunEnded | None:
        gone = asyncio.create_task(self._gone.wait())
        first: set[asyncio.Future[Any]] = {self._ended, gone}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.done() and len(self._signals) <= 3:
            # The spawner ends after the coordinator has spoken, so a last message that exists is in the inbox by now.
            await asyncio.wait({self._ended}, timeout=LAST_WORDS_S)
        gone.cancel()
        return self._ended.result() if self._ended.done() else None

    async def _flushed(self) -> None:
        """Wait until everything taken is written and acked, or until the person insists on the end."""
        while self._batches_out and not self._pipe_broken and len(self._signals) <= 2:
            self._writable.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._writable.wait(), 0.2)

    async def _until_gone(self, ended: RunEnded | None) -> int | None:
        """Wait until nothing of the fleet is left. None if nobody knows how it ended."""
        if ended is None and len(self._signals) > 3:
            return None
        with contextlib.suppress(FleetNotRunningError, TimeoutError):
            return await asyncio.to_thread(self._spawner.wait, limits.GRACE_S + 5.0)
        return None

    def _outcome(self, ended: RunEnded | None, spawner_status: int | None) -> Outcome:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.remove_signal_handler(number)
        error = self._input_error
        if ended is None:
            if spawner_status is None and not self._signals:
                error = CoordinatorLostError("the fleet was killed before it had finished; what it recorded is safe")
            status = 1 if spawner_status in (None, 0) else spawner_status
        else:
            status = ended.exit_status
            if ended.error is not None and error is None:
                error = MusterError(ended.error)
        if self._pipe_broken:
            return Outcome(BROKEN_PIPE_STATUS, ended)
        if self._signals:
            status = 128 + self._signals[0]
        elif self._input_error is not None:
            status = self._input_error.exit_status
        said = error is not None and error is self._input_error
        return Outcome(int(status or 0), ended, error, said, self._failures)


def _parts(numbered: list[tuple[int, Item]], done: set[int]) -> Iterator[list[TaskInput]]:
    """Tasks in lists that fit into one message each."""
    part: list[TaskInput] = []
    size = 0
    for number, item in numbered:
        if isinstance(item, str):
            task = TaskInput(number, item)
            weight = len(item) * 4 + 32 if not item.isascii() else len(item) + 32
        else:
            task = msgspec.structs.replace(item, after=[other for other in item.after if other not in done])
            weight = len(msgspec.msgpack.encode(task))
        if part and (len(part) >= limits.SUBMIT_BATCH or size + weight > SUBMIT_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(task)
        size += weight
    if part:
        yield part


def _shown(delivery: Delivery) -> str:
    """A peer's message as one line of text that cannot control the terminal."""
    body = delivery.body
    text = body if isinstance(body, str) else repr(body)
    return "".join(char if char.isprintable() else " " for char in text)[:2000]
