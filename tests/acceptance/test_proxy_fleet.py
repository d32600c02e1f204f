"""Fleets whose commands reach their APIs through the proxy: real processes, a real HTTP server that plays the vendor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.proxy import vendor as play
from tests.proxy.vendor import Vendor

from muster.limit.proxy import life
from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place

KEY = "sk-the-fleets-own-key-0123456789"
#: Asks once and prints what came; a cut connection or a refusal is an error. Its environment must not hold the key.
ASK = """
import json, os, sys, urllib.request
assert not any("sk-the-fleets" in value for value in os.environ.values()), "the key is in the environment"
body = json.dumps({"stream": sys.argv[1] == "stream"}).encode()
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", data=body)
try:
    with urllib.request.urlopen(request) as answer:
        while piece := answer.read(64):  # by lines, this client would take a cut for the end
            print(piece.decode(), end="", flush=True)
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
"""


class Stage:
    """The vendor in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.vendor = Vendor()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self.vendor.__aenter__())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def close(self) -> None:
        self._do(self.vendor.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def words(stage: Stage, place: Place, *more: str) -> list[str]:
    return [
        "run", "--upstream", f"anthropic={stage.vendor.url}", "--key-from", "anthropic=env:THE_KEY", "--name", "p",
        "--results", str(place.work / "results.jsonl"), "--report", str(place.work / "report.json"), *more,
    ]  # fmt: skip


def results(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place.work / "results.jsonl").read_text().splitlines()]


def report(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.work / "report.json").read_text())
    return found


def store_of(place: Place) -> Path:
    return next(path.parent for path in place.root.rglob("proxy") if path.is_file())


def life_of(place: Place) -> life.Life:
    return eventually(lambda: life.read(store_of(place)), timeout_s=PATIENCE_S)  # type: ignore[return-value]


def start(place: Place, stage: Stage, *more: str) -> Muster:
    return place.start(*words(stage, place, *more), env={"THE_KEY": KEY})


def test_requests_are_limited_retried_counted_and_priced_by_agent_and_the_key_stays(place: Place, stage: Stage) -> None:
    stage.vendor.script.append(play.refuse(429, retry_after="0.5"))
    muster = start(place, stage, "-j", "3", sys.executable, "-c", ASK, ":::", *["once"] * 6)
    assert muster.end() == 0, muster.errors
    assert {asked.headers["x-api-key"] for asked in stage.vendor.asked} == {KEY}
    told = report(place)["proxy"]
    total = {name: sum(row[name] for row in told["agents"]) for name in ("requests", "retried", "tokens", "cost_usd")}
    assert (total["requests"], total["retried"], total["tokens"]) == (7, 1, 6 * 1250)
    assert total["cost_usd"] == pytest.approx(6 * 0.00381)
    assert report(place)["attempts_failed"] == 0


def test_a_killed_proxy_cuts_its_clients_and_their_tasks_run_again_uncharged(place: Place, stage: Stage) -> None:
    stage.vendor.script += [play.message_stream(10_000, pause_s=0.02)] * 2
    muster = start(place, stage, "-j", "2", sys.executable, "-c", ASK, ":::", "stream", "stream")
    eventually(lambda: len(stage.vendor.asked) == 2, timeout_s=PATIENCE_S)
    first = life_of(place)
    os.kill(first.pid, signal.SIGKILL)
    assert muster.end() == 0, muster.errors
    told = report(place)
    assert (told["done"], told["failed"], told["attempts_failed"]) == (2, 0, 0)
    assert told["proxy"]["deaths"] == 1
    assert told["proxy"]["port"] == first.port, "the next one listens where the last one did"
    assert len(stage.vendor.asked) == 4


def test_a_command_that_fails_beside_a_living_proxy_is_charged(place: Place, stage: Stage) -> None:
    stage.vendor.script.append(play.plain(400, {"error": {"message": "no"}}))
    assert start(place, stage, "-j", "1", sys.executable, "-c", ASK, ":::", "once").end() == 1
    assert report(place)["attempts_failed"] == 1


def test_a_budget_that_is_used_up_refuses_requests_in_words(place: Place, stage: Stage) -> None:
    twice = ASK.replace("try:", "urllib.request.urlopen(request).read()\nimport time; time.sleep(1)\ntry:", 1)
    muster = start(place, stage, "--budget", "1000 tokens", "-j", "1", sys.executable, "-c", twice, ":::", "a", "b")
    assert muster.end() == 3, muster.errors
    assert len(stage.vendor.asked) == 1
    assert "limit.budget" in muster.errors
    assert "the budget of 1,000 tokens is used up" in muster.errors


def test_the_key_is_in_no_argument_specification_log_or_status(place: Place, stage: Stage) -> None:
    stage.vendor.script.append(play.message_stream(10_000, pause_s=0.02))
    muster = start(place, stage, "-j", "1", sys.executable, "-c", ASK, ":::", "stream")
    eventually(lambda: len(stage.vendor.asked) == 1, timeout_s=PATIENCE_S)
    store = store_of(place)
    holders = [path for path in store.rglob("*") if path.is_file() and KEY.encode() in _bytes_of(path)]
    assert [str(path.relative_to(store)) for path in holders] == ["keys/proxy-anthropic"]
    assert holders[0].stat().st_mode & 0o077 == 0
    life_of(place)
    arguments = [text for path in Path("/proc").glob("[0-9]*/cmdline") if KEY.encode() in (text := _bytes_of(path))]
    assert not arguments
    os.kill(muster.process.pid, signal.SIGINT)
    os.kill(muster.process.pid, signal.SIGINT)
    muster.end()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
