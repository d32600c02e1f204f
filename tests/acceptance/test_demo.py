"""The demo as a newcomer runs it, and that it can fail: a demo that is always green proves nothing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muster.core.protocol import RunEnded
from muster.fleet.client import Outcome

from .place import Place, assert_recorded_once

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
REPORT_KEYS = {
    "agents", "tasks", "done", "failed", "delivered_ratio", "duplicates", "reassigned", "restarts", "ready_s", "duration_s",
    "task_latency_ms", "message_rtt_ms", "pss_mb_per_agent",
}  # fmt: skip
SAMPLE = b"""\
import os, sys
from os import path
from . import sibling

class A:
    def short(self): pass

    async def long(self):
        def inner():
            return 1
        return inner
"""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's main module, imported as it is when it is run as a script."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import demo_stdlib  # type: ignore[import-not-found]

    return demo_stdlib


@pytest.fixture
def analysis(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The analysis, over a library of three files of ours."""
    library = tmp_path / "library"
    for folder in ("", "pack", "pack/tests", "site-packages"):
        (library / folder).mkdir(exist_ok=True)
    (library / "good.py").write_bytes(SAMPLE)
    (library / "pack" / "broken.py").write_bytes(b"def f(:\n")
    (library / "pack" / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    (library / "pack" / "tests" / "data.py").write_bytes(b"pass\n")
    (library / "site-packages" / "other.py").write_bytes(b"pass\n")
    monkeypatch.setattr(demo.work, "library", lambda: library)
    return demo.work


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_demo_loses_nothing_though_three_workers_are_killed_at_work(place: Place, demo: Any) -> None:
    command = [sys.executable, str(EXAMPLES / "demo_stdlib.py"), "--out", str(place.work)]
    ran = subprocess.run(
        command, env=place.env, cwd=place.work, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads((place.work / "report.json").read_text())
    files = list(demo.work.library_files())
    lines = assert_recorded_once(place.work / "results.jsonl", files)
    assert told.keys() >= REPORT_KEYS
    assert (told["agents"], told["tasks"], told["done"], told["failed"]) == (50, len(files), len(files), 0)
    assert (told["delivered_ratio"], told["duplicates"], told["left_behind"]) == (1.0, 0, [])
    assert told["restarts"] >= 3
    assert told["reassigned"] >= 3
    attempts = {line["task"]: line["attempt"] for line in lines}
    assert sum(attempts[kill["task"]] > kill["attempt"] for kill in told["kills"]) >= 3
    assert f"{len(files)}/{len(files)} tasks" in ran.stdout
    assert "\x1b" not in ran.stdout + ran.stderr, "no terminal, and yet control characters"
    place.assert_nothing_is_left()


def test_a_file_is_counted_as_a_person_counts_it(analysis: Any) -> None:
    assert analysis.analyse("good.py") == {
        "path": "good.py", "lines": 11, "functions": 3, "classes": 1, "imports": {".": 1, "os": 2, "sys": 1},
        "longest_function": "long", "longest_lines": 4, "error": None,
    }  # fmt: skip


def test_a_file_that_does_not_parse_is_an_answer_and_other_encodings_parse(analysis: Any) -> None:
    broken = analysis.analyse("pack/broken.py")
    assert broken["error"].startswith("SyntaxError")
    assert (broken["lines"], broken["functions"]) == (1, 0)
    assert analysis.analyse("pack/latin.py")["error"] is None


def test_tests_and_installed_packages_are_no_part_of_the_set_and_every_byte_counts(analysis: Any) -> None:
    files = analysis.library_files()
    assert list(files) == ["good.py", "pack/broken.py", "pack/latin.py"]
    before = analysis.fingerprint(files)
    (analysis.library() / "good.py").write_bytes(SAMPLE.replace(b"1", b"2"))
    assert analysis.fingerprint(files) != before


def story_of(demo: Any, analysis: Any) -> Any:
    """A story in which everything went as promised."""
    from demo_kills import Kill  # type: ignore[import-not-found]

    files = analysis.library_files()
    lines = [
        {"task": number, "attempt": 2, "outcome": "done", "value": analysis.analyse(path)}
        for number, path in enumerate(files, 1)
    ]
    report = {
        "agents": 3, "tasks": 3, "done": 3, "failed": 0, "delivered_ratio": 1.0, "duplicates": 0, "reassigned": 3, "restarts": 3,
        "ready_s": 0.5, "duration_s": 1.0, "task_latency_ms": {"p50": 1.0, "p99": 2000.0}, "message_rtt_ms": {"p50": None, "p99": None},
        "pss_mb_per_agent": 2.0,
    }  # fmt: skip
    kills = [Kill(f"w-{number}", 4_000_000 + number, 1, number, 1) for number in (1, 2, 3)]
    ended = RunEnded(exit_status=0, reason="complete", report=report)
    return demo.Story(Outcome(0, ended), lines, report, kills, [])


def change_an_answer(story: Any) -> None:
    story.lines[0]["value"]["imports"]["os"] += 1


def lose_a_result(story: Any) -> None:
    del story.lines[1]


def record_twice(story: Any) -> None:
    story.lines.append(copy.deepcopy(story.lines[0]))


def kill_an_idle_agent(story: Any) -> None:
    story.lines[2]["attempt"] = 1


def leave_a_process(story: Any) -> None:
    story.left_behind.append("process 4000001")


def end_badly(story: Any) -> None:
    story.outcome.exit_status = 1


@pytest.mark.parametrize(
    "harm", [change_an_answer, lose_a_result, record_twice, kill_an_idle_agent, leave_a_process, end_badly]
)
def test_the_demo_fails_when_a_promise_is_broken(demo: Any, analysis: Any, tmp_path: Path, harm: Any) -> None:
    files = analysis.library_files()
    reference = {path: analysis.analyse(path) for path in files}
    story = story_of(demo, analysis)
    assert demo.judge(files, story, reference, 1.0, tmp_path / "report.json") == 0
    harm(story)
    assert demo.judge(files, story, reference, 1.0, tmp_path / "report.json") == 1
