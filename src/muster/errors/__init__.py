"""Every error muster raises on purpose.

    MusterError
    ├── UsageError                the caller's or operator's mistake; nothing was done
    │   ├── InvalidNameError      UnknownAgentError      BodyTooLargeError   BodyEncodingError
    │   ├── ConfigError           CommandNotFoundError   HandlerNotFoundError
    │   ├── InputFileError        ResultsFileError       RunMismatchError
    │   └── DependencyError       UnknownTaskError       TaskStateError
    ├── StaleAttemptError         ForgedResultError
    ├── BusError
    │   ├── BusClosedError        InboxFullError*        OutboxFullError*    StoreFullError*
    │   ├── CorruptStoreError     AskTimeoutError        DeliveryStateError  ForkedBusError
    │   ├── EchoStormError*
    │   └── IdentityBusyError*    OwnerGoneError*
    ├── SecurityError
    │   └── ForbiddenError        BadSignatureError      UnsafePermissionsError
    ├── StoreError
    │   └── StoreUnsuitableError  StoreTooSmallError     StoreVersionError   RosterFullError
    ├── LimitError
    │   ├── RateLimitedError*     UnknownLimitError      LimitImpossibleError  ProxyLostError
    │   └── BudgetError
    ├── LockError
    │   ├── LockHeldError         LockTimeoutError       LockDeadlockError
    │   └── LockLostError         LockTableFullError
    └── FleetError
        ├── FleetNotRunningError  FleetRunningError      SpawnFailedError    CoordinatorLostError
        ├── CoordinatorRunningError
        └── AttemptLimitError     MemoryLimitError       WallLimitError      WorktreeError
                                                              (* = `retry_after_s` is set)

Handlers branch on the class, operators on `code`, which never changes once released; the text may. `retry_after_s` is None where
trying again cannot help. `exit_status` is what a command line that ends with this error exits with.
"""

from __future__ import annotations

from muster.errors.base import MusterError as MusterError
from muster.errors.base import UsageError as UsageError
from muster.errors.services import (
    BudgetError as BudgetError,
)
from muster.errors.services import (
    LimitError as LimitError,
)
from muster.errors.services import (
    LimitImpossibleError as LimitImpossibleError,
)
from muster.errors.services import (
    LockDeadlockError as LockDeadlockError,
)
from muster.errors.services import (
    LockError as LockError,
)
from muster.errors.services import (
    LockHeldError as LockHeldError,
)
from muster.errors.services import (
    LockLostError as LockLostError,
)
from muster.errors.services import (
    LockTableFullError as LockTableFullError,
)
from muster.errors.services import (
    LockTimeoutError as LockTimeoutError,
)
from muster.errors.services import (
    ProxyLostError as ProxyLostError,
)
from muster.errors.services import (
    RateLimitedError as RateLimitedError,
)
from muster.errors.services import (
    UnknownLimitError as UnknownLimitError,
)


class InvalidNameError(UsageError):
    """A name does not match `[a-zA-Z0-9_-]{1,64}` as a whole, or is reserved; nothing was touched."""

    code = "usage.invalid_name"


class UnknownAgentError(UsageError):
    """The recipient or group is not on this fleet's roster; nothing was written."""

    code = "usage.unknown_agent"


class BodyTooLargeError(UsageError):
    """The encoded body exceeds `limits.BODY_BYTES_MAX`; nothing was written."""

    code = "usage.body_too_large"


class BodyEncodingError(UsageError):
    """The body cannot be encoded, or a received body cannot be decoded as asked; nothing was written."""

    code = "usage.body_encoding"


class ConfigError(UsageError):
    """A configuration key or option is unknown, of the wrong type or out of range; nothing was started."""

    code = "usage.config"


class CommandNotFoundError(UsageError):
    """The command of a task is missing or not executable; no task was started."""

    code = "usage.command_not_found"


class HandlerNotFoundError(UsageError):
    """A `module:function` reference cannot be imported or is not callable; no task was started."""

    code = "usage.handler_not_found"


class InputFileError(UsageError):
    """A file of inputs cannot be read; no task was started."""

    code = "usage.input_file"


class ResultsFileError(MusterError):
    """The results file cannot be opened or written; results that were not written are not shown as done."""

    code = "run.results_file"


class RunMismatchError(UsageError):
    """`--resume` was given a results file that belongs to other inputs; nothing was started."""

    code = "usage.run_mismatch"


class DependencyError(UsageError):
    """A task comes after one that is unknown, or tasks wait for each other in a circle; none of them was accepted."""

    code = "task.dependency"


class UnknownTaskError(UsageError):
    """No task has this number, or it is kept no longer; nothing was changed."""

    code = "task.unknown"


class TaskStateError(UsageError):
    """The task is not in a state in which that can be asked of it; nothing was changed."""

    code = "task.state"


class StaleAttemptError(MusterError):
    """A result came for an attempt that is over: the task was given to somebody else, or has ended; it was refused and counted."""

    code = "task.stale_attempt"


class ForgedResultError(MusterError):
    """A result came from somebody who was never given that attempt; it was refused, counted, and is kept as a dead letter."""

    code = "task.forged_result"


class BusError(MusterError):
    """The bus could not carry out a call."""

    code = "bus"


class BusClosedError(BusError):
    """`close` was called first; nothing was written."""

    code = "bus.closed"


class InboxFullError(BusError):
    """The recipient has granted no more credit on this lane; nothing was written. Wait `retry_after_s`."""

    code = "bus.inbox_full"


class OutboxFullError(BusError):
    """This sender's own quota, or its share of the fleet's, is used up; nothing was written. Wait `retry_after_s`."""

    code = "bus.outbox_full"


class EchoStormError(BusError):
    """A chain of messages that cause each other is too long (`retry_after_s` is None), or one pair has too many; nothing was written."""

    code = "bus.echo_storm"


class StoreFullError(BusError):
    """The store has no room for another segment; nothing was written, everything accepted can still be drained."""

    code = "bus.store_full"


class IdentityBusyError(BusError):
    """Another living process holds this identity's inbox or outbox; nothing was touched."""

    code = "bus.identity_busy"


class CorruptStoreError(BusError):
    """A file of the store is damaged beyond what the protocol heals by itself."""

    code = "bus.corrupt_store"


class AskTimeoutError(BusError, TimeoutError):
    """No reply came before the deadline; the request was stored and may still be handled."""

    code = "bus.ask_timeout"


class DeliveryStateError(BusError):
    """This delivery was already acked, nacked, released or dead-lettered; nothing changed."""

    code = "bus.delivery_state"


class ForkedBusError(BusError):
    """The bus was opened by another process (this one is its fork); nothing was touched. Join again."""

    code = "bus.forked"


class OwnerGoneError(BusError):
    """The worker that owns this identity went away while it was asked; whether it stored the message is unknown."""

    code = "bus.owner_gone"


class SecurityError(MusterError):
    """A call was refused for safety; nothing was done."""

    code = "security"


class ForbiddenError(SecurityError):
    """The caller may not do this: no capability, not a descendant, or not the coordinator; nothing was done."""

    code = "security.forbidden"


class BadSignatureError(SecurityError):
    """A message's MAC does not fit its bytes, sender and recipient; it was quarantined and not delivered."""

    code = "security.bad_signature"


class UnsafePermissionsError(SecurityError):
    """A store path is a symlink, belongs to another user or has open modes; it was not used."""

    code = "security.unsafe_permissions"


class StoreError(MusterError):
    """The store cannot be used."""

    code = "store"


class RosterFullError(StoreError):
    """The store has as many agents as `bus.agents_max` allows; no further one was made."""

    code = "store.roster_full"


class StoreUnsuitableError(StoreError):
    """The file system failed the probe (network, 9p or FUSE file system, or no working locks, FIFOs or fallocate)."""

    code = "store.unsuitable"


class StoreTooSmallError(StoreError):
    """The store has less room than this fleet needs at least; nothing was started."""

    code = "store.too_small"


class StoreVersionError(StoreError):
    """The store was written in a format that this version does not read; nothing was changed."""

    code = "store.version"


class FleetError(MusterError):
    """A fleet could not be started, found or stopped."""

    code = "fleet"


class FleetNotRunningError(FleetError):
    """No living spawner holds this fleet; nothing was done."""

    code = "fleet.not_running"


class FleetRunningError(FleetError):
    """A living spawner already holds this fleet's store; a second one was not started."""

    code = "fleet.running"


class CoordinatorRunningError(FleetError):
    """Another living process coordinates this fleet or team; a second one was not started."""

    code = "fleet.coordinator_running"


class SpawnFailedError(FleetError):
    """A process of the fleet could not be started or did not become ready."""

    code = "fleet.spawn_failed"


class CoordinatorLostError(FleetError):
    """The coordinator died more often than its restart budget allows; the orphan policy was carried out."""

    code = "fleet.coordinator_lost"


class AttemptLimitError(FleetError):
    """An attempt took more than its kind may; it was ended with everything it had started, and counts as failed."""

    code = "limit.attempt"


class MemoryLimitError(AttemptLimitError):
    """The processes of an attempt together held more resident memory than `limits.rss` allows."""

    code = "limit.rss"


class WallLimitError(AttemptLimitError):
    """An attempt took longer than `limits.wall` allows."""

    code = "limit.wall"


class WorktreeError(FleetError):
    """A task's git worktree could not be made, looked at or removed; what is there stays there."""

    code = "fleet.worktree"


def error_of(fields: dict[str, object]) -> MusterError:
    """The error that `as_dict` described: its class is found by the code, an unknown code is a plain MusterError."""
    facts = dict(fields)
    code, message, retry_after_s = facts.pop("code", ""), facts.pop("message", ""), facts.pop("retry_after_s", None)
    kinds: list[type[MusterError]] = [MusterError]
    for kind in kinds:  # grows while it is walked: the whole tree of classes
        kinds.extend(kind.__subclasses__())
    kind = next((each for each in kinds if each.code == code), MusterError)
    wait_s = retry_after_s if isinstance(retry_after_s, int | float) else None
    return kind(str(message or code), retry_after_s=wait_s, **facts)
