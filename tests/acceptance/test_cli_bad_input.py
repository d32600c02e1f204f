"""Every mistake: a documented exit status, one sentence, a stable code with --json, no traceback, nothing started."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli_world import World, a_world, lines_of

pytestmark = pytest.mark.timeout(120)

#: command line -> (exit status, code, words of the sentence)
MISTAKES: dict[str, tuple[list[str], int, str, list[str]]] = {
    "unknown verb": (["frobnicate"], 2, "usage", ["frobnicate", "--help"]),
    "misspelt verb": (["staus"], 2, "usage", ["'status'"]),
    "unknown option": (["run", "--job", "3", "true", ":::", "a"], 2, "usage", ["--job"]),
    "no command": (["run", ":::", "a"], 2, "usage.config", ["no command"]),
    "missing command": (["run", "no-such-command", ":::", "a"], 2, "usage.command_not_found", ["no-such-command"]),
    "command not executable": (["run", "/etc/passwd", ":::", "a"], 2, "usage.command_not_found", ["not executable"]),
    "directory as command": (["run", "/tmp", ":::", "a"], 2, "usage.command_not_found", ["not executable"]),
    "missing handler": (["run", "--handler", "nowhere:work", ":::", "a"], 2, "usage.handler_not_found", ["nowhere"]),
    "handler not a function": (["run", "--handler", "os:sep", ":::", "a"], 2, "usage.handler_not_found", ["os:sep"]),
    "handler malformed": (["run", "--handler", "os", ":::", "a"], 2, "usage.handler_not_found", ["module:function"]),
    "command and handler": (["run", "--handler", "os:listdir", "true", ":::", "a"], 2, "usage.config", ["not both"]),
    "missing input file": (["run", "-a", "none.txt", "true"], 2, "usage.input_file", ["none.txt", "No such file"]),
    "directory as input file": (["run", "-a", "/etc", "true"], 2, "usage.input_file", ["/etc", "directory"]),
    "two sources of inputs": (["run", "-a", "x", "true", ":::", "a"], 2, "usage.config", [":::"]),
    "no jobs": (["run", "-j", "0", "true", ":::", "a"], 2, "usage.config", ["--jobs"]),
    "jobs not a number": (["run", "-j", "many", "true", ":::", "a"], 2, "usage", ["many"]),
    "bad duration": (["run", "--timeout", "soon", "true", ":::", "a"], 2, "usage.config", ["--timeout", "soon"]),
    "bad halt": (["run", "--halt", "perhaps", "true", ":::", "a"], 2, "usage.config", ["perhaps"]),
    "bad variable": (["run", "--env", "NOVALUE", "true", ":::", "a"], 2, "usage.config", ["NOVALUE"]),
    "missing directory": (["run", "--cwd", "nowhere", "true", ":::", "a"], 2, "usage.config", ["nowhere"]),
    "report nowhere": (["run", "--report", "no/where.json", "true", ":::", "a"], 2, "usage.config", ["--report"]),
    "results nowhere": (["run", "--results", "no/where", "true", ":::", "a"], 1, "run.results_file", ["no/where"]),
    "resume without results": (["run", "--resume", "true", ":::", "a"], 2, "usage.config", ["--results"]),
    "bad name": (["run", "--name", "a/b", "true", ":::", "a"], 2, "usage.invalid_name", ["a/b"]),
    "name that climbs": (["run", "--name", "..", "true", ":::", "a"], 2, "usage.invalid_name", [".."]),
    "name with newline": (["run", "--name", "abc\n", "true", ":::", "a"], 2, "usage.invalid_name", ["abc"]),
    "name too long": (["run", "--name", "x" * 65, "true", ":::", "a"], 2, "usage.invalid_name", ["64"]),
    "name not ASCII": (["run", "--name", "fähre", "true", ":::", "a"], 2, "usage.invalid_name", ["fähre"]),
    "unsafe shell": (["run", "--shell", "echo `echo {}`", ":::", "a"], 2, "usage.config", ["back quotes"]),
    "fleet unknown": (["status", "--fleet", "nobody"], 1, "fleet.not_running", ["nobody"]),
    "fleet unnamed": (["status"], 2, "usage.config", ["which fleet"]),
    "down of nothing": (["down", "--fleet", "nobody"], 1, "fleet.not_running", ["nobody"]),
    "send to no fleet": (["send", "bob", "hello"], 2, "usage.config", ["which fleet"]),
    "recv from no fleet": (["recv", "--fleet", "nobody"], 1, "fleet.not_running", ["nobody"]),
    "recv not a number": (["recv", "-n", "x", "--fleet", "nobody"], 2, "usage.config", ["-n"]),
    "attach to nothing": (["attach", "nobody"], 1, "fleet.not_running", ["nobody"]),
    "logs of nothing": (["logs", "--fleet", "nobody"], 1, "fleet.not_running", ["nobody"]),
    "up without a file": (["up"], 2, "usage.config", ["fleet.toml"]),
    "up of a missing file": (["up", "none.toml"], 2, "usage.config", ["none.toml", "No such file"]),
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        yield one


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_starts_nothing(world: World, mistake: str) -> None:
    words, status, code, said = MISTAKES[mistake]
    done = world.muster(*words)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("muster: ")
    assert done.stderr.count("\n") == 1
    for word in said:
        assert word in done.stderr
    assert world.stores() == []

    verb, *rest = words
    in_json = world.muster(verb, "--json", *rest)
    assert in_json.returncode == status
    assert in_json.stderr == ""
    assert json.loads(in_json.stdout)["error"]["code"] == code


def test_debug_shows_where(world: World) -> None:
    done = world.muster("run", "--debug", "no-such-command", ":::", "a")
    assert done.returncode != 0
    assert "CommandNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agents.a]\ncuont = 2", ["'cuont'", "'count'"]),
        ("[flet]", ["'flet'", "'fleet'"]),
        ('[agents.a]\ncommand = ["no-such-command"]', ["[agents.a]", "no-such-command"]),
        ('[agents.a]\nhandler = "nowhere:work"', ["nowhere"]),
        ('[agents."a b"]', ["a b"]),
        ("", ["nothing to start"]),
    ],
)
def test_a_wrong_fleet_file_starts_nothing(world: World, text: str, said: list[str]) -> None:
    (world.work / "fleet.toml").write_text('[fleet]\nname = "f"\n' + text if "[flet" not in text else text)
    done = world.muster("up")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for word in said:
        assert word in done.stderr
    assert world.stores() == []


def test_a_store_that_is_open_to_others_is_not_used(world: World) -> None:
    open_root = world.work / "open"
    open_root.mkdir()
    open_root.chmod(0o777)
    done = world.muster("run", "--store", str(open_root), "true", ":::", "a")
    assert done.returncode == 1
    assert "0777" in done.stderr
    assert list(open_root.iterdir()) == []


def test_a_store_behind_a_link_is_not_used(world: World) -> None:
    (world.work / "target").mkdir(mode=0o700)
    (world.work / "link").symlink_to(world.work / "target")
    done = world.muster("run", "--store", str(world.work / "link"), "true", ":::", "a")
    assert done.returncode == 1
    assert "symbolic link" in done.stderr
    assert list((world.work / "target").iterdir()) == []


@pytest.mark.root
def test_a_store_of_somebody_else_is_not_used(world: World) -> None:
    foreign = world.work / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 12345, 12345)
    done = world.muster("run", "--store", str(foreign), "true", ":::", "a")
    assert done.returncode == 1
    assert "belongs to user 12345" in done.stderr


@pytest.mark.root
def test_a_store_that_is_too_small_is_refused_before_anything_starts(world: World) -> None:
    small = world.work / "small"
    small.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        done = world.muster("run", "--store", str(small), "-j", "50", "true", ":::", "a")
        assert done.returncode == 1
        assert "at least" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_results_on_a_full_disk_end_the_run_with_one_sentence(world: World) -> None:
    done = world.muster("run", "--results", "/dev/full", "echo", ":::", *map(str, range(20)))
    assert done.returncode == 1
    assert "cannot write the results file /dev/full: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    world.assert_nothing_left()


def test_a_results_file_is_never_written_over(world: World) -> None:
    assert world.muster("run", "--results", "r.jsonl", "true", ":::", "a").returncode == 0
    before = (world.work / "r.jsonl").read_bytes()
    again = world.muster("run", "--results", "r.jsonl", "true", ":::", "a")
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert (world.work / "r.jsonl").read_bytes() == before


def test_an_input_that_is_no_text_fails_after_the_inputs_before_it(world: World) -> None:
    done = world.muster("run", "-k", "echo", stdin=b"one\ntwo\n\xff\n")
    assert done.returncode == 2
    assert "line 3 is not UTF-8" in done.stderr
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("handler", "outcome", "said"),
    [
        ("def work(x):\n    raise ValueError('no luck')", "failed", "no luck"),
        ("import sys\ndef work(x):\n    sys.exit(3)", "failed", "SystemExit"),
        ("def work(x):\n    return object()", "failed", ""),
        ("import time\ndef work(x):\n    time.sleep(60)", "timeout", ""),
        ("import asyncio\nasync def work(x):\n    await asyncio.sleep(60)", "timeout", ""),
    ],
)
def test_a_handler_that_misbehaves_is_a_failed_task_and_no_more(
    world: World, handler: str, outcome: str, said: str
) -> None:
    (world.work / "bad.py").write_text(handler + "\n")
    done = world.muster("run", "--timeout", "1s", "--results", "r.jsonl", "--handler", "bad:work", ":::", "x")
    assert done.returncode == 1, done.stderr
    (line,) = lines_of(world.work / "r.jsonl")
    assert line["outcome"] == outcome
    assert said in json.dumps(line["error"])
    assert "Traceback" not in done.stderr
    world.assert_nothing_left()


def test_bad_messages_are_refused_and_nothing_is_stored(world: World) -> None:
    (world.work / "fleet.toml").write_text('[fleet]\nname = "f"\n[agents.desk]\n')
    assert world.muster("up", "-d").returncode == 0
    try:
        mistakes = [
            (["send", "nobody", "hi"], 2, "nobody"),
            (["send", "a b", "hi"], 2, "a b"),
            (["send", "abc\n", "hi"], 2, "abc"),
            (["send", "..", "hi"], 2, ".."),
            (["send", "x" * 65, "hi"], 2, "64"),
            (["send", "böse", "hi"], 2, "böse"),
            (["send", "@nobody", "hi"], 2, "@nobody"),
            (["send", "desk", "--json-body", "{"], 2, "JSON"),
            (["send", "desk", "hi", "--as", "coordinator"], 2, "reserved"),
            (["send", "desk", "hi", "--as", "a b"], 2, "a b"),
            (["send", "desk", "hi", "-t", "t" * 65], 2, "type"),
            (["ask", "nobody", "hi"], 2, "nobody"),
        ]
        for words, status, said in mistakes:
            done = world.muster(*words)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1), (words, done.stderr)
            assert said in done.stderr
        large = world.muster("send", "desk", stdin=b"x" * ((1 << 20) + 1))
        assert large.returncode == 2
        assert "1048576" in large.stderr.replace(",", "")
        assert {row["agent"]: row["inbox_depth"] for row in json.loads(world.muster("ls", "--json").stdout)}[
            "desk"
        ] == 0
    finally:
        assert world.muster("down").returncode == 0


def test_temporary_directories_need_no_muster_of_their_own() -> None:
    # The probe's own leftovers: a doctor that was here leaves its trial directories empty and removed.
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("muster-doctor-")]
