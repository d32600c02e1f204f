"""What a handler may ask for instead of the bare input: the task it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt, as a handler sees it when its parameter is annotated with `muster.Task`.

    `number` and `attempt` together are unique in the fleet's life: use them to make side effects repeatable. `socket` is the address
    of the agent's owner socket, for `muster.agent.client.OwnerClient(task.socket)` and for programs the handler starts.
    """

    number: int
    attempt: int
    input: Any
    agent: str
    socket: str
