"""Attempts whose requests go through the fleet's API proxy: told where it is, and not charged for its death. Around any executor.

An attempt that failed is not the task's failure if the proxy beside which it began had ended before it did. That is exact: a client sees
its connection end after the kernel has marked the proxy (`muster.limit.proxy.life`), and what it makes of that comes later still.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from muster.agent.attempt import Ending, result_of
from muster.core.presets import PRESETS
from muster.errors import ProxyLostError
from muster.limit.proxy import life

if TYPE_CHECKING:
    from muster.agent.attempt import AgentSetting, Attempt, Ended, Executor
    from muster.core.protocol import Result
    from muster.limit.proxy.life import Life

#: Pause between two looks for a proxy, while there is none.
LOOK_S = 0.05
#: A task that lost its proxy waits so long: the next one is there by then.
AGAIN_S = 0.2
#: What clients that insist on a key are told where the key stays with the proxy.
PLACEHOLDER = "kept-by-muster-proxy"
#: API -> variables that point its clients at a proxy, and those that carry a key.
BASE_URLS = {preset.api: preset.base_url for preset in PRESETS.values()}
KEYS = {"anthropic": ("ANTHROPIC_API_KEY",), "openai": ("OPENAI_API_KEY",), "gemini": ("GEMINI_API_KEY",)}


class BehindProxy:
    """An `Executor` whose attempts start beside a living proxy."""

    def __init__(self, inner: Executor, setting: AgentSetting, secret: str, *, is_alone: bool) -> None:
        self._inner, self._setting, self._secret = inner, setting, secret
        self._sets_environment = setting.kind.handler is not None and is_alone
        self._lives: dict[tuple[int, int], Life] = {}
        self._waiting: dict[tuple[int, int], Attempt] = {}

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """See `Executor`."""
        found = life.read(self._setting.store)
        if attempt.stop:
            self._waiting.pop(attempt.key, None)
            ended(attempt, result_of(attempt, Ending("cancelled")))
        elif found is None or found.is_over():
            if attempt.key not in self._waiting:
                attempt.begin()
                self._waiting[attempt.key] = attempt
            self._setting.loop.call_later(LOOK_S, self.start, attempt, ended)
        else:
            self._waiting.pop(attempt.key, None)
            self._lives[attempt.key] = found
            attempt.env = self.variables(found)
            if self._sets_environment:
                os.environ.update({name: value for name, value in attempt.env.items() if value is not None})
            self._inner.start(attempt, lambda done, result: self._finish(done, result, ended))

    def variables(self, proxy: Life) -> dict[str, str | None]:
        """What a command is told; None: what is taken from it. What its kind sets itself stays as it is."""
        setting, spec = self._setting, self._setting.fleet.proxy
        assert spec is not None
        url = f"http://127.0.0.1:{proxy.port}/{setting.agent}.{self._secret}"
        found: dict[str, str | None] = dict.fromkeys(spec.hidden)
        found["MUSTER_PROXY"] = url
        for upstream in spec.upstreams:
            found.update((name, text.replace("{url}", url)) for name, text in BASE_URLS.get(upstream.name, ()))
            if upstream.key_file:
                found.update(dict.fromkeys(KEYS.get(upstream.name, ()), PLACEHOLDER))
        return {name: value for name, value in found.items() if name not in setting.kind.env}

    def _finish(self, attempt: Attempt, result: Result, ended: Ended) -> None:
        beside = self._lives.pop(attempt.key)
        if result.outcome in ("failed", "killed") and not attempt.stop and attempt.breach is None and beside.is_over():
            error = ProxyLostError("the API proxy died while the attempt ran").as_dict()
            result = msgspec.structs.replace(result, outcome="limited", error=error, resets_in_s=AGAIN_S)
        ended(attempt, result)

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """See `Executor`."""
        if attempt.key not in self._waiting:  # else the next look sees it
            self._inner.stop(attempt, grace_s)

    def close(self) -> None:
        """See `Executor`."""
        self._inner.close()
