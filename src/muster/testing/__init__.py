"""Public helpers for tests of programs that use muster."""

from __future__ import annotations

from muster.testing.history import Report, Violation, check_history
from muster.testing.journal import Journal, create_history
from muster.testing.waiting import eventually, eventually_async

__all__ = ["Journal", "Report", "Violation", "check_history", "create_history", "eventually", "eventually_async"]
