"""One attempt in an agent's hands, and what every way of working on it (a command, a handler) looks like to the runner."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from muster.core.names import COORDINATOR
from muster.core.protocol import Assign, Result

if TYPE_CHECKING:
    import asyncio

    from muster.agent.output import Captured
    from muster.core.spec import AgentSpec, FleetSpec
    from muster.errors import AttemptLimitError


@dataclass(frozen=True)
class AgentSetting:
    """What does not change in the life of one incarnation of an agent."""

    agent: str
    kind: AgentSpec
    fleet: FleetSpec
    store: Path
    incarnation: int
    loop: asyncio.AbstractEventLoop
    #: Address of the owner socket, valid before the socket exists.
    socket: str
    #: Whom the agent reports to.
    coordinator: str = COORDINATOR
    #: Takes in keys of edges that came after this incarnation's birth.
    learn: Callable[[Mapping[str, bytes]], None] = lambda _edges: None
    #: Called first by each thread that works for the agent.
    enter_thread: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Attempt:
    """An assignment being worked on. `stop` says why it was told to end, if it was."""

    number: int
    attempt: int
    input: Any
    timeout_s: float | None
    incarnation: int
    stop: Literal["", "timeout", "cancelled"] = ""
    started_unix_s: float = 0.0
    started_s: float = 0.0
    #: Process id of the command, 0 while there is none.
    pid: int = 0
    #: The limit that it passed: it ends as failed, with this as its error.
    breach: AttemptLimitError | None = None
    #: What an earlier attempt left to go on with.
    session: str = ""
    #: How long the chain of messages is that led to it.
    hops: int = 0
    #: What it does, as its command tells it: "waiting" for somebody, "limited"; else busy.
    state: str = "busy"
    #: Called when `state` has changed.
    moved: Callable[[], None] = lambda: None
    #: Where it works, if that is a place of its own.
    cwd: str | None = None
    #: Variables of its command beside the usual ones; None: without that one.
    env: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, assign: Assign, default_timeout_s: float | None) -> Attempt:
        """The attempt that `assign` asks for; the kind's time limit holds when the task has none of its own."""
        timeout_s = assign.timeout_s if assign.timeout_s is not None else default_timeout_s
        return cls(
            assign.number,
            assign.attempt,
            assign.input,
            timeout_s,
            assign.incarnation,
            session=assign.session,
            hops=assign.hops,
        )

    @property
    def key(self) -> tuple[int, int]:
        return self.number, self.attempt

    def begin(self) -> None:
        """Start the clock."""
        self.started_unix_s = time.time()
        self.started_s = time.monotonic()


Ended = Callable[[Attempt, Result], None]


class Executor(Protocol):
    """Works on attempts. Every `start` is followed by exactly one call of its `ended`, when nothing of the attempt is left."""

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """Begin; returns at once. `ended` is called on the event loop, perhaps before this returns."""

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """End a started attempt that has not ended: politely first, by force after `grace_s`. `attempt.stop` says why."""

    def close(self) -> None:
        """Let go of everything; nothing runs any more."""


@dataclass(slots=True)
class Ending:
    """How an attempt ended, before it is put into words."""

    outcome: Literal["done", "failed", "timeout", "cancelled", "killed", "limited"]
    exit_status: int | None = None
    signal: int | None = None
    value: Any = None
    error: dict[str, Any] | None = None
    outputs: tuple[Captured, Captured] | None = field(default=None)
    session: str = ""
    tokens: int = 0
    cost_usd: float | None = None
    resets_in_s: float | None = None


def result_of(attempt: Attempt, ending: Ending) -> Result:
    """The message that reports `ending`."""
    if ending.outputs is None:
        return Result(
            number=attempt.number, attempt=attempt.attempt, incarnation=attempt.incarnation, outcome=ending.outcome,
            exit_status=ending.exit_status, signal=ending.signal, value=ending.value, error=ending.error,
            started_unix_s=attempt.started_unix_s, duration_s=time.monotonic() - attempt.started_s,
        )  # fmt: skip
    out, err = ending.outputs
    return Result(
        number=attempt.number, attempt=attempt.attempt, incarnation=attempt.incarnation, outcome=ending.outcome,
        exit_status=ending.exit_status, signal=ending.signal, value=ending.value, error=ending.error,
        stdout=out.head, stdout_bytes=out.bytes, stdout_file=out.file, stderr=err.head, stderr_bytes=err.bytes, stderr_file=err.file,
        started_unix_s=attempt.started_unix_s, duration_s=time.monotonic() - attempt.started_s,
        session=ending.session, tokens=ending.tokens, cost_usd=ending.cost_usd, resets_in_s=ending.resets_in_s,
    )  # fmt: skip


def input_text(value: Any) -> str:
    """A task's input as one argument of a command: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_json_fallback)


def _json_fallback(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
