"""What the machine wants done: drawn from the facts of the log, carried out by the shell, discarded by a replay (see `events`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import msgspec


class Post(msgspec.Struct):
    """Send `body` to agent `to`. With a `message_id`, sending it again after a crash adds no second copy.

    `answers`: the id (hex) of the ask that this is the reply to; replies are control messages.
    """

    to: str
    body: msgspec.Struct
    message_id: str | None = None
    is_control: bool = False
    answers: str | None = None


class Record(msgspec.Struct):
    """Task `number` is over: write its line. `evidence` tells about attempts that left no result of their own.

    `has_result`: the result of `agent` for this attempt is on its way, or was there.
    """

    number: int
    attempt: int
    agent: str
    outcome: str
    input: Any = None
    evidence: list[str] = []
    source: str = ""
    asker: str = ""
    has_result: bool = False


class Rejected(msgspec.Struct):
    """A result of `agent` is not believed: `code` and `message` of the error that it is."""

    agent: str
    number: int
    attempt: int
    code: str
    message: str


class SpawnWorker(msgspec.Struct):
    """Ask the spawner for a worker."""

    worker: str
    incarnation: int


class KillWorker(msgspec.Struct):
    """Ask the spawner to signal a worker; `tree`: kill all of it and prove it."""

    worker: str
    incarnation: int
    signal: int
    tree: bool


class FleetResized(msgspec.Struct):
    """The fleet has so many agents of these kinds now: write that down where workers read it, and make `new` known to the others."""

    counts: dict[str, int]
    new: list[str]


class Dissolve(msgspec.Struct):
    """A team was given up: bring it to its end, and its workers to the heirs."""

    team: str
    heirs: list[str]


class Finish(msgspec.Struct):
    """The fleet is over."""

    exit_status: int
    reason: Literal["complete", "halted", "stopped", "error"]
    error: str | None = None


class Noted(msgspec.Struct):
    """Something a person may want to read about: an event name and its facts."""

    event: str
    facts: dict[str, Any]


class WatchHolder(msgspec.Struct):
    """Tell (`HoldersGone`) when this process has ended: locks are held in its name. Watching it twice is watching it once."""

    pid: int
    start_time: int
    namespace: int


Effect = Dissolve | FleetResized | Post | Record | Rejected | SpawnWorker | KillWorker | Finish | Noted | WatchHolder

#: What a part of the machine brings: the facts it deals with. A handler changes the state and appends effects, nothing else.
Handlers: TypeAlias = dict[type[Any], Callable[[Any, Any, list[Effect]], None]]
