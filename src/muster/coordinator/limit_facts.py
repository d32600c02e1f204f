"""What the log knows about limits: which are paused, since when, until when. See `limiting`, which does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from muster.coordinator.effects import Effect, Handlers
from muster.coordinator.fact import Fact

if TYPE_CHECKING:
    from muster.coordinator.state import State


class LimitPause(msgspec.Struct, array_like=True):
    """A limit that was hit. Wall time: a vendor's reset is one, and it must outlive this machine's clock."""

    since_unix_s: float
    until_unix_s: float
    why: str = ""


class LimitPaused(Fact, frozen=True, tag=55):
    """Nothing is granted of `limit` until then."""

    limit: str
    since_unix_s: float
    until_unix_s: float
    why: str = ""


class LimitResumed(Fact, frozen=True, tag=56):
    """A probe went well: `limit` is open again."""

    limit: str


def _paused(state: State, fact: LimitPaused, _out: list[Effect]) -> None:
    state.limit_pauses[fact.limit] = LimitPause(fact.since_unix_s, fact.until_unix_s, fact.why)


def _resumed(state: State, fact: LimitResumed, _out: list[Effect]) -> None:
    state.limit_pauses.pop(fact.limit, None)


HANDLERS: Handlers = {LimitPaused: _paused, LimitResumed: _resumed}
