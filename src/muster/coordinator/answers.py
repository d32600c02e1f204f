"""Answers to tasks that came as an ask: the same object that stands in a results file, as the reply to the message."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from muster.coordinator.results import doer, line_of, line_without_result
from muster.errors import MusterError

if TYPE_CHECKING:
    from muster.bus.bus import Bus
    from muster.coordinator.events import Record
    from muster.core.protocol import Result


def answer(bus: Bus, record: Record, result: Result | None) -> None:
    """Tell whoever asked how task `record.number` ended.

    At least once: after a crash of the coordinator the answer may come again, and the asker's bus drops it as late. An asker who is
    gone, or whose inbox is full, gets none; the end itself is in the log either way.
    """
    line = line_of(record.input, doer(record, result), result) if result is not None else line_without_result(record)
    asked = record.source.partition(":")[2]
    with contextlib.suppress(MusterError):
        bus.post(
            record.asker,
            msgspec.json.decode(line),
            type="task.ended",
            priority="control",
            correlation_id=asked,
            causation_id=asked,
        )
