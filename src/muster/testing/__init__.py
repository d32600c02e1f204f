"""Public helpers for tests of programs that use muster."""

from __future__ import annotations

from muster.testing.waiting import eventually, eventually_async

__all__ = ["eventually", "eventually_async"]
