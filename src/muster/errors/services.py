"""Errors of what the coordinator does for agents: limits and locks."""

from __future__ import annotations

from muster.errors.base import MusterError


class LimitError(MusterError):
    """A limit of the fleet stands in the way; nothing was spent."""

    code = "limit"
    exit_status = 75


class RateLimitedError(LimitError):
    """There was no credit in time; nothing was granted."""

    code = "limit.rate"


class UnknownLimitError(LimitError):
    """The fleet has no limit of that name; nothing was granted."""

    code = "limit.unknown"
    exit_status = 2


class LimitImpossibleError(LimitError):
    """What was asked for can never pass at once; nothing was granted."""

    code = "limit.impossible"
    exit_status = 2


class BudgetError(LimitError):
    """The budget is used up; nothing was admitted."""

    code = "limit.budget"
    exit_status = 3


class ProxyLostError(LimitError):
    """The API proxy died while an attempt was running that could not do without it; the attempt is not counted, and made again."""

    code = "limit.proxy_lost"


class LockError(MusterError):
    """A lock was not had, or is over; the work that it guards must not go on."""

    code = "lock"
    exit_status = 75


class LockHeldError(LockError):
    """Somebody else holds it and the caller did not want to wait; nothing was locked."""

    code = "lock.held"


class LockTimeoutError(LockError, TimeoutError):
    """It was not free in time; nothing was locked."""

    code = "lock.timeout"


class LockDeadlockError(LockError):
    """Waiting for it would close a circle of holders that wait for each other; nothing was locked, what was held is held still."""

    code = "lock.deadlock"


class LockLostError(LockError):
    """The lease is over before it was released: it was not renewed in time, or its holder was given up. Somebody else may hold it."""

    code = "lock.lost"


class LockTableFullError(LockError):
    """So many locks are held and waited for that there is no room for another one; nothing was locked."""

    code = "lock.table_full"
