"""Task output on its way to standard output: grouped by task, whole, in a thread of its own.

A reader that stops reading (`muster run … | less`) blocks the writing thread only, so Ctrl-C, progress and the bus stay alive. What is
reported as written has left this process: only then is its delivery acked.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from muster.core.protocol import TaskOutput
from muster.fleet.display import Display

COPY_BYTES = 1 << 20
#: Batches that may wait for a slow reader before the client stops taking more from the bus.
WAITING_MAX = 16


@dataclass(frozen=True)
class Batch:
    """Outputs to write, and what to call (from the writing thread) once they are out, or have failed."""

    outputs: list[TaskOutput]
    finished: Callable[[OSError | None], None] = lambda _error: None
    #: A ready line that goes before the outputs.
    line: bytes = b""


class OutputWriter:
    """Writes task outputs to descriptors 1 and 2, or as JSON lines to descriptor 1."""

    def __init__(self, display: Display, *, as_json: bool, stdout: int = 1, stderr: int = 2) -> None:
        self._display = display
        self._as_json = as_json
        self._fds = (stdout, stderr)
        self._shares_terminal = display.kind == "live" and os.isatty(stdout)
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        # A daemon: a reader that never reads again must not keep the process from ending after the second Ctrl-C.
        self._thread = threading.Thread(target=self._work, name="output", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Queue outputs; never waits."""
        self._batches.put(batch)

    def event(self, event: dict[str, object]) -> None:
        """Queue one JSON line (only with `as_json`)."""
        if self._as_json:
            self._batches.put(Batch([], line=(json.dumps(event, default=str) + "\n").encode()))

    def close(self, timeout_s: float | None) -> bool:
        """Write what is queued and end. False if a reader did not take it within `timeout_s`."""
        self._batches.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            if self._error is None:
                try:
                    self._write(batch)
                except OSError as error:
                    self._error = error
            batch.finished(self._error)

    def _write(self, batch: Batch) -> None:
        _write_all(self._fds[0], batch.line)
        noisy = [output for output in batch.outputs if self._as_json or _has_output(output)]
        if not noisy:
            return
        with self._display.hidden() if self._shares_terminal else contextlib.nullcontext():
            for output in noisy:
                if self._as_json:
                    _write_all(self._fds[0], _json_line(output))
                else:
                    _emit(self._fds[0], output.stdout, output.stdout_file, end_line=self._shares_terminal)
                    _emit(self._fds[1], output.stderr, output.stderr_file, end_line=self._shares_terminal)
        for output in noisy:
            for file in (output.stdout_file, output.stderr_file):
                if file is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(file)


def _has_output(output: TaskOutput) -> bool:
    return bool(output.stdout or output.stderr or output.stdout_file or output.stderr_file)


def _emit(fd: int, data: bytes, file: str | None, *, end_line: bool) -> None:
    last = data[-1:]
    _write_all(fd, data)
    if file is not None:
        with open(file, "rb", buffering=0) as source:
            while chunk := source.read(COPY_BYTES):
                _write_all(fd, chunk)
                last = chunk[-1:]
    if end_line and last and last != b"\n":
        _write_all(
            fd, b"\n"
        )  # the live line begins at the left edge; only ever on a terminal, data in pipes is not touched


def _json_line(output: TaskOutput) -> bytes:
    event: dict[str, object] = {"event": "task.output"}
    event.update(
        number=output.number, attempt=output.attempt, agent=output.agent, ok=output.ok, exit_status=output.exit_status
    )
    for name, data, file in (
        ("stdout", output.stdout, output.stdout_file),
        ("stderr", output.stderr, output.stderr_file),
    ):
        whole = data
        if file is not None:
            with open(file, "rb") as source:
                whole += source.read()
        event[name] = whole.decode(errors="replace")
    return (json.dumps(event, ensure_ascii=False) + "\n").encode()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
