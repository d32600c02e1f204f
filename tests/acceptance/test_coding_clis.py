"""Coding command lines by preset, played by fakes in the vendors' formats: what a run makes of what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place

CLIS = ("claude", "codex", "gemini")
FAKE = Path(__file__).with_name("fake_cli.py")


@pytest.fixture
def clis(place: Place) -> Place:
    """A place with the fakes on its PATH."""
    folder, state = place.base / "bin", place.base / "calls"
    folder.mkdir()
    state.mkdir()
    for name in CLIS:
        program = folder / name
        program.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        program.chmod(0o755)
    place.env |= {"PATH": f"{folder}{os.pathsep}{place.env['PATH']}", "FAKE_STATE": str(state)}
    return place


def run(place: Place, preset: str, *words: str) -> tuple[Muster, list[dict[str, Any]]]:
    results = place.work / "results.jsonl"
    done = place.carry_out("run", "--preset", preset, "--results", str(results), *words)
    assert results.exists(), done.errors
    return done, [json.loads(line) for line in results.read_text().splitlines()]


def repository(place: Place) -> Path:
    top = place.work / "repo"
    top.mkdir()
    for words in (("init", "-q", "-b", "main"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words), cwd=top, check=True)
    return top


FAILURES = {
    "fail": ("session.failed", "the tests do not pass"),
    "context": ("session.context_full", "no longer fits its model: prompt is too long"),
    "noend": ("session.no_end", "ended with status 0 without saying how its session ended"),
    "mute": ("session.no_end", "ended with status 1 without saying how its session ended"),
}


@pytest.mark.parametrize("preset", CLIS)
def test_the_stream_decides_and_not_the_exit_status(clis: Place, preset: str) -> None:
    """A session that says how it failed, one that says nothing, one that succeeded and exits with 1: each by what it says."""
    done, lines = run(clis, preset, "-j", "6", ":::", *FAILURES, "exit1", "garbage")
    assert done.process.returncode == 1
    ended = {line["input"]: line for line in lines}
    for prompt, (code, says) in FAILURES.items():
        assert (ended[prompt]["outcome"], ended[prompt]["error"]["code"]) == ("failed", code), prompt
        assert says in ended[prompt]["error"]["message"]
        assert "\n" not in ended[prompt]["error"]["message"]
    assert (ended["exit1"]["outcome"], ended["exit1"]["exit_status"]) == ("done", 1)
    assert ended["garbage"]["outcome"] == "done"
    assert ended["garbage"]["value"]["left_out"]["lines"] == 3
    assert "is not JSON, so it was left out" in ended["garbage"]["value"]["left_out"]["first"]


@pytest.mark.parametrize("preset", CLIS)
def test_a_limit_is_waited_for_and_uses_up_no_attempt(clis: Place, preset: str) -> None:
    done, lines = run(
        clis,
        preset,
        "-j",
        "3",
        "--halt",
        "now,fail=1",
        "--prompt",
        "Do {}",
        ":::",
        "limit once",
        "mute limit",
        "--greet",
    )
    assert done.process.returncode == 0, done.errors
    said = [line.partition(" (resumed")[0] for line in done.output.decode().splitlines()]
    assert sorted(said) == [f"{preset} did: Do {what}" for what in ("--greet", "limit once", "mute limit")]
    assert {line["input"]: (line["outcome"], line["attempt"]) for line in lines} == {
        "--greet": ("done", 1),
        "limit once": ("done", 2),
        "mute limit": ("done", 2),
    }
    value = next(line["value"] for line in lines if line["input"] == "--greet")
    assert value["tokens"] == {"input": 120, "cached": 20, "output": 10}
    assert value["session"].startswith(f"{preset}-")
    priced = (100 * 1.25 + 20 * 0.31 + 10 * 10) / 1e6  # by the table: its stream tells the model, and no money
    costs = {"claude": pytest.approx(0.25), "codex": None, "gemini": pytest.approx(priced)}
    assert value["cost_usd"] == costs[preset]


@pytest.mark.parametrize("preset", CLIS)
def test_a_retry_goes_on_with_the_session_of_the_attempt_before(clis: Place, preset: str) -> None:
    done, (line,) = run(clis, preset, "--retries", "1", ":::", "fail once")
    assert done.process.returncode == 0, done.errors
    assert line["attempt"] == 2
    session = line["value"]["session"]
    assert line["value"]["answer"] == f"{preset} did: fail once (resumed {session})"


def test_a_session_outlives_the_coordinator(clis: Place) -> None:
    results = clis.work / "results.jsonl"
    muster = clis.start(
        "run", "--preset", "claude", "-j", "2", "--retries", "1", "--results", str(results), ":::", "fail once", "slow"
    )
    eventually(lambda: (clis.base / "calls" / "fail_once").exists(), PATIENCE_S)
    eventually(lambda: (clis.base / "calls" / "slow").exists(), PATIENCE_S)
    for pid in (muster.coordinator(), *muster.workers().values()):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert muster.end(90) == 0, muster.errors
    lines = {line["input"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert lines["fail once"]["value"]["answer"].startswith("claude did: fail once (resumed claude-")
    assert lines["slow"]["outcome"] == "done"


def test_waiting_for_permission_is_seen_in_the_status(clis: Place) -> None:
    muster = clis.start("run", "--name", "asks", "--preset", "claude", ":::", "permission")
    eventually(lambda: "waiting" in states_of(clis, "asks"), PATIENCE_S)
    assert muster.end() == 0, muster.errors


def states_of(place: Place, fleet: str) -> list[str]:
    told = place.carry_out("status", "--json", fleet)
    if not told.output:
        return []
    return [agent["state"] for agent in json.loads(told.output).get("agents", [])]


def test_transcripts_are_kept_whole_with_their_digest(clis: Place) -> None:
    import hashlib

    folder = clis.work / "transcripts"
    _, (line,) = run(clis, "codex", "--transcripts", str(folder), ":::", "hello")
    told = line["value"]["transcript"]
    data = Path(told["file"]).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (told["sha256"], told["bytes"])
    assert data.startswith(b'{"type": "thread.started"')


def test_twenty_agents_edit_one_repository_each_in_a_worktree_of_its_own(clis: Place) -> None:
    top = repository(clis)
    prompts = [f"edit number {n}" if n % 2 else f"look at number {n}" for n in range(20)]
    done, lines = run(clis, "claude", "-j", "20", "--cwd", str(top), "--worktree", ":::", *prompts)
    assert done.process.returncode == 0, done.errors
    assert subprocess.run(("git", "status", "--porcelain"), cwd=top, capture_output=True, check=True).stdout == b""
    kept = {line["input"]: line["value"]["worktree"] for line in lines}
    assert {prompt for prompt, tree in kept.items() if tree["kept"]} == {p for p in prompts if p.startswith("edit")}
    for prompt, tree in kept.items():
        if tree["kept"]:
            assert (Path(tree["path"]) / "edited-by-claude").read_text() == f"{prompt}\n"
        else:
            assert not Path(tree["path"]).exists()


def test_a_retry_finds_the_work_of_the_attempt_before_in_its_worktree(clis: Place) -> None:
    top = repository(clis)
    _, (line,) = run(clis, "claude", "--retries", "1", "--cwd", str(top), "--worktree", ":::", "edit, fail once")
    tree = Path(line["value"]["worktree"]["path"])
    assert (tree / "edited-by-claude").read_text() == "edit, fail once\n" * 2


def test_a_wrong_option_is_one_sentence(clis: Place) -> None:
    for words, says in (
        (("--preset", "cluade", ":::", "x"), "there is no preset 'cluade'"),
        (("--preset", "claude", "--prompt", "x", ":::", "x"), "where the input stands"),
        (("--preset", "claude", "--shell", ":::", "x"), "neither --handler nor --shell"),
        (("--preset", "claude", "--", "{}", ":::", "x"), "the input belongs into the prompt"),
        (("--prompt", "Fix {}", "true", ":::", "x"), "belong to a --preset"),
        (("--worktree", "true", ":::", "x"), "not in a git repository"),
        (("--worktree-keep", "soon", "true", ":::", "x"), "none of true, changed, always and never"),
    ):
        done = clis.carry_out("run", *words)
        assert done.process.returncode == 2, words
        assert says in done.errors
        assert done.errors.count("\n") == 1


def test_without_the_command_nothing_is_started(place: Place) -> None:
    done = place.carry_out("run", "--preset", "codex", ":::", "x", env={"PATH": "/usr/bin:/bin"})
    assert (done.process.returncode, done.errors) == (2, "muster: there is no command 'codex'\n")


def test_a_standing_fleet_takes_presets_from_its_file(clis: Place) -> None:
    clis.script(
        "fleet.toml",
        '[fleet]\nname = "coders"\n[agents.coder]\ncount = 2\npreset = "gemini"\nargs = ["--yolo"]\nprompt = "Fix {}"\n',
    )
    assert clis.carry_out("up", "-d").process.returncode == 0
    try:
        asked = clis.carry_out("ask", "coordinator", "issue 7", "--type", "task@coder", "--json")
        assert "gemini did: Fix issue 7" in asked.output.decode(), (asked.output, asked.errors)
    finally:
        clis.carry_out("down")


def test_a_budget_that_is_used_up_lets_running_work_end_and_ends_the_run_with_status_3(clis: Place) -> None:
    done, lines = run(clis, "claude", "-j", "2", "--budget", "1USD", ":::", *(f"look at {n}" for n in range(20)))
    assert done.process.returncode == 3
    assert "the budget of 1.00 USD is used up: 1." in done.errors
    assert {line["outcome"] for line in lines} == {"done"}
    assert 4 <= len(lines) <= 5, "four cost a dollar, and one more may have been in progress"


def test_a_failure_whose_words_fit_the_pattern_is_a_limit(clis: Place) -> None:
    flag = clis.work / "flag"
    line = f"test -e {flag} || {{ touch {flag}; echo 'quota is gone, retry after 1s' >&2; exit 9; }}; : {{}}"
    done = clis.carry_out("run", "--limited", "quota is gone", "--shell", line, ":::", "x")
    assert done.process.returncode == 0, done.errors
