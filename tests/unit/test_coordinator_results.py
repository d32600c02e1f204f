"""The results file: whole lines, one per task, honest about what was cut."""

from __future__ import annotations

import base64
import errno
import json
import os

import pytest

from muster.coordinator.events import Record
from muster.coordinator.results import ResultsFile, line_of, line_without_result
from muster.core import limits
from muster.core.protocol import Result
from muster.errors import ResultsFileError


def result(number: int = 1, **fields) -> Result:
    return Result(number=number, attempt=1, incarnation=1, outcome=fields.pop("outcome", "done"), **fields)


def shown(**fields) -> dict:
    out = fields.pop("stdout", b"")
    line: dict = json.loads(
        line_of("in", "w-1", result(stdout=out, stdout_bytes=fields.pop("stdout_bytes", len(out)), **fields))
    )
    return line


def test_a_line_says_everything_about_a_task():
    line = line_of(
        "a b",
        "w-1",
        result(
            7, outcome="failed", exit_status=2, stdout=b"out\n", stdout_bytes=4, stderr=b"err", stderr_bytes=3,
            started_unix_s=1_700_000_000.5, duration_s=0.25,
        ),
    )  # fmt: skip
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "task": 7, "input": "a b", "attempt": 1, "agent": "w-1", "outcome": "failed", "exit_status": 2, "signal": None, "value": None,
        "error": None, "stdout": "out\n", "stdout_bytes": 4, "stdout_truncated": False, "stderr": "err", "stderr_bytes": 3,
        "stderr_truncated": False, "started": "2023-11-14T22:13:20.500Z", "duration_s": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("size", [limits.OUTPUT_RESULT_BYTES_MAX, limits.OUTPUT_RESULT_BYTES_MAX + 1])
def test_output_is_marked_as_cut_exactly_when_it_is(size):
    line = shown(stdout=b"x" * size)
    is_cut = size > limits.OUTPUT_RESULT_BYTES_MAX
    assert line["stdout_truncated"] is is_cut
    assert line["stdout_bytes"] == size
    assert (line["stdout"] == "x" * size) is not is_cut
    if is_cut:
        assert "[... 1 bytes left out ...]" in line["stdout"]


def test_head_and_tail_of_a_long_output_come_from_its_spool_file(tmp_path):
    spool = tmp_path / "out"
    spool.write_bytes(b"head" + b"." * 300_000 + b"tail")
    line = shown(stdout=b"head" + b"." * 100, stdout_bytes=300_008, stdout_file=str(spool))
    assert line["stdout"].startswith("head")
    assert line["stdout"].endswith("tail")
    assert line["stdout_truncated"] is True


def test_a_spool_file_that_is_gone_leaves_what_the_message_holds():
    line = shown(stdout=b"head", stdout_bytes=300_000, stdout_file="/nonexistent/spool")
    assert line["stdout"].startswith("head")
    assert line["stdout_truncated"] is True


def test_bytes_that_are_no_text_are_also_given_as_base64():
    line = shown(stdout=b"ok \xff\xfe")
    assert line["stdout"] == "ok \ufffd\ufffd"
    assert base64.b64decode(line["stdout_b64"]) == b"ok \xff\xfe"


def test_cutting_inside_a_character_does_not_make_a_text_binary():
    line = shown(stdout=("é" * limits.OUTPUT_RESULT_BYTES_MAX).encode() + b"x")
    assert "stdout_b64" not in line
    assert "\ufffd" not in line["stdout"]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None]}, {1: "int key"}, b"bytes", "text\u2028\n"])
def test_any_value_a_message_can_carry_gets_a_line(value):
    line = line_of("in", "w", result(value=value))
    assert line.count(b"\n") == 1
    assert json.loads(line)["task"] == 1


def test_a_dead_letter_has_a_line_with_its_evidence():
    line = json.loads(
        line_without_result(Record(3, 5, "w-1", "dead", "in", ["attempt 5 on w-1: its worker died by signal 9"]))
    )
    assert (line["task"], line["outcome"], line["attempt"]) == (3, "dead", 5)
    assert "signal 9" in line["evidence"][0]
    assert line["error"]["code"] == "task.dead"


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    whole = b'{"task":1,"x":1}\n{"task":2,"x":1}\n'
    for torn in (b"", b'{"task":3', b'{"task":3,"input":"' + b"y" * (3 << 20)):
        path.write_bytes(whole + torn)
        file = ResultsFile(str(path))
        assert file.numbers_behind(0) == [1, 2]
        file.close()
        assert path.read_bytes() == whole


def test_a_file_with_only_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"task":1')
    ResultsFile(str(path)).close()
    assert path.read_bytes() == b""


def test_numbers_behind_a_place_are_this_lifes(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"task":1,"a":0}\n')
    file = ResultsFile(str(path))
    base = file.size_bytes
    file.append([line_of("x", "w", result(2)), line_of("x", "w", result(3))])
    assert file.numbers_behind(base) == [2, 3]
    assert file.numbers_behind(0) == [1, 2, 3]
    assert file.size_bytes == path.stat().st_size
    file.close()


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    file = ResultsFile(str(path))
    file.append([b'{"task":1,"a":0}\n'])
    real_write = os.write

    def short_then_full(fd, data):
        if len(data) > 10:
            return real_write(fd, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(ResultsFileError, match="No space left"):
        file.append([b'{"task":2,"a":0}\n'])
    monkeypatch.setattr(os, "write", real_write)
    assert path.read_bytes() == b'{"task":1,"a":0}\n'
    file.append([b'{"task":3,"a":0}\n'])
    assert file.numbers_behind(0) == [1, 3]
    assert file.size_bytes == path.stat().st_size
    file.close()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    file = ResultsFile(str(path))
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:7])))
    lines = [line_of("x", "w", result(number)) for number in range(1, 20)]
    file.append(lines)
    assert path.read_bytes() == b"".join(lines)
    file.close()


def test_of_a_task_that_was_run_again_only_the_last_line_is_left(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"task":1,"old":1}\n{"task":2,"old":1}\n')
    path.chmod(0o640)
    file = ResultsFile(str(path))
    file.append([b'{"task":1,"new":1}\n'])
    assert file.drop_superseded() == 1
    assert path.read_bytes() == b'{"task":2,"old":1}\n{"task":1,"new":1}\n'
    assert path.stat().st_mode & 0o777 == 0o640
    assert file.drop_superseded() == 0
    file.append([b'{"task":3,"new":1}\n'])
    assert file.numbers_behind(0) == [2, 1, 3]
    assert os.listdir(tmp_path) == ["r.jsonl"]
    file.close()


def test_a_file_that_cannot_be_opened_is_a_typed_error(tmp_path):
    with pytest.raises(ResultsFileError, match="cannot write the results file"):
        ResultsFile(str(tmp_path / "missing" / "r.jsonl"))
