"""Scenarios of the coordinator's log: records of one writer, a reserve for a full store, snapshots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from muster.bus.store import create_store
from muster.bus.transports.lanes.appendlog import AppendLog
from muster.coordinator.events import TasksSubmitted
from muster.coordinator.log import EventLog
from muster.core.protocol import TaskInput

from .history import judge_records
from .life import FILLING, Act, Life
from .message_scenarios import PROBES, left_over
from .scenario import Scenario


@contextmanager
def log_of(life: Life) -> Iterator[AppendLog]:
    log = AppendLog(life.store / "log")
    try:
        yield log
    finally:
        log.close()


def encode_record(n: int, filling: str = "") -> bytes:
    return json.dumps([n, filling, n]).encode()


def append(life: Life, log: AppendLog, *numbers: int, filling: str = "") -> None:
    """Append records in one call; those before one that failed stand, as `last_seq` tells."""
    before = log.last_seq
    for n in numbers:
        life.note("try", n=n)
    with life.trying("append", numbers[0]):
        log.append([encode_record(n, filling) for n in numbers])
    for n in numbers[: log.last_seq - before]:
        life.note("sent", n=n)


def replay(life: Life, log: AppendLog) -> None:
    records = [json.loads(raw) for _, raw in log.replay()]
    whole = all(n == again and filling in ("", FILLING) for n, filling, again in records)
    life.note("replayed", records=[n for n, _, _ in records], whole=whole)


def mend(life: Life) -> None:
    """The next holder of the log replays it, appends, and sees both; once more changes nothing."""
    life.mark()
    with log_of(life) as log:
        replay(life, log)
        append(life, log, PROBES + os.getpid())
        replay(life, log)
        log.restore_reserve()
    with log_of(life) as log:
        replay(life, log)
    life.note("settled", **left_over(life.store))
    life.mark()


def with_records(count: int, *, filling: str = "") -> Act:
    def prepare(life: Life) -> None:
        create_store(life.store)
        if count:
            with log_of(life) as log:
                append(life, log, *range(1, count + 1), filling=filling)

    return prepare


def begin(life: Life) -> None:
    life.mark()
    with life.trying("open"), log_of(life) as log:
        append(life, log, 1, 2)
        life.mark()
        append(life, log, 3)


def append_some(life: Life) -> None:
    with log_of(life) as log:
        append(life, log, 3)
        life.mark()
        append(life, log, 4, 5)
        life.mark()
        append(life, log, 6)


def roll(life: Life) -> None:
    with log_of(life) as log:
        life.mark()
        append(life, log, 7, 8, 9, filling=FILLING)
        life.mark()
        append(life, log, 10)


def drop(life: Life) -> None:
    with log_of(life) as log:
        life.mark()
        life.note("dropping", n=39)
        with life.trying("drop"):
            log.drop_before(40)
        append(life, log, 41)
        life.mark()
        append(life, log, 42)


def reserve(life: Life) -> None:
    with log_of(life) as log:
        life.mark()
        with life.trying("release reserve"):
            log.release_reserve()
        append(life, log, 3)
        with life.trying("restore reserve"):
            log.restore_reserve()
        life.mark()
        append(life, log, 4)


# ---------------------------------------------------------------------- snapshots


def submit(life: Life, log: EventLog, n: int) -> None:
    life.note("try", n=n)
    with life.trying("append", n):
        log.append([TasksSubmitted(1.0, [TaskInput(n, f"in {n}")])])
        life.note("sent", n=n)


def open_log(life: Life) -> EventLog:
    """Open and replay; the tasks of the state that comes out are noted."""
    log = EventLog(life.store / "c")
    machine, _ = log.recover()
    life.note("replayed", records=list(machine.state.tasks), whole=True)
    return log


def with_tasks(life: Life) -> None:
    create_store(life.store)
    log = open_log(life)
    for n in range(1, 4):
        submit(life, log, n)
    log.close()


def write_snapshot(life: Life) -> None:
    log = EventLog(life.store / "c")
    machine, _ = log.recover()
    life.mark()
    with life.trying("snapshot"):
        log.write_snapshot(machine.state)
    submit(life, log, 4)
    life.mark()
    submit(life, log, 5)
    log.close()


def mend_tasks(life: Life) -> None:
    life.mark()
    log = open_log(life)
    submit(life, log, PROBES + os.getpid())
    log.close()
    open_log(life).close()
    life.note("settled", **left_over(life.store))
    life.mark()


LOG_SCENARIOS = (
    Scenario("log begins", with_records(0), begin, mend, judge_records),
    Scenario("log append", with_records(2), append_some, mend, judge_records),
    Scenario("log roll", with_records(6, filling=FILLING), roll, mend, judge_records, is_brief=True, is_deep=True),
    Scenario("log drop", with_records(40, filling=FILLING), drop, mend, judge_records),
    Scenario("log reserve", with_records(2), reserve, mend, judge_records),
    Scenario("log snapshot", with_tasks, write_snapshot, mend_tasks, judge_records),
)
