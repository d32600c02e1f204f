"""Dead letters: messages that gave up, each in a file of its own with its reason, complete before the lane says `dead`.

A letter is one line of JSON (its facts), then the body as it was stored. Only the recipient's side writes letters; whoever reads them
trusts neither the line nor the file: links are refused, a line that is no object makes the letter unreadable, not the inbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from muster.core.codec import CHECKSUM_KEY, Outgoing, decode_frame, encode_extras, encode_frame
from muster.core.message import FrameError
from muster.errors import UsageError
from muster.security.permissions import open_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muster.core.message import Message

#: The line of facts is shorter: ids and extras are bounded, a reason is cut.
FACTS_BYTES_MAX: Final = 64 << 10
REASON_CHARS_MAX: Final = 4000
_NO_LANE: Final = bytes(16)


class Letter(NamedTuple):
    """One dead letter as its file tells. `facts` is None if its line cannot be read; `name` is the file's."""

    name: str
    path: str
    lane: str
    seq: int
    facts: dict[str, Any] | None
    body_bytes: int

    @property
    def id(self) -> str:
        """The message's id, or the file's name where no message id is known."""
        known = (self.facts or {}).get("id")
        return known if isinstance(known, str) and known and self.verified else self.name

    @property
    def verified(self) -> bool:
        """Whether the message's tag was verified before it died; a forged frame is kept, but never delivered."""
        facts = self.facts or {}
        return bool(facts.get("verified", facts.get("type") != "forged" and bool(facts)))


def letter_name(lane: str, lane_id: bytes, seq: int) -> str:
    return f"{lane}.{lane_id.hex()}.{seq}"


def letter_path(inbox: str, lane: str, lane_id: bytes, seq: int) -> Path:
    return Path(f"{inbox}/dead/{letter_name(lane, lane_id, seq)}")


def parse_letter_name(name: str) -> tuple[str, str, int] | None:
    """(lane, lane id as hex, number), or None if this is no letter's name."""
    parts = name.rsplit(".", 2)
    if len(parts) != 3 or len(parts[1]) != 32 or not (parts[2].isascii() and parts[2].isdigit()) or not parts[0]:
        return None
    return parts[0], parts[1], int(parts[2])


def encode_letter(facts: Mapping[str, Any], raw: bytes) -> bytes:
    """The content of a letter's file."""
    return json.dumps(facts).encode() + b"\n" + raw


def clear_torn(inbox: str) -> None:
    """Remove what a process that died left while it stored a letter. Only the holder of `inbox.lock` does this."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"{inbox}/dead"):
            if name.startswith("tmp-"):
                os.unlink(f"{inbox}/dead/{name}")


def store_letter(path: Path, message: Message, *, reason: str, attempts: int, durable: bool = False) -> bool:
    """Write one dead letter; `durable`: it is on the disk when this returns. False if the store has no room: the message is then
    parked, not dropped.

    A letter that exists already (a crash came between the file and the verdict) is left as it is.
    """
    facts = {
        "id": message.id, "sender": message.sender, "recipient": message.recipient, "type": message.type, "seq": message.seq,
        "reason": reason[:REASON_CHARS_MAX], "attempts": attempts, "content": message.content, "created_ns": message.created_ns,
        "dead_ns": time.time_ns(), "control": message.control, "hops": message.hops, "verified": any(message.raw_id),
        "raw_id": message.raw_id.hex(), "extras": {str(tag): text for tag, text in message.extras.items()},
    }  # fmt: skip
    try:
        write_private(path, encode_letter(facts, message.raw), durable=durable)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def read_letter(path: str) -> tuple[dict[str, Any] | None, bytes]:
    """A letter's facts (None: unreadable) and its body.

    Raises:
        UnsafePermissionsError: The file is a link, somebody else's, or open to others.
        OSError: It cannot be read, or is not there any more.
    """
    facts, at, _size = _head(path)
    fd = open_private(path, os.O_RDONLY)
    try:
        return facts, os.pread(fd, os.fstat(fd).st_size, at)
    finally:
        os.close(fd)


def _head(path: str) -> tuple[dict[str, Any] | None, int, int]:
    """(facts or None, where the body begins, bytes of the file)."""
    fd = open_private(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits, should a FIFO stand there
    try:
        size = os.fstat(fd).st_size
        line, newline, _ = os.pread(fd, FACTS_BYTES_MAX, 0).partition(b"\n")
    finally:
        os.close(fd)
    if not newline:
        return None, 0, size
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None, 0, size
    if not isinstance(facts, dict):
        return None, 0, size
    return facts, len(line) + 1, size


def letters_in(inbox: str) -> list[Letter]:
    """Every dead letter of an inbox, oldest first; bodies are not read. Unreadable ones are among them, with `facts` None."""
    try:
        names = os.listdir(f"{inbox}/dead")
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if name.startswith("tmp-"):
            continue
        path = f"{inbox}/dead/{name}"
        lane, _lane_id, seq = parse_letter_name(name) or ("", "", 0)
        try:
            facts, at, size = _head(path)
        except FileNotFoundError:  # redriven or dropped meanwhile
            continue
        except Exception:  # a link, a directory, open to others: whatever stands there is listed and not used
            facts, at, size = None, 0, 0
        found.append(Letter(name, path, lane, seq, facts, size - at))
    return sorted(found, key=lambda letter: (number_of(letter.facts, "dead_ns"), letter.name))


def message_of(facts: Mapping[str, Any], raw: bytes) -> Message:
    """The message a letter holds, as it was when it died; it expires no more: somebody wants it delivered.

    Raises:
        ValueError: The facts are not those of a verified message.
    """
    sender, recipient, type_, raw_id = (str(facts.get(key, "")) for key in ("sender", "recipient", "type", "raw_id"))
    extras = facts.get("extras", {})
    if not (sender and recipient and type_ and isinstance(extras, dict)):
        raise ValueError("the letter does not say what message it was")
    out = Outgoing(
        bytes.fromhex(raw_id), type_.encode(), raw, number_of(facts, "content"), number_of(facts, "created_ns")
    )
    out.hops = number_of(facts, "hops")
    out.control = facts.get("control") is True
    try:
        out.extras = encode_extras({int(tag): str(text) for tag, text in extras.items()})
        # A frame of no lane: the one way in which messages are made, so that a redriven one lacks nothing.
        frame = encode_frame(out, _NO_LANE, number_of(facts, "seq"), CHECKSUM_KEY)
        return decode_frame(frame, _NO_LANE, number_of(facts, "seq"), CHECKSUM_KEY, (sender, recipient))
    except (struct.error, UsageError, FrameError) as error:
        raise ValueError(f"the letter holds no message: {error}") from None


def number_of(facts: Mapping[str, Any] | None, key: str) -> int:
    value = (facts or {}).get(key, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def list_letters(inbox: str) -> list[dict[str, object]]:
    """The facts of every dead letter of an inbox, oldest first; the body's size as `body_bytes`, the file as `path`."""
    return [
        {
            **(letter.facts or {"reason": "unreadable dead letter", "dead_ns": 0}),
            "body_bytes": letter.body_bytes,
            "path": letter.path,
        }
        for letter in letters_in(inbox)
    ]
