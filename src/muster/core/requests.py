"""What may be asked of the coordinator by people and agents, beside reports of work: tasks with wishes, orders, locks; and `Done`.

One struct per message type; `protocol.TYPES` names the types. An ask that changes something is answered once the change is in the log.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.done`, coordinator -> whoever asked for a change: it is in the log, or (`ok` false) was refused and changed nothing.

    A refusal carries the code and the sentence of the error that it is; `facts` say more, and their keys belong to the ask.
    """

    ok: bool
    facts: dict[str, Any] = {}
    code: str = ""
    message: str = ""


class LockAcquire(msgspec.Struct, frozen=True, kw_only=True):
    """`lock.acquire`, anybody -> coordinator: a lease on all of `names` (see `core.globs`), or on none. Answered with a `Done`.

    `lock_id` is the asker's own choice, unguessable; asking again with it changes nothing. `wait_s`: how long to stand in line, None
    without end, 0 not at all. A first ask is answered at once: held (`token`), waiting, or refused. A `patient` one is answered when it
    is decided. `within`: locks that cannot be released before this one is had, because their holder waits for it. `pid`, `start_time`
    and `namespace` (of process ids) name the process whose proven death frees the lock.
    """

    lock_id: str
    names: list[str]
    ttl_s: float
    wait_s: float | None = 0.0
    patient: bool = False
    within: list[str] = []
    pid: int = 0
    start_time: int = 0
    namespace: int = 0


class LockRenew(msgspec.Struct, frozen=True, kw_only=True):
    """`lock.renew`, holder -> coordinator: it holds for its whole time again. Refused as `lock.lost` if it is over."""

    lock_id: str


class LockRelease(msgspec.Struct, frozen=True, kw_only=True):
    """`lock.release`, holder -> coordinator: let go of it, or stop waiting for it. One that is over already changes nothing."""

    lock_id: str


class LockListAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`lock.list`, anybody -> coordinator: what is held and waited for, as `Done.facts["locks"]`."""


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.restart`, operator -> coordinator: have workers drained and started anew, a tenth of a kind at a time. Quarantine is lifted.

    `names`: kinds, agents or workers; none: all that are not gone for good. `grace_s`: time for what their agents do; None: as long as it
    takes. `Done` names the `workers`; it comes when this is decided, not when it has happened.
    """

    names: list[str] = []
    grace_s: float | None = None


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.scale`, operator -> coordinator: have so many agents of these kinds. The highest numbers come and go; inboxes stay.

    `Done` tells of each kind its agents `before` and `after`; it comes when this is decided, not when it has happened.
    """

    counts: dict[str, int]


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`task.request`, anybody -> coordinator: one task with its wishes. Answered by `Done` with its `number`, or at its end.

    `reply` "end": the reply is `task.ended`, the object of a results file, as for an ask of type `task`; a refusal is a `Done` at once.
    """

    input: Any
    kind: str = ""
    priority: int = 0
    delay_s: float = 0.0
    after: list[int] = []
    tags: list[str] = []
    timeout_s: float | None = None
    retries: int | None = None
    backoff_s: float | None = None
    reply: Literal["number", "end"] = "number"


class TaskChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks are meant: by number, or all that are in one of `states` and, if it is given, of `kind`."""

    numbers: list[int] = []
    states: list[str] = []
    kind: str = ""


class CancelTasks(TaskChoice, frozen=True, kw_only=True):
    """`tasks.cancel`, operator -> coordinator: what waits is cancelled at once, what runs is ended, with its whole process tree."""

    reason: str = ""


class RetryTasks(TaskChoice, frozen=True, kw_only=True):
    """`tasks.retry`, operator -> coordinator: tasks that ended without success are queued again, their attempts counted anew."""


class ForgetTasks(TaskChoice, frozen=True, kw_only=True):
    """`tasks.forget`, operator -> coordinator: tasks that ended without success are kept no longer."""


class ListTasks(TaskChoice, frozen=True, kw_only=True):
    """`tasks.list`, anybody -> coordinator: open and kept tasks by number; answered by a `TaskListing`.

    Those with numbers above `above`, at most `limit` of them, with their inputs if they are wanted and fit.
    """

    above: int = 0
    limit: int = 100
    with_input: bool = False


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator knows of a task that is open or kept. Times are ages in seconds, None where they mean nothing."""

    number: int
    state: str
    kind: str
    tags: list[str]
    priority: int
    attempt: int
    failures: int
    deaths: int
    agent: str
    after: list[int]
    due_in_s: float | None
    running_s: float | None
    ended_s: float | None
    is_cancelling: bool
    evidence: list[str]
    input: Any = None


class TaskListing(msgspec.Struct, frozen=True, kw_only=True):
    """`tasks.listing`, coordinator -> whoever asked: `tasks` of the `total` that were meant."""

    tasks: list[TaskFacts]
    total: int


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.pause`, operator -> coordinator: assign nothing more to these kinds; none named: to nobody. What runs ends as it would."""

    kinds: list[str] = []


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.resume`, operator -> coordinator: let these kinds work again; none named: everybody."""

    kinds: list[str] = []
    #: A new budget of the whole fleet, in micro-dollars and tokens; None: as it is.
    budget: tuple[int, int] | None = None
