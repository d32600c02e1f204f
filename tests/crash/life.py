"""What one process does on a store, and the notes it leaves of that: they outlive it however it ends.

A life is a function that gets a `Life`. Whatever it tries and whatever comes of it is noted at once, in a file outside the store; the
notes of all lives on one store, one after the other, are the history that `history.py` judges.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.transports.lanes.transport import LanesTransport
from muster.core.message import Message
from muster.errors import MusterError
from muster.security.keys import Keyring, load_master

Note = dict[str, Any]
FILLING = "x" * 900  # seven of these fill the first segment of a lane


class Life:
    """The hands of one process. Every message carries a number of the scenario's own, which is what the notes speak of."""

    def __init__(self, store: Path, notes: Path) -> None:
        self.store = store
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.last_seq = 0  # the highest number that a message of this life was given

    def note(self, what: str, **facts: Any) -> None:
        os.write(self._notes, json.dumps({"what": what, **facts}).encode() + b"\n")

    @staticmethod
    def mark() -> None:
        """Here the part that the scenario is about begins, or ends."""
        os.getppid()

    @contextlib.contextmanager
    def trying(self, doing: str, n: int = 0) -> Iterator[None]:
        """Note what is raised, and go on: a process outlives an error."""
        try:
            yield
        except Exception as error:
            self.note("raised", doing=doing, n=n, error=type(error).__name__, typed=isinstance(error, MusterError))

    def join(self, agent: str, *, consume: bool = True, send: bool = True) -> Bus:
        keyring = Keyring.from_master(load_master(self.store), agent)
        return Bus(LanesTransport(self.store, agent, keyring, consume=consume, send=send))

    def send(self, bus: Bus, n: int, *, filling: str = "", **envelope: Any) -> bool:
        """Send message `n` to bob. Whether it was accepted."""
        self.note("try", n=n, explicit="message_id" in envelope)
        with self.trying("send", n):
            receipt = bus.post("bob", [n, filling, n], **envelope)
            self.last_seq = max(self.last_seq, receipt.seq)
            self.note("sent", n=n, seq=receipt.seq, id=receipt.id)
            return True
        return False

    def take(self, bus: Bus) -> Delivery | None:
        """Take one message, if there is one."""
        delivery = None
        with self.trying("take"):
            delivery = bus.receive_nowait()
        if delivery is not None:
            self.note_taken(delivery.message, delivery.attempt)
        return delivery

    def note_taken(self, message: Message, attempt: int) -> None:
        n, filling, again = message.body
        self.note(
            "taken", n=n, seq=message.seq, lane=self.lane_of(message.recipient, message.sender), id=message.id,
            attempt=attempt, whole=again == n and filling in ("", FILLING),
        )  # fmt: skip

    def finish(self, delivery: Delivery, how: str = "ack") -> None:
        """Ack, nack or dead-letter it."""
        n = delivery.body[0]
        self.note("finishing", n=n, how=how)
        with self.trying(how, n):
            if how == "ack":
                delivery.ack()
            elif how == "nack":
                delivery.nack("not today")
            else:
                delivery.dead_letter("no use")
            # Without room for its letter a message is parked: it is not dead before the letter is there.
            parked = how == "dead" and not self._has_letter(delivery)
            self.note("finished", n=n, how=how, parked=parked)

    def _has_letter(self, delivery: Delivery) -> bool:
        message = delivery.message
        box, lane = (
            f"{self.store}/agents/{message.recipient}/inbox/dead",
            self.lane_of(message.recipient, message.sender),
        )
        return os.path.exists(f"{box}/{message.sender}.{lane}.{message.seq}")

    def drain_some(self, bus: Bus, count: int) -> None:
        """Take and ack so many, one at a time."""
        for _ in range(count):
            if (delivery := self.take(bus)) is not None:
                self.finish(delivery)

    def drain(self, bus: Bus, how: str = "ack") -> int:
        """Take and finish one at a time until nothing is left; how many there were."""
        count = 0
        while (delivery := self.take(bus)) is not None:
            self.finish(delivery, how)
            count += 1
        return count

    def lane_of(self, recipient: str, sender: str) -> str:
        """The id of the lane that the recipient's cursor belongs to."""
        cursor = self.store / "agents" / recipient / "inbox" / f"{sender}.cursor"
        return cursor.read_bytes()[8:24].hex() if cursor.exists() else ""


#: What a process does, once.
Act = Callable[[Life], None]


def read_notes(path: Path) -> list[Note]:
    """Every whole note, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return []
