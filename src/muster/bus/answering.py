"""Answering a message after it was taken: for commands, which read with one call and answer with another."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from muster.core import limits
from muster.core.message import EXTRA_REPLY_TO
from muster.errors import UsageError
from muster.security.permissions import open_private, read_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from muster.core.message import Message

#: Beside the cursors of an inbox: what its last one-shot reader has taken. Written by whoever holds the inbox.
FILE_NAME = "heard"


class Answerable(NamedTuple):
    """What has to be known of a message to answer it. `reply_to`: who asked and waits for a reply; "" if nobody does."""

    id: str
    sender: str
    hops: int
    reply_to: str
    thread: str
    traceparent: str

    @classmethod
    def of(cls, message: Message) -> Answerable:
        """Everything but the body."""
        asker = message.extras.get(EXTRA_REPLY_TO, "")
        thread = message.correlation_id or message.id
        return cls(message.id, message.sender, message.hops, asker, thread, message.traceparent or "")

    def answer(self, hops_max: int) -> tuple[str, dict[str, Any]]:
        """To whom an answer goes, and what its envelope says. Whatever was asked can be answered, however long its chain is."""
        if self.reply_to:
            hops = min(self.hops + 1, hops_max)
            return self.reply_to, {
                "type": "reply", "priority": "control", "correlation_id": self.id, "causation_id": self.id, "hops": hops,
            }  # fmt: skip
        envelope = {"causation_id": self.id, "correlation_id": self.thread, "hops": self.hops + 1}
        return self.sender, {**envelope, **({"traceparent": self.traceparent} if self.traceparent else {})}


class Heard:
    """The newest `limits.HEARD_MAX` messages that one agent took."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Iterable[Answerable] = ()) -> None:
        self._messages: dict[str, Answerable] = {message.id: message for message in messages}

    def note(self, message: Message) -> None:
        """It was taken: from now on it can be answered."""
        heard = Answerable.of(message)
        self._messages.pop(heard.id, None)  # delivered again: it is the newest now
        self._messages[heard.id] = heard
        if len(self._messages) > limits.HEARD_MAX:
            del self._messages[next(iter(self._messages))]

    def find(self, sender: str, message_id: str = "") -> Answerable:
        """The newest message of `sender`, or the one with that id.

        Raises:
            UsageError: None was taken, or so many others since that it is forgotten.
        """
        for message in reversed(self._messages.values()):
            if message.sender == sender and message_id in ("", message.id):
                return message
        which = f"message {message_id!r:.80} of {sender!r:.70}" if message_id else f"message of {sender!r:.70}"
        raise UsageError(
            f"no {which} was taken here, so there is nothing to answer; `muster recv` takes one, `muster send` begins anew"
        )

    def __iter__(self) -> Iterator[Answerable]:
        return iter(self._messages.values())


def load(inbox: Path) -> Heard:
    """What the last reader of an inbox left; nothing if there is no such file, or it cannot be understood."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return Heard([_checked(fields) for fields in json.loads(read_private(inbox / FILE_NAME))])
    return Heard()


def _checked(fields: list[Any]) -> Answerable:
    """Raises ValueError: they are not those of a message."""
    if [field.__class__ for field in fields] != [str, str, int, str, str, str]:
        raise ValueError(fields)
    return Answerable(*fields)


def save(inbox: Path, heard: Heard) -> None:
    """Leave it for the next one; the caller holds the inbox. Without room it is left out: then those messages cannot be answered."""
    fresh = inbox / f"tmp-{FILE_NAME}-{os.getpid()}"
    with contextlib.suppress(OSError):
        fd = open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(fd, json.dumps(list(heard)).encode())
        finally:
            os.close(fd)
        os.rename(fresh, inbox / FILE_NAME)
