"""Every command of the cookbook runs as it stands there, with fakes of the vendors' programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .place import Place
from .test_coding_clis import FAKE

pytestmark = pytest.mark.timeout(240)

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text()
ISSUES = "".join(f"#{n} {'edit the parser' if n % 3 else 'look at the docs'}\n" for n in range(1, 25))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


def test_the_page_shows_commands_and_a_fleet() -> None:
    assert len(commands()) >= 12
    assert len(blocks("toml")) == 1


def test_every_command_does_what_the_page_says(place: Place) -> None:
    programs, state, top = place.base / "bin", place.base / "calls", place.work / "repository"
    for folder in (programs, state, top):
        folder.mkdir()
    for name, text in (
        ("claude", f"#!{sys.executable} -IS\n{FAKE.read_text()}"),
        ("gh", f"#!/bin/sh\ncat <<'EOF'\n{ISSUES}EOF\n"),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = {**place.env, "PATH": f"{programs}{os.pathsep}{place.env['PATH']}", "FAKE_STATE": str(state), "NO_COLOR": "1"}
    env |= {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for words in (("init", "-q", "-b", "main"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(("git", *words), cwd=top, env=env, check=True)
    (top / "fleet.toml").write_text(blocks("toml")[0])
    for line in commands():
        done = subprocess.run(
            ("sh", "-c", line), cwd=top, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    results = [json.loads(line) for line in (place.work / "results.jsonl").read_text().splitlines()]
    assert len(results) == 24
    assert {line["outcome"] for line in results} == {"done"}
    kept = {line["input"] for line in results if line["value"]["worktree"]["kept"]}
    assert kept == {line for line in ISSUES.splitlines() if "edit" in line}
    branches = subprocess.run(
        ("git", "branch", "--list", "muster/issues/*"), cwd=top, capture_output=True, text=True, check=True
    )
    assert len(branches.stdout.splitlines()) == len(kept)
    assert "muster guide" in (top / "CLAUDE.md").read_text()
