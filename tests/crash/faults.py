"""One life on a store under one fault: killed or failed at a chosen system call that changes the store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .calls import AFTER, BEFORE, FULL, MARK, SHORT, Call, change, error_number
from .life import Act, Life
from .ptrace import Tracee, spawn


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th change (from 1) between the marks of a life."""

    at: int
    mode: str


@dataclass
class Outcome:
    """The changes a life made between its marks, up to its fault, and how it ended (an exit status, or minus a signal)."""

    calls: list[Call] = field(default_factory=list)
    ended: int = 0
    struck: bool = False


def body_of(act: Act, store: Path, notes: Path) -> None:
    life = Life(store, notes)
    life.note("born")
    act(life)
    life.note("ended")


def live(act: Act, store: Path, notes: Path) -> None:
    """One whole life in a process of its own, with nothing in its way. Raises AssertionError if it does not end well."""
    _, status = os.waitpid(spawn(partial(body_of, act, store, notes), traced=False), 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended == 0, f"a process with nothing in its way ended with {ended}"


def live_with(fault: Fault | None, act: Act, store: Path, notes: Path) -> Outcome:
    """One life with `fault` in its way; without one, only the list of its changes."""
    outcome = Outcome()
    tracee = Tracee(partial(body_of, act, store, notes))
    try:
        inside = False
        while not outcome.struck and (entry := tracee.next_call()) is not None:
            if entry.number == MARK:
                inside = not inside
            call = change(tracee, entry, store) if inside else None
            if call is not None:
                outcome.calls.append(call)
                if fault is not None and len(outcome.calls) == fault.at:
                    _strike(tracee, call, fault.mode)
                    outcome.struck = True
                    break
            tracee.finish_call()
        if outcome.struck and fault is not None and fault.mode == FULL:
            _stay_full(tracee, store)
        tracee.let_go()
    finally:
        tracee.close()
    assert tracee.ended is not None
    outcome.ended = tracee.ended
    return outcome


def _strike(tracee: Tracee, call: Call, mode: str) -> None:
    if mode == BEFORE:
        tracee.kill()
    elif mode == AFTER:
        tracee.finish_call()
        tracee.kill()
    elif mode == SHORT:
        tracee.shorten_call(call.size // 2)
    else:
        tracee.fail_call(error_number("ENOSPC" if mode == FULL else mode))


def _stay_full(tracee: Tracee, store: Path) -> None:
    """Until the next mark there is no room for anything."""
    while (entry := tracee.next_call()) is not None and entry.number != MARK:
        call = change(tracee, entry, store)
        if call is not None and call.needs_room:
            tracee.fail_call(error_number("ENOSPC"))
        else:
            tracee.finish_call()
    if tracee.ended is None:
        tracee.finish_call()
