"""`muster run` as people meet it: real processes, real signals, real files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli_world import PATIENCE_S, World, a_world, lines_of, wait_for_lines

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        yield one


def test_outputs_are_those_of_the_command_run_directly(world: World) -> None:
    files = list(Path(os.__file__).parent.glob("*.py"))[:120]
    done = world.muster("run", "-j", "8", "sha256sum", "{}", ":::", *map(str, files))
    direct = subprocess.run(["sha256sum", *map(str, files)], capture_output=True, text=True, check=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(direct.stdout.splitlines())
    world.assert_nothing_left()


def test_inputs_come_from_standard_input_and_order_can_be_kept(world: World) -> None:
    text = "".join(f"{n}\n" for n in range(300))
    done = world.muster("run", "-j", "5", "-k", "echo", stdin=text.encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout == text
    world.assert_nothing_left()


def test_failures_make_exit_status_1_and_are_told(world: World) -> None:
    done = world.muster("run", "-j", "2", "--shell", "exit {}", ":::", "0", "3", "0")
    assert done.returncode == 1
    assert "2 done, 1 failed" in done.stderr
    assert "task 2: exit status 3" in done.stderr


def test_a_task_is_tried_again_as_often_as_asked(world: World) -> None:
    script = "n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count; test $n -ge 2; :"
    (world.work / "try").write_text(f"#!/bin/sh\n{script.replace('; :', '')}\n")
    (world.work / "try").chmod(0o755)
    done = world.muster("run", "--retries", "3", "./try", ":::", "x")
    assert done.returncode == 0, done.stderr
    assert (world.work / "count").read_text() == "3\n"


def test_a_task_over_its_time_is_killed_with_its_tree(world: World) -> None:
    done = world.muster(
        "run", "--timeout", "1s", "--results", "r.jsonl", "--shell", "sleep 60 & sleep 60; : {}", ":::", "x"
    )
    assert done.returncode == 1, done.stderr
    assert [line["outcome"] for line in lines_of(world.work / "r.jsonl")] == ["timeout"]
    world.assert_nothing_left()


def test_enough_failures_halt_the_run_with_status_3(world: World) -> None:
    done = world.muster("run", "-j", "1", "--halt", "soon,fail=2", "false", ":::", *map(str, range(50)))
    assert done.returncode == 3, done.stderr
    assert "halted" in done.stderr
    world.assert_nothing_left()


def test_a_python_function_runs_as_handler(world: World) -> None:
    (world.work / "shop.py").write_text("async def double(text):\n    return int(text) * 2\n")
    done = world.muster("run", "-j", "2", "--results", "r.jsonl", "--handler", "shop:double", ":::", "1", "2", "3")
    assert done.returncode == 0, done.stderr
    assert sorted(line["value"] for line in lines_of(world.work / "r.jsonl")) == [2, 4, 6]


def test_dry_run_quotes_and_runs_nothing(world: World) -> None:
    done = world.muster("run", "--dry-run", "touch", "{}", "n{#}", ":::", "a b", "it's")
    assert done.stdout.splitlines() == ["touch 'a b' n1", "touch 'it'\"'\"'s' n2"]
    assert world.stores() == []
    assert not (world.work / "n1").exists()


def test_json_mode_prints_events_and_nothing_else(world: World) -> None:
    done = world.muster("run", "--json", "echo", ":::", "a", "b")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["run.started", "task.output", "task.output", "run.ended"]
    assert sorted(event["stdout"] for event in events[1:3]) == ["a\n", "b\n"]
    assert events[-1]["report"]["done"] == 2
    assert done.stderr == ""


def test_large_output_is_never_cut(world: World) -> None:
    done = world.muster(
        "run", "-j", "2", "--shell", "head -c {} /dev/zero | tr '\\0' x", ":::", "3000000", "70000", "10"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 3_070_010
    world.assert_nothing_left()


def test_a_reader_that_goes_away_ends_the_run_quietly(world: World) -> None:
    process = world.start("run", "-q", "-j", "2", "--shell", "yes {} | head -c 200000", ":::", *map(str, range(200)))
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    world.assert_nothing_left()


def test_ctrl_c_lets_running_tasks_finish_and_resume_does_the_rest(world: World) -> None:
    words = ["-j", "2", "--results", "r.jsonl", "--shell", "sleep 0.2; echo {}", ":::", *map(str, range(40))]
    process = world.start("run", *words)
    wait_for_lines(world.work / "r.jsonl", 3)
    process.send_signal(signal.SIGINT)
    interrupted = world.finish(process)
    assert interrupted.returncode == 130
    assert "Ctrl-C again kills them" in interrupted.stderr
    first = lines_of(world.work / "r.jsonl")
    assert 3 <= len(first) < 40
    assert {line["outcome"] for line in first} == {"done"}
    world.assert_nothing_left()

    resumed = world.muster("run", "--resume", *words)
    assert resumed.returncode == 0, resumed.stderr
    assert len(resumed.stdout.splitlines()) == 40 - len(first)
    assert sorted(line["task"] for line in lines_of(world.work / "r.jsonl")) == list(range(1, 41))


def test_ctrl_c_twice_kills_what_runs(world: World) -> None:
    process = world.start(
        "run", "-j", "2", "--grace", "60s", "--results", "r.jsonl", "--shell", "sleep {}", ":::", "0", "97", "98"
    )
    wait_for_lines(world.work / "r.jsonl", 1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # a second signal of any kind: two equal ones might be merged by the kernel
    assert world.finish(process).returncode in (130, 143)
    world.assert_nothing_left()


def test_everything_killed_at_once_is_resumed_with_each_result_once(world: World) -> None:
    numbers = [str(n) for n in range(60)]
    words = ["-j", "4", "--results", "r.jsonl", "--shell", "sleep 0.05; echo {}", ":::", *numbers]
    process = world.start("run", *words)
    wait_for_lines(world.work / "r.jsonl", 8)
    for pid in [process.pid, *world.marked()]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(PATIENCE_S)
    resumed = world.muster("run", "--resume", *words)
    assert resumed.returncode == 0, resumed.stderr
    assert Counter(line["task"] for line in lines_of(world.work / "r.jsonl")) == Counter(range(1, 61))
    world.assert_nothing_left()


def test_a_killed_spawner_takes_the_fleet_along_and_leaves_a_resumable_run(world: World) -> None:
    words = ["-j", "2", "--results", "r.jsonl", "--shell", "sleep 0.1; echo {}", ":::", *map(str, range(30))]
    process = world.start("run", *words)
    wait_for_lines(world.work / "r.jsonl", 2)
    os.kill(world.pid_of("spawner"), signal.SIGKILL)
    lost = world.finish(process)
    assert lost.returncode == 1
    assert "was killed" in lost.stderr
    assert "--resume" in lost.stderr
    assert "Traceback" not in lost.stderr
    resumed = world.muster("run", "--resume", *words)
    assert resumed.returncode == 0, resumed.stderr
    assert Counter(line["task"] for line in lines_of(world.work / "r.jsonl")) == Counter(range(1, 31))
    world.assert_nothing_left()


def test_killed_workers_and_coordinator_cost_no_result_and_double_none(world: World) -> None:
    numbers = [str(n) for n in range(150)]
    process = world.start("run", "-j", "6", "--results", "r.jsonl", "--shell", "sleep 0.05; echo {}", ":::", *numbers)
    wait_for_lines(world.work / "r.jsonl", 5)
    dice = random.Random(7)
    for role in ("worker", "coordinator", "worker"):
        rows = [row for row in world.ps() if row["role"] == role and row["pid"]]
        if rows:
            os.kill(dice.choice(rows)["pid"], signal.SIGKILL)
    done = world.finish(process)
    assert done.returncode == 0, done.stderr
    assert Counter(line["task"] for line in lines_of(world.work / "r.jsonl")) == Counter(range(1, 151))
    assert sorted(done.stdout.splitlines()) == sorted(numbers)
    world.assert_nothing_left()


def test_a_second_run_of_the_same_name_or_results_is_refused(world: World) -> None:
    process = world.start("run", "--name", "one", "--results", "r.jsonl", "sleep", ":::", "0", "60")
    wait_for_lines(world.work / "r.jsonl", 1)
    same_name = world.muster("run", "--name", "one", "true", ":::", "a")
    assert same_name.returncode == 1
    assert "'one' is already running" in same_name.stderr
    for more in ([], ["--resume"]):
        same_file = world.muster("run", "--results", "r.jsonl", *more, "true", ":::", "a")
        assert same_file.returncode == 1
        assert "another run is writing" in same_file.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    world.finish(process)
    world.assert_nothing_left()


def test_two_runs_at_once_do_not_meet(world: World) -> None:
    both = [world.start("run", "-k", "echo", ":::", *map(str, range(20))) for _ in range(2)]
    for process in both:
        done = world.finish(process)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(n) for n in range(20)]
    world.assert_nothing_left()


def test_other_inputs_cannot_be_resumed(world: World) -> None:
    assert world.muster("run", "--results", "r.jsonl", "true", ":::", "a", "b").returncode == 0
    before = (world.work / "r.jsonl").read_bytes()
    refused = world.muster("run", "--results", "r.jsonl", "--resume", "true", ":::", "a", "x")
    assert refused.returncode == 2
    assert "input 2 was 'b' and is now 'x'" in refused.stderr
    assert (world.work / "r.jsonl").read_bytes() == before
    assert world.stores() == []


def test_a_detached_run_is_followed_to_its_end_and_its_status(world: World) -> None:
    started = world.muster(
        "run", "-d", "--name", "night", "-k", "--shell", "sleep 0.1; echo {}; test {} != 3", ":::", "1", "2", "3"
    )
    assert started.returncode == 0, started.stderr
    assert started.stdout == "night\n"
    followed = world.muster("attach", "night")
    assert followed.returncode == 1
    assert followed.stdout.split() == ["1", "2", "3"]
    assert "2 done, 1 failed" in followed.stderr
    world.assert_nothing_left()


def test_a_detached_run_that_cannot_start_says_so_in_front(world: World) -> None:
    refused = world.muster("run", "-d", "no-such-command", ":::", "a")
    assert refused.returncode == 2
    assert "no-such-command" in refused.stderr


def test_commands_get_an_empty_stdin_and_know_who_they_are(world: World) -> None:
    script = (
        "import os, sys; print(repr(sys.stdin.read()), *(os.environ['MUSTER_' + n] for n in sys.argv[1].split(',')))"
    )
    done = world.muster(
        "run", "--name", "who", "-j", "1", sys.executable, "-c", script, "FLEET,AGENT,TASK,ATTEMPT", ":::", "x"
    )
    assert done.stdout == "'' who w-1 1 1\n", done.stderr


def test_signals_before_the_fleet_is_up_leave_nothing(world: World) -> None:
    for delay_s in (0.05, 0.15, 0.25, 0.35):
        process = world.start("run", "-j", "4", "sleep", ":::", *(["99"] * 8))
        try:
            process.wait(delay_s)  # a moment within the start; which one does not matter
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        world.finish(process)
    world.assert_nothing_left()
