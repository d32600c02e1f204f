"""What an agent of the soak does for each task: read its mail, check that nothing is missing, write to its neighbour."""

from __future__ import annotations

import os
import time

from muster.agent.client import OwnerClient
from muster.agent.task import Task
from muster.errors import InboxFullError

#: Number of the last message seen, by sender. Of this process: a restarted worker begins anew.
_seen: dict[str, int] = {}


def work(task: Task) -> dict[str, int]:
    """Take what is in the inbox, send one message on. Raises RuntimeError, which fails the task, when a message is missing."""
    agents = int(os.environ["SOAK_AGENTS"])
    received = 0
    with OwnerClient(task.socket) as me:
        while messages := me.receive(50):
            for message in messages:
                _check(message["sender"], message["seq"])
            me.ack(*messages)
            received += len(messages)
        neighbour = f"w-{int(task.agent.removeprefix('w-')) % agents + 1}"
        try:
            me.send(neighbour, {"task": task.number, "text": "x" * 200})
            sent = 1
        except InboxFullError:  # the neighbour has had nothing to do for a thousand messages; not an error, and counted
            sent = 0
    time.sleep(0.005)
    return {"sent": sent, "received": received}


def _check(sender: str, seq: int) -> None:
    last = _seen.get(sender, seq - 1)
    if seq > last + 1:
        raise RuntimeError(f"after message {last} of {sender} came number {seq}")
    _seen[sender] = max(last, seq)
