"""Where the inputs of a run come from, and how they are cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from muster.core import limits
from muster.errors import BodyTooLargeError, ConfigError, InputFileError
from muster.fleet import inputs


def everything(source: inputs.Inputs) -> list[str]:
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
