"""The results file as `--resume` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.errors import ConfigError, FleetRunningError, ResultsFileError, RunMismatchError
from muster.fleet import inputs, results


def line(number: int, text: str, outcome: str = "done", **more: object) -> str:
    return json.dumps({"task": number, "input": text, "outcome": outcome, "attempt": 1, **more}) + "\n"


def read(path: Path) -> results.Recorded:
    file = results.ResultsFile(path, resume=True)
    try:
        return file.read()
    finally:
        file.close()


def test_done_tasks_are_known_and_failed_ones_run_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        line(1, "a") + line(2, "b", "failed") + line(3, "c", "timeout") + line(4, "d", "failed") + line(4, "d")
    )
    recorded = read(path)
    assert recorded.done == {1, 4}
    assert recorded.highest == 4
    todo, taken = results.resume_plan(recorded, inputs.Inputs(words=tuple("abcde")).batches())
    assert todo == [(2, "b"), (3, "c"), (5, "e")]
    assert taken == 5


@pytest.mark.parametrize("torn", ['{"task": 2, "inp', "{", '{"task": 2, "input": "b", "outcome": "done"}'])
def test_a_torn_last_line_is_cut_and_its_task_runs_again(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line(1, "a") + torn)
    recorded = read(path)
    assert recorded.done == {1}
    assert recorded.torn_bytes == len(torn)
    assert path.read_text() == line(1, "a")


def test_damage_in_the_middle_is_reported_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    content = line(1, "a") + "not a result\n" + line(3, "c")
    path.write_text(content)
    with pytest.raises(ResultsFileError, match="line 2"):
        read(path)
    assert path.read_text() == content


def test_carriage_returns_do_not_split_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"task":1,"input":"a",\r"outcome":"done"}\n')
    assert read(path).done == {1}


def test_other_inputs_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line(1, "a") + line(3, "c"))
    recorded = read(path)
    with pytest.raises(RunMismatchError, match="input 3 was 'c' and is now 'x'"):
        results.resume_plan(recorded, inputs.Inputs(words=("a", "b", "x")).batches())
    with pytest.raises(RunMismatchError, match="now there are only 2"):
        results.resume_plan(recorded, inputs.Inputs(words=("a", "b")).batches())


def test_resuming_takes_no_more_inputs_than_were_recorded(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line(1, "a"))
    batches: Iterator[list[inputs.Item]] = iter([["a"], ["b"]])
    assert results.resume_plan(read(path), batches) == ([], 1)
    assert next(batches) == ["b"]


def test_a_file_with_results_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line(1, "a"))
    with pytest.raises(ConfigError, match="--resume"):
        results.ResultsFile(path, resume=False)
    assert path.read_text() == line(1, "a")


def test_a_second_run_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = results.ResultsFile(path, resume=False)
    with pytest.raises(FleetRunningError):
        results.ResultsFile(path, resume=True)
    first.read()
    path.read_bytes()  # opening and closing the file elsewhere must not drop the lock
    with pytest.raises(FleetRunningError):
        results.ResultsFile(path, resume=True)
    first.close()
    results.ResultsFile(path, resume=True).close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match="No such file"):
        results.ResultsFile(tmp_path / "none" / "r.jsonl", resume=False)
    with pytest.raises(ResultsFileError, match="directory"):
        results.ResultsFile(tmp_path, resume=False)
