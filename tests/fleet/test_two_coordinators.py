"""Two coordinators are started on one store at the same moment: one lives, and the other one says who was first."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
from tests.acceptance.place import PATIENCE_S, Place

from muster.bus.store import add_agent, create_store, write_spec
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.orders import ListWorkers, ToSpawner
from muster.core.spec import AgentSpec, FleetSpec
from muster.supervise.control import ControlLink
from muster.testing import eventually

from . import figures
from .form import FORM

#: Races at a time: each takes two processes that wait for five seconds before they give up.
AT_ONCE = 8

pytestmark = [pytest.mark.timeout(60 + 30 * FORM.races), pytest.mark.slow]

#: A coordinator that has imported everything and waits for the start: a line on its standard input.
RACER = """
import sys
from pathlib import Path
from muster.coordinator.main import main
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


class Racer:
    """One of two coordinators, and the spawner's end of its control socket."""

    def __init__(self, store: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link = ControlLink(ours)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RACER, str(store), str(theirs.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),),
        )  # fmt: skip
        theirs.close()
        self.asked = False

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), b"\n")

    def look(self) -> bool:
        """Whether it has taken up its work, which begins with a question to the spawner, or has ended."""
        messages: list[ToSpawner | None] = [message for message, _ in self.link.receive(10)]
        self.asked = self.asked or any(isinstance(message, ListWorkers) for message in messages)
        return self.asked or self.process.poll() is not None

    def end(self) -> str:
        """Kill it; what it said on standard error."""
        self.process.send_signal(signal.SIGKILL)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        self.link.close()
        return said.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.link.is_open:
            self.end()


def a_store(place: Place, name: str) -> Path:
    place.root.mkdir(mode=0o700, exist_ok=True)
    store = create_store(place.root / name)
    kind = AgentSpec(name="w", count=1, command=("true",))
    write_spec(store, FleetSpec(name=name, store_id=secrets.token_hex(16), agents=(kind,), grace_s=1.0))
    for agent in (COORDINATOR, OPERATOR, "w"):
        add_agent(store, agent)
    return store


def wait_until_decided(pair: tuple[Racer, Racer], number: int) -> None:
    """Until one works and the other one has ended, or whatever else became of them."""
    eventually(lambda: all([racer.look() for racer in pair]), 2 * PATIENCE_S, f"race {number} is decided")  # noqa: C419 -- both


def race(place: Place, numbers: range, stack: contextlib.ExitStack) -> None:
    """Some races at a time, each on a store of its own."""
    pairs = []
    for number in numbers:
        store = a_store(place, f"race-{number}")
        pairs.append((stack.enter_context(Racer(store)), stack.enter_context(Racer(store))))
    for pair in pairs:
        for racer in pair:
            racer.wait_ready()
    for number, pair in enumerate(pairs):
        for racer in pair if number % 2 else reversed(pair):
            racer.go()
    for number, pair in zip(numbers, pairs, strict=True):
        wait_until_decided(pair, number)
        alive = [racer for racer in pair if racer.process.poll() is None]
        said = {racer: racer.end() for racer in pair}
        assert len(alive) == 1, f"race {number}: {len(alive)} coordinators live: {[*said.values()]}"
        (winner,) = alive
        (loser,) = (racer for racer in pair if racer is not winner)
        assert winner.asked, f"race {number}: the living one does not work"
        assert not loser.asked, f"race {number}: the refused one has begun to work"
        assert loser.process.returncode == 1
        assert re.search(rf"coordinated by process {winner.process.pid} since \d{{4}}-", said[loser]), said[loser]


def test_of_two_coordinators_on_one_store_one_lives_and_the_other_names_it(place: Place) -> None:
    for first in range(0, FORM.races, AT_ONCE):
        with contextlib.ExitStack() as stack:
            race(place, range(first, min(first + AT_ONCE, FORM.races)), stack)
    figures.note(
        f"two coordinators started at once, {FORM.races} times: exactly one lived",
        FORM.races,
        "",
        goal=FORM.races,
        at_least=True,
    )
