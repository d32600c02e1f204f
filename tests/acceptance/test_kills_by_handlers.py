"""Handlers that raise, exit, end their process, block or return what cannot be sent: each is told, the rest of the run is unharmed."""

from __future__ import annotations

import json
from typing import Any

from .place import Muster, Place, assert_recorded_once, lines_of

HANDLERS = """
import os, signal, sys, threading, time


def work(text):
    kind = text.partition("-")[0]
    if kind == "raise":
        raise LookupError("nothing here")
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "end":
        os._exit(9)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "block":
        time.sleep(600)
    if kind == "socket":
        return threading.Lock()
    if kind == "large":
        return "x" * (2 << 20)
    if kind == "unshowable":
        raise Unshowable
    return {"got": text}


class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


async def wait_for_ever(text):
    import asyncio

    if text.startswith("block"):
        await asyncio.Event().wait()
    return text.upper()


def dies_twice(text):
    with open(text, "a") as journal:
        journal.write("started\\n")
    with open(text) as journal:
        starts = len(journal.read().split())
    if starts <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive at last"
"""


def run_handler(
    place: Place, function: str, *options: str, inputs: list[str]
) -> tuple[Muster, dict[str, dict[str, Any]]]:
    """Run it; what was recorded of each input."""
    place.script("handlers.py", HANDLERS)
    results = place.work / "results.jsonl"
    words = ["--results", str(results), "--handler", f"handlers:{function}", *options, ":::", *inputs]
    run = place.carry_out("run", *words)
    lines = lines_of(results)
    assert sorted(line["input"] for line in lines) == sorted(inputs), run.errors
    assert "Traceback" not in run.errors
    place.assert_nothing_is_left()
    return run, {line["input"]: line for line in lines}


GOOD = [f"good-{number}" for number in range(40)]


def test_handlers_that_fail_are_told_apart_and_the_rest_is_unharmed(place: Place) -> None:
    bad = ["raise", "exit", "interrupt", "socket", "large", "unshowable"]
    run, told = run_handler(place, "work", "-j", "4", inputs=[*bad, *GOOD])
    assert run.process.returncode == 1
    for name in GOOD:
        assert (told[name]["outcome"], told[name]["value"]) == ("done", {"got": name})
    for name in bad:
        assert (told[name]["outcome"], told[name]["attempt"]) == ("failed", 1)
    errors = {name: told[name]["error"] for name in bad}
    assert (errors["raise"]["type"], errors["raise"]["message"]) == ("LookupError", "nothing here")
    assert 'raise LookupError("nothing here")' in errors["raise"]["traceback"]
    assert (errors["exit"]["type"], errors["exit"]["message"]) == ("SystemExit", "3")
    assert errors["interrupt"]["type"] == "KeyboardInterrupt"
    assert errors["socket"]["code"] == "usage.body_encoding"
    assert errors["large"]["code"] == "usage.body_too_large"
    assert errors["unshowable"]["type"] == "Unshowable"


def test_a_handler_that_ends_its_worker_is_given_up_with_its_evidence_after_its_last_allowed_death(
    place: Place,
) -> None:
    report = place.work / "report.json"
    options = ("-j", "4", "--report", str(report))
    run, told = run_handler(place, "work", *options, inputs=["end", *GOOD])
    assert run.process.returncode == 1
    assert {told[name]["outcome"] for name in GOOD} == {"done"}
    dead = told["end"]
    assert (dead["outcome"], dead["error"]["code"], dead["attempt"]) == ("dead", "task.dead", 5)
    assert len(dead["evidence"]) == 5
    assert all("exited with status 9" in line for line in dead["evidence"])
    figures = json.loads(report.read_bytes())
    assert (figures["done"], figures["failed"], figures["dead_tasks"], figures["worker_deaths"]) == (40, 1, 1, 5)


def test_a_handler_that_crashes_its_worker_is_told_by_the_signal(place: Place) -> None:
    run, told = run_handler(place, "work", "-j", "2", inputs=["segfault", *GOOD[:10]])
    assert run.process.returncode == 1
    assert told["segfault"]["outcome"] == "dead"
    assert all("signal 11" in line for line in told["segfault"]["evidence"])
    assert {told[name]["outcome"] for name in GOOD[:10]} == {"done"}


def test_a_handler_whose_worker_dies_twice_is_done_by_the_third(place: Place) -> None:
    run, told = run_handler(place, "dies_twice", "-j", "2", inputs=["journal"])
    assert run.process.returncode == 0
    assert (told["journal"]["value"], told["journal"]["attempt"]) == ("alive at last", 3)
    assert (place.work / "journal").read_text().split() == ["started"] * 3


def test_a_sync_handler_that_blocks_beyond_its_time_is_ended_with_its_worker(place: Place) -> None:
    run, told = run_handler(place, "work", "-j", "3", "--timeout", "1s", inputs=["block-1", "block-2", *GOOD])
    assert run.process.returncode == 1
    for name in ("block-1", "block-2"):
        assert (told[name]["outcome"], told[name]["attempt"]) == ("timeout", 1)
        assert "did not end in time" in told[name]["error"]["message"]
    assert {told[name]["outcome"] for name in GOOD} == {"done"}


def test_an_async_handler_that_blocks_beyond_its_time_is_cancelled(place: Place) -> None:
    run, told = run_handler(place, "wait_for_ever", "-j", "2", "--timeout", "1s", inputs=["block", *GOOD[:10]])
    assert run.process.returncode == 1
    assert told["block"]["outcome"] == "timeout"
    assert {told[name]["value"] for name in GOOD[:10]} == {name.upper() for name in GOOD[:10]}


def test_handlers_that_share_a_worker_survive_a_neighbour_that_ends_it(place: Place) -> None:
    """Whoever shares a worker with what kills it runs again elsewhere or later, and is recorded once."""
    options = ("-j", "4", "--agents-per-worker", "2")
    run, told = run_handler(place, "work", *options, inputs=["end", *GOOD])
    assert run.process.returncode == 1
    assert told["end"]["outcome"] == "dead"
    assert {told[name]["outcome"] for name in GOOD} == {"done"}


def test_failed_handlers_run_again_with_resume(place: Place) -> None:
    inputs = ["raise", *GOOD[:5]]
    run, _ = run_handler(place, "work", "-j", "2", inputs=inputs)
    assert run.process.returncode == 1
    place.script("handlers.py", HANDLERS.replace('raise LookupError("nothing here")', 'return "mended"'))
    results = place.work / "results.jsonl"
    words = ["--results", str(results), "--handler", "handlers:work", "-j", "2", ":::", *inputs]
    resumed = place.carry_out("run", "--resume", *words)
    assert resumed.process.returncode == 0, resumed.errors
    assert assert_recorded_once(results, inputs)[-1]["value"] == "mended"
