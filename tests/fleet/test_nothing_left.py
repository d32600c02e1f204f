"""However a fleet of fifty ends, and whatever its commands do to stay: nothing of them is left a second after the grace."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.acceptance.place import PATIENCE_S, Muster, Place

from muster.supervise.tree import descendants_of
from muster.testing import eventually

from . import figures
from .form import BRIEF, FORM

AGENTS = 50
GRACE_S = 1.0

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

#: Four processes for each agent, deaf to SIGTERM, SIGHUP and Ctrl-C. Two have left their session by a double fork, one of them without a
#: word of its origin in its environment; all of them hold the pipes of the attempt open.
CLINGING = """
trap "" TERM HUP INT
(setsid sleep 600 &)
(setsid env -i sleep 600 &)
sleep 600 &
sleep 600
"""


def down(run: Muster) -> None:
    """By the verb."""
    told = run.place.start("down", "clinging")
    assert told.end(2 * PATIENCE_S) in {0, 1}, told.errors


def ctrl_c(run: Muster) -> None:
    """By a key, once: the grace passes."""
    run.type(b"\x03")


def close_terminal(run: Muster) -> None:
    """By closing the window."""
    run.hang_up()


def kill_coordinator(run: Muster) -> None:
    """Its successor is asked to end what it has not started."""
    pid = run.coordinator()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    run.type(b"\x03")


def kill_spawner(run: Muster) -> None:
    """The root of everything; nobody is left who would have to end the rest."""
    told = run.ping()
    assert told is not None
    os.kill(told["pid"], signal.SIGKILL)


def sleepers(run: Muster) -> list[int]:
    """The processes that cling."""
    assert run.process.poll() is None, run.errors
    found = []
    for pid in descendants_of(run.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words == b"sleep\x00600\x00":
            found.append(pid)
    return found


#: The brief form leaves to `tests/acceptance` what that has already.
ENDS = [down, kill_spawner] if FORM is BRIEF else [down, ctrl_c, close_terminal, kill_coordinator, kill_spawner]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_nothing_is_left_a_second_after_the_grace(place: Place, end: Callable[[Muster], None]) -> None:
    run = place.start(
        "run", "--name", "clinging", "-j", str(AGENTS), "--agents-per-worker", "1", "--grace", f"{GRACE_S:g}s",
        "-a", place.inputs(map(str, range(AGENTS))), "sh", place.script("clinging.sh", CLINGING), "{}", terminal=True,
    )  # fmt: skip
    eventually(lambda: len(sleepers(run)) == 4 * AGENTS, 2 * PATIENCE_S, f"{4 * AGENTS} processes cling")
    run.ping()
    place.note(descendants_of(run.process.pid))
    began = time.monotonic()
    end(run)
    eventually(lambda: not place.processes(), PATIENCE_S, "nothing is left")
    took_s = time.monotonic() - began
    run.end()
    if end is kill_spawner:  # its store tells the next one what to look for
        assert place.carry_out("doctor", "--fix").process.returncode in {0, 1}
    place.assert_nothing_is_left()
    figures.note(
        f"{4 * AGENTS} processes that cling, {end.__name__}: nothing left after", took_s, "s", goal=GRACE_S + 1
    )
