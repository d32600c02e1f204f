"""The event log read from outside: every fact once, in order, whatever the reader saw before it was ended; gaps are told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from muster.coordinator import events as ev
from muster.coordinator.log import EventLog
from muster.coordinator.state import State
from muster.core.protocol import TaskInput
from muster.errors import ConfigError, CorruptStoreError, FleetNotRunningError
from muster.fleet import events
from muster.fleet.events import Place, follow, last_record, parse_place

BEGIN = Place()


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "coordinator")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator/log"


def drained(number: int) -> ev.AnyFact:
    return ev.AgentDrained(1000.0 + number, f"w-{number}", 1)


def write(log: EventLog, numbers: range, per_record: int = 1) -> None:
    for first in range(numbers.start, numbers.stop, per_record):
        log.append([drained(number) for number in range(first, min(first + per_record, numbers.stop))])


def seen(path: Path, after: Place = BEGIN) -> list[dict[str, Any]]:
    return [event for event in follow(path, after, ended=None) if event is not None]


def agents(found: list[dict[str, Any]]) -> list[int]:
    return [int(event["agent"][2:]) for event in found if event["event"] == "agent.drained"]


def test_facts_are_events_in_the_order_of_the_log(log: EventLog, path: Path) -> None:
    log.append([drained(1), ev.TaskEnded(2.5, "w-1", 7, 1, 1, "failed", exit_status=3)])
    log.append([ev.TasksSubmitted(3.0, [TaskInput(8, "secret"), TaskInput(9, "secret")])])
    first, second, third = seen(path)
    assert (first["seq"], first["event"], first["agent"]) == ("1-1", "agent.drained", "w-1")
    assert (second["seq"], second["event"], second["outcome"], second["exit_status"]) == (
        "1-2",
        "task.ended",
        "failed",
        3,
    )
    assert second["at"] == "1970-01-01T00:00:02.500+00:00"
    assert (third["seq"], third["event"], third["tasks"]) == ("2-1", "tasks.submitted", [8, 9])


def test_a_reader_that_resumes_anywhere_sees_the_rest_exactly_once(log: EventLog, path: Path) -> None:
    write(log, range(1, 100), per_record=7)
    everything = seen(path)
    assert agents(everything) == list(range(1, 100))
    for at, event in enumerate(everything):
        rest = seen(path, parse_place(event["seq"]))
        assert rest == everything[at + 1 :], event["seq"]
    assert agents(seen(path, Place(2))) == list(range(15, 100)), "a record's number alone stands for all of it"


def test_a_long_log_is_followed_over_its_segments(log: EventLog, path: Path) -> None:
    write(log, range(1, 2001))
    assert len(list(path.glob("*.seg"))) > 1
    assert agents(seen(path)) == list(range(1, 2001))
    assert last_record(path) == 2000


def test_what_is_written_while_it_is_followed_is_seen_once(
    log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, last = 0, 300

    def go_on(_pause_s: float) -> None:
        nonlocal written
        write(log, range(written + 1, min(written + 40, last) + 1), per_record=3)
        written = min(written + 40, last)

    monkeypatch.setattr(time, "sleep", go_on)
    found = [event for event in follow(path, Place(), ended=lambda: written == last) if event is not None]
    assert agents(found) == list(range(1, last + 1))


def test_an_idle_log_is_looked_at_ever_more_rarely(log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    list(follow(path, Place(), ended=lambda: len(pauses) == 10))
    assert pauses == sorted(pauses)
    assert pauses[-1] == events.LOOK_MAX_S


def test_what_was_compacted_is_told_as_a_gap(log: EventLog, path: Path) -> None:
    write(log, range(1, 1001))
    log.write_snapshot(State(plan=_plan()))
    write(log, range(1001, 1004))
    kept = seen(path)
    assert kept[0]["event"] == "agent.drained", "without --after the oldest that is kept comes first"
    first = agents(kept)[0]
    assert first > 1, "nothing was compacted"
    gap, *rest = seen(path, Place(5))
    assert {key: gap[key] for key in ("event", "first", "last", "seq")} == {
        "event": "log.gap", "first": 6, "last": first - 1, "seq": f"{first - 1}",
    }  # fmt: skip
    assert agents(rest) == list(range(first, 1004))
    assert seen(path, parse_place(gap["seq"])) == rest


def _plan() -> ev.Plan:
    return ev.Plan(workers=[])


def test_compaction_below_a_reader_loses_it_nothing_it_has_begun(log: EventLog, path: Path) -> None:
    write(log, range(1, 1001))
    reading = follow(path, Place(), ended=None)
    begun = [next(reading) for _ in range(10)]
    log.write_snapshot(State(plan=_plan()))
    rest = list(reading)
    found = [event for event in [*begun, *rest] if event is not None]
    numbers = agents(found)
    gaps = [(event["first"], event["last"]) for event in found if event["event"] == "log.gap"]
    missing = sorted(set(range(1, 1001)) - set(numbers))
    assert numbers == sorted(set(numbers))
    assert missing == [number for first, last in gaps for number in range(first, last + 1)]


def test_watching_changes_nothing_and_needs_no_lock(log: EventLog, path: Path) -> None:
    write(log, range(1, 50))
    temporary = path / "tmp-of-the-writer"
    temporary.write_bytes(b"")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    seen(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_damaged_record_ends_the_reading_with_its_number(log: EventLog, path: Path) -> None:
    write(log, range(1, 6))
    (segment,) = path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"w-4")] ^= 1
    segment.write_bytes(data)
    found: list[dict[str, Any]] = []
    with pytest.raises(CorruptStoreError, match="record 4"):
        found.extend(event for event in follow(path, Place(), ended=None) if event is not None)
    assert agents(found) == [1, 2, 3]


def test_a_store_without_a_coordinator_has_nothing_to_watch(tmp_path: Path) -> None:
    with pytest.raises(FleetNotRunningError, match="nothing to watch"):
        seen(tmp_path / "coordinator/log")


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1-2-3", "1.5", "٣", "9" * 20])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--after"):
        parse_place(text)
