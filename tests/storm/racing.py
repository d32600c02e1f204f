"""Children of a test that are let go at the same instant and asked for what they found."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from muster.supervise import platform

CHILD_S = 50


def race(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Fork a child for each, let all go at once, and return what each returned (as JSON).

    Raises:
        AssertionError: One of them raised, or was killed; its traceback is the text.
    """
    gate, hold = os.pipe()
    children = [_fork(work, gate, hold) for work in works]
    os.close(gate)
    os.close(hold)  # nobody else has it open: every reader of the gate sees its end now
    told = []
    for pid, answer in children:
        with os.fdopen(answer) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.append(json.loads(text) if text else {"failed": f"a child ended with {status} and said nothing"})
    failed = [answer["failed"] for answer in told if "failed" in answer]
    assert not failed, failed[0]
    return [answer["found"] for answer in told]


def _fork(work: Callable[[], Any], gate: int, hold: int) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    told: dict[str, Any] = {}
    try:
        platform.set_parent_death_signal(signal.SIGKILL)
        signal.alarm(CHILD_S)
        os.close(hold)
        os.close(reader)
        os.read(gate, 1)
        told = {"found": work()}
    except BaseException:
        told = {"failed": traceback.format_exc()}
    finally:
        with os.fdopen(writer, "w") as pipe:
            json.dump(told, pipe)
        os._exit(0)
