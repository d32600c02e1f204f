"""Signals as something a poll loop can wait for (the self-pipe of D. J. Bernstein, kept by Python's wakeup descriptor)."""

from __future__ import annotations

import contextlib
import os
import signal

from muster.supervise.child import HANDLED


class Wake:
    """Readable at `fileno` after any handled signal. `signals` lists those that ask for a stop, in order of arrival."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        """For the poll loop."""
        return self._read

    def listen(self) -> None:
        """Handle signals from now on."""
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in HANDLED:
            # Ignored from the start means nohup: the user wants the fleet to outlive the terminal.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _note(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:  # deaths are looked for in every turn
            self.signals.append(number)

    def clear(self) -> None:
        """Nothing to wake up for any more."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass
