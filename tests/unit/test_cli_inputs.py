"""Where the inputs of a run come from, and how they are cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from muster.core import limits
from muster.core.protocol import TaskInput
from muster.errors import BodyTooLargeError, ConfigError, InputFileError
from muster.fleet import inputs


def everything(source: inputs.Inputs) -> list[inputs.Item]:
    return [text for batch in source.batches() for text in batch]


def test_words_behind_the_separator_are_inputs() -> None:
    assert inputs.split_words(["grep", "-c", "x", "{}", ":::", "a", "b c", ""]) == (
        ("grep", "-c", "x", "{}"),
        ("a", "b c", ""),
    )
    assert inputs.split_words(["true"]) == (("true",), None)
    assert inputs.split_words(["true", ":::"]) == (("true",), ())


def test_a_second_separator_is_refused() -> None:
    with pytest.raises(ConfigError):
        inputs.split_words(["true", ":::", "a", ":::", "b"])


def test_words_come_in_batches_that_fit_into_a_message() -> None:
    words = tuple(str(n) for n in range(limits.SUBMIT_BATCH * 2 + 1))
    batches = list(inputs.Inputs(words=words).batches())
    assert [len(batch) for batch in batches] == [limits.SUBMIT_BATCH, limits.SUBMIT_BATCH, 1]
    assert [text for batch in batches for text in batch] == list(words)


@pytest.mark.parametrize("content", [b"a\nb c\n\n\xc3\xa4\n", b"a\nb c\n\n\xc3\xa4"])
def test_lines_of_a_file_are_inputs_and_empty_lines_are_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "list"
    file.write_bytes(content)
    assert everything(inputs.Inputs(files=(str(file), str(file)))) == ["a", "b c", "ä"] * 2


def test_nul_separated_inputs_may_hold_newlines(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"one\ntwo\0three\0")
    assert everything(inputs.Inputs(files=(str(file),), null=True)) == ["one\ntwo", "three"]


def test_lines_that_straddle_reads_stay_whole(tmp_path: Path) -> None:
    lines = [f"{n}-" + "x" * (n % 977) for n in range(2000)]
    file = tmp_path / "list"
    file.write_text("\n".join(lines))
    assert file.stat().st_size > 2 * inputs.READ_BYTES
    assert everything(inputs.Inputs(files=(str(file),))) == lines


def test_a_slow_source_is_not_held_back() -> None:
    # Given a pipe whose writer has written one line and stays open
    read_end, write_end = os.pipe()
    saved = os.dup(0)
    os.dup2(read_end, 0)
    try:
        batches = inputs.Inputs(files=("-",)).batches()
        os.write(write_end, b"first\nsec")
        assert next(batches) == ["first"]
        os.write(write_end, b"ond\n")
        assert next(batches) == ["second"]
        os.close(write_end)
        assert next(batches, None) is None
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read_end)


@pytest.mark.parametrize("content", [b"ok\n\xff\xfe\n", b"a\0b\n"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "list"
    file.write_bytes(content)
    with pytest.raises(InputFileError) as caught:
        everything(inputs.Inputs(files=(str(file),)))
    assert caught.value.exit_status == 2


def test_an_input_that_fits_into_no_message_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"x" * (limits.BODY_BYTES_MAX + 1))
    with pytest.raises(BodyTooLargeError):
        everything(inputs.Inputs(files=(str(file),)))


def test_a_missing_file_is_found_before_anything_starts(tmp_path: Path) -> None:
    source = inputs.choose(None, [str(tmp_path / "none")], null=False)
    with pytest.raises(InputFileError, match="No such file"):
        source.check()


def test_a_directory_is_no_list_of_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="directory"):
        everything(inputs.Inputs(files=(str(tmp_path),)))


def test_two_kinds_of_sources_at_once_are_refused() -> None:
    with pytest.raises(ConfigError):
        inputs.choose(("a",), ["list"], null=False)
    with pytest.raises(ConfigError):
        inputs.choose(None, ["-", "-"], null=False)


# --------------------------------------------------------------------------- tasks with wishes


def test_tasks_are_numbered_over_all_files_and_empty_lines_are_none(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text('{"input": "x", "priority": -3}\n\n{"input": {"n": 1}, "after": [1], "delay": "1m30s"}\n')
    second.write_text('{"input": null, "after": [1, 2], "timeout": 5, "retries": 0, "backoff": "250ms"}')
    assert everything(inputs.choose(None, (), tasks=(str(first), str(second)))) == [
        TaskInput(1, "x", priority=-3),
        TaskInput(2, {"n": 1}, after=[1], delay_s=90.0),
        TaskInput(3, None, after=[1, 2], timeout_s=5.0, attempts_max=1, backoff_s=0.25),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nothing", "not a task: JSON is malformed"),
        ("[1]", "not a task: Expected `object`, got `array`"),
        ("{}", "not a task: it lacks the required field `input`"),
        ('{"input": 1, "tags": ["x"]}', "not a task: it has the unknown field `tags`"),
        ('{"input": 1, "priority": "high"}', "not a task: Expected `int`, got `str`"),
        ('{"input": 1, "priority": 101}', "priority 101 is not between -100 and 100"),
        ('{"input": 1, "delay": "-1s"}', "'-1s' is not a duration"),
        ('{"input": 1, "retries": -1}', "retries must be between 0 and 999,999, not -1"),
        ('{"input": 1, "after": [2]}', "task 2 can only come after tasks that stand before it, not after 2"),
        ('{"input": 1, "after": [0]}', "not after 0"),
        ('{"input": 1, "timeout": 0}', "a timeout of 0 s is not possible"),
        (b'{"input": "\xff"}', "not a task: "),
    ],
)
def test_a_line_that_is_no_task_is_named_in_one_sentence(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = tmp_path / "tasks"
    path.write_bytes(b'{"input": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(InputFileError) as caught:
        inputs.choose(None, (), tasks=(str(path),)).check()
    assert caught.value.message.startswith(f"{path}: line 2: ")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_tasks_and_other_inputs_do_not_go_together() -> None:
    for words, files, null in ((("a",), (), False), (None, ("f",), False), (None, (), True)):
        with pytest.raises(ConfigError, match="--tasks goes with neither"):
            inputs.choose(words, files, null=null, tasks=("t",))
