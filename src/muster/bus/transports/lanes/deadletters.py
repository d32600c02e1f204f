"""Dead letters: messages that gave up, each in a file of its own with its reason, complete before the lane says `dead`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from muster.security.permissions import write_private

if TYPE_CHECKING:
    from muster.core.message import Message


def letter_path(inbox: str, lane: str, lane_id: bytes, seq: int) -> Path:
    return Path(f"{inbox}/dead/{lane}.{lane_id.hex()}.{seq}")


def store_letter(path: Path, message: Message, *, reason: str, attempts: int) -> bool:
    """Write one dead letter. False if the store has no room: the message is then parked, not dropped.

    A letter that exists already (a crash came between the file and the verdict) is left as it is.
    """
    facts = {
        "id": message.id, "sender": message.sender, "recipient": message.recipient, "type": message.type, "seq": message.seq,
        "reason": reason, "attempts": attempts, "content": message.content, "created_ns": message.created_ns,
        "dead_ns": time.time_ns(), "extras": {str(tag): text for tag, text in message.extras.items()},
    }  # fmt: skip
    try:
        write_private(path, json.dumps(facts).encode() + b"\n" + message.raw)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def list_letters(inbox: str) -> list[dict[str, object]]:
    """The facts of every dead letter of an inbox, oldest first; the body's size as `body_bytes`, the file as `path`."""
    letters: list[dict[str, object]] = []
    try:
        names = os.listdir(f"{inbox}/dead")
    except FileNotFoundError:
        return []
    for name in names:
        if name.startswith("tmp-"):
            continue
        head, _, body = Path(f"{inbox}/dead/{name}").read_bytes().partition(b"\n")
        try:
            facts = json.loads(head)
        except ValueError:
            facts = {"reason": "unreadable dead letter", "dead_ns": 0}
        letters.append({**facts, "body_bytes": len(body), "path": f"{inbox}/dead/{name}"})
    return sorted(letters, key=lambda facts: int(str(facts.get("dead_ns") or 0)))
