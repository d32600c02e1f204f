"""Attempts that wait for credit of the fleet's limit before they start, and say afterwards what became of it. Around any executor."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import msgspec

from muster.agent.attempt import Ending, result_of
from muster.agent.dialects.limits import limit_in
from muster.bus.grant import Grant, acquire
from muster.errors import MusterError

if TYPE_CHECKING:
    from muster.agent.attempt import AgentSetting, Attempt, Ended, Executor
    from muster.bus.bus import Bus
    from muster.core.protocol import Result

#: A refusal that names no time is tried again after so long; the limit itself waits longer if it is refused again.
RETRY_S = 1.0


class WithinLimit:
    """An `Executor` whose attempts each spend one request of `kind.limit`."""

    def __init__(self, inner: Executor, setting: AgentSetting, bus: Bus) -> None:
        self._inner, self._setting, self._bus = inner, setting, bus
        self._waiting: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._grants: dict[tuple[int, int], Grant] = {}

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """See `Executor`. The attempt's clock starts with its work, not with the wait."""
        attempt.begin()
        attempt.state = "limited"
        waiting = self._setting.loop.create_task(self._wait(attempt, ended), name=f"credit for task {attempt.number}")
        self._waiting[attempt.key] = waiting

    async def _wait(self, attempt: Attempt, ended: Ended) -> None:
        setting = self._setting
        try:
            grant = await acquire(self._bus, setting.kind.limit, {"requests": 1}, incarnation=setting.incarnation)
        except asyncio.CancelledError:
            ended(attempt, result_of(attempt, Ending("cancelled")))
            return
        except MusterError as error:
            ended(attempt, result_of(attempt, Ending("failed", error=error.as_dict())))
            return
        finally:
            del self._waiting[attempt.key]
        self._grants[attempt.key] = grant
        attempt.state = "busy"
        attempt.moved()
        self._inner.start(attempt, lambda done, result: self._finish(done, result, ended))

    def _finish(self, attempt: Attempt, result: Result, ended: Ended) -> None:
        grant = self._grants.pop(attempt.key)
        result = as_limited(result, self._setting.kind.limited_exit, self._setting.kind.limited_pattern)
        if result.outcome == "limited":
            message = (result.error or {}).get("message", "")
            grant.refused(result.resets_in_s, str(message))
            # The limit itself says when to go on: until then the task waits in its line, not for a time of its own.
            result = msgspec.structs.replace(result, resets_in_s=min(result.resets_in_s or 0.0, RETRY_S))
        else:
            grant.settle(**({"tokens": result.tokens} if result.tokens else {}))
        ended(attempt, result)

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """See `Executor`."""
        waiting = self._waiting.get(attempt.key)
        if waiting is not None:
            waiting.cancel()
        else:
            self._inner.stop(attempt, grace_s)

    def close(self) -> None:
        """See `Executor`."""
        self._inner.close()


def as_limited(result: Result, statuses: tuple[int, ...], pattern: str = "") -> Result:
    """A failure that says by its exit status or its last words that a limit was hit, as what it is. They may say for how long."""
    if result.outcome != "failed":
        return result
    words = result.stderr[-4096:].decode(errors="replace")
    if result.exit_status not in statuses and not (pattern and re.search(pattern, words)):
        return result
    now_unix_s = time.time()
    limit = limit_in(f"rate limit: {words}", now_unix_s)
    resets_in_s = None if limit is None else limit.wait_s(now_unix_s)
    error = result.error or {"code": "limit.vendor", "message": " ".join(words.split())[-200:]}
    return msgspec.structs.replace(result, outcome="limited", error=error, resets_in_s=resets_in_s)
