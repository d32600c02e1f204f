"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

README = (Path(__file__).parents[2] / "README.md").read_text()


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    return {**kept, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}


def test_the_example_of_two_agents_that_talk_prints_what_it_says(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1]],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "alice {'n': 1}\nacked\n"


def test_the_fleet_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    from muster.fleet.config import load

    text = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert text is not None
    path = tmp_path / "fleet.toml"
    path.write_text(text[1])
    spec = load(path)
    assert spec is not None


def test_a_handler_sees_the_variables_that_env_sets(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text("import os\n\n\ndef at(name):\n    return os.environ.get(name)\n")
    done = subprocess.run(
        [
            sys.executable,
            *"-m muster run -j 2 --env HARBOUR=open --handler looks:at --results out.jsonl ::: HARBOUR".split(),
        ],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["value"] == "open"
