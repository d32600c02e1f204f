"""The guide for agents: true to the commands it names, and put into a file without harm to it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from muster.cli.main import VERBS
from muster.errors import UsageError
from muster.fleet.guide import BEGIN, END, GUIDE, put_into, section


def test_every_verb_that_the_guide_names_exists():
    named = set(re.findall(r"`muster ([a-z]+)", GUIDE))
    assert {"ls", "send", "ask", "recv", "lock"} <= named
    assert named <= set(VERBS), named - set(VERBS)


def test_every_line_fits_a_page():
    assert max(map(len, GUIDE.splitlines())) <= 140


@pytest.mark.parametrize("before", ["", "# Mine\n", "# Mine", "# Mine\n\n\n", "\u00e4\n"])
def test_it_is_put_behind_what_is_there_and_again_changes_nothing(tmp_path: Path, before):
    file = tmp_path / "AGENTS.md"
    if before:
        file.write_text(before, encoding="utf-8")
    assert put_into(file) is True
    text = file.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert text.endswith(section())
    assert put_into(file) is False
    assert file.read_text(encoding="utf-8") == text


def test_an_older_guide_is_replaced_where_it_stands(tmp_path: Path):
    file = tmp_path / "AGENTS.md"
    file.write_text(f"before\n{BEGIN}\nold words\n{END}\nafter\n")
    assert put_into(file) is True
    assert file.read_text() == f"before\n{section()}after\n"


def test_mode_and_links_of_the_file_stay(tmp_path: Path):
    (tmp_path / "AGENTS.md").write_text("x\n")
    (tmp_path / "AGENTS.md").chmod(0o640)
    (tmp_path / "CLAUDE.md").symlink_to("AGENTS.md")
    put_into(tmp_path / "CLAUDE.md")
    assert (tmp_path / "CLAUDE.md").is_symlink()
    assert BEGIN in (tmp_path / "AGENTS.md").read_text()
    assert (tmp_path / "AGENTS.md").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["AGENTS.md", "CLAUDE.md"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (f"{BEGIN}\nno end".encode(), "do not come as one pair"),
        (f"{BEGIN}{END}{BEGIN}{END}".encode(), "do not come as one pair"),
        (b"x" * (5 << 20), "larger than 4 MiB"),
    ],
)
def test_a_file_that_cannot_take_it_stays_as_it_was(tmp_path: Path, content, sentence):
    file = tmp_path / "AGENTS.md"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        put_into(file)
    assert file.read_bytes() == content


def test_a_directory_and_a_missing_directory_are_one_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a file"):
        put_into(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        put_into(tmp_path / "nowhere" / "AGENTS.md")
