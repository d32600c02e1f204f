"""Limits that hold for the whole fleet: real processes, the starts measured by the commands themselves, a real server that refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from muster.limit.limiter import SPEND_BY_NS
from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place

#: Says when it began, on the clock that all processes of the machine share; a start costs the machine little.
STAMP = "import os,time; os.write(1, b'%d\\n' % time.monotonic_ns())"
#: Fetches an address; 429 ends with status 75 and the server's own words.
FETCH = """
import sys, urllib.error, urllib.request
try:
    sys.stdout.write(urllib.request.urlopen(sys.argv[1] + "/" + sys.argv[2]).read().decode() + "\\n")
except urllib.error.HTTPError as error:
    sys.stderr.write(f"HTTP {error.code}, retry-after: {error.headers['retry-after']}\\n")
    sys.exit(75)
"""
#: From the admission in the worker to the first words of its command, at most, on a machine that is shared.
START_NS = 1_500_000_000


def excess(stamps_ns: list[int], per_s: float, burst: int, slack_ns: int) -> float:
    """The most that any window of starts holds beyond rate·(T + slack) + burst; at most 0 is well."""
    stamps = sorted(stamps_ns)
    return max(
        (last - first + 1) - per_s * (stamps[last] - stamps[first] + slack_ns) / 1e9 - burst
        for first in range(len(stamps))
        for last in range(first, len(stamps))
    )


def goes_on(run: Muster, seen: int) -> None:
    """Wait until it has said more than that, or has ended."""
    eventually(lambda: len(run.output) > seen or run.process.poll() is not None, PATIENCE_S)


def stamps_of(muster: Muster) -> list[int]:
    return [int(line) for line in muster.output.split()]


def stamping(place: Place, tasks: int, *options: str) -> Muster:
    words = ("run", *options, "-a", place.inputs(map(str, range(tasks))), sys.executable, "-IS", "-c", STAMP)
    return place.start(*words)


def test_fifty_agents_start_no_more_than_the_rate_in_any_window_and_use_it(place: Place) -> None:
    run = stamping(place, 200, "-j", "50", "--rate", "20/s", "--burst", "5", "--agents-per-worker", "10")
    assert run.end(60) == 0, run.errors
    stamps = stamps_of(run)
    assert len(stamps) == 200
    assert excess(stamps, 20, 5, SPEND_BY_NS + START_NS) <= 0
    spent_s = (max(stamps) - min(stamps)) / 1e9
    assert spent_s >= (200 - 5) / 20 - 0.2, "it was faster than its rate"


def test_kills_of_workers_and_coordinators_mint_no_credit(place: Place) -> None:
    run = stamping(place, 160, "-j", "10", "--rate", "20/s", "--burst", "5")
    rng = random.Random(5)
    for _ in range(6):
        eventually(lambda: len(run.output) > 0, PATIENCE_S)
        victim = rng.choice([run.coordinator(), *run.workers().values()])
        if victim is None or run.process.poll() is not None:
            break
        os.kill(victim, signal.SIGKILL)
        goes_on(run, len(run.output))
    assert run.end(90) == 0, run.errors
    stamps = stamps_of(run)
    assert len(stamps) >= 160
    assert excess(stamps, 20, 5, SPEND_BY_NS + START_NS) <= 0


class Vendor:
    """A server that answers, and for a while answers 429 with the time at which it opens again."""

    def __init__(self, *, refuse_after: int, shut_s: float) -> None:
        self.times: list[tuple[float, int]] = []
        self.lock = threading.Lock()
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with vendor.lock:
                    now = time.monotonic()
                    answered = sum(status == 200 for _, status in vendor.times)
                    if vendor.opens_at is None and answered >= refuse_after:
                        vendor.opens_at = now + shut_s
                    status = 429 if vendor.opens_at is not None and now < vendor.opens_at else 200
                    vendor.times.append((now, status))
                self.send_response(status)
                if status == 429 and vendor.opens_at is not None:
                    self.send_header("retry-after", f"{vendor.opens_at - now:.3f}")
                body = self.path.encode()
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.opens_at: float | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    vendor = Vendor(refuse_after=10, shut_s=4.0)
    yield vendor
    vendor.close()


def test_a_server_that_says_429_hears_nothing_until_its_reset_then_one_then_the_rate(
    place: Place, vendor: Vendor
) -> None:
    results = place.work / "results.jsonl"
    fetch = place.script("fetch.py", FETCH)
    run = place.start(
        "run", "--name", "fetching", "-j", "10", "--limit", "api", "--rate", "20/s", "--burst", "2", "--halt", "now,fail=1",
        "--results", str(results), "-a", place.inputs(map(str, range(60))), sys.executable, "-IS", fetch, vendor.url, "{}",
    )  # fmt: skip
    eventually(lambda: vendor.opens_at is not None, PATIENCE_S)
    told = eventually(lambda: paused(place), PATIENCE_S) or {}
    assert told["limit"] == "api"
    assert told["until_unix_s"] > time.time()
    assert run.end(60) == 0, run.errors
    assert sorted(run.output.decode().split()) == sorted(f"/{n}" for n in range(60))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["outcome"] for line in lines} == {"done"}
    assert vendor.opens_at is not None
    shut_at = vendor.opens_at - 4.0
    refused = [at for at, status in vendor.times if status == 429]
    # What was on its way when the first refusal came, and nothing afterwards.
    assert all(at - shut_at < 1.5 for at in refused), [at - shut_at for at in refused]
    assert len(refused) <= 10
    after = sorted(at for at, status in vendor.times if at >= vendor.opens_at)
    assert after[0] >= vendor.opens_at
    assert excess([int(at * 1e9) for at in after], 20, 2, SPEND_BY_NS + START_NS) <= 0


def paused(place: Place) -> dict[str, Any] | None:
    told = place.carry_out("status", "--json", "fetching")
    limits = json.loads(told.output or b"{}").get("limits") or []
    return next((limit for limit in limits if limit["until_unix_s"] is not None), None)


def test_kinds_share_a_limit_by_their_weights(place: Place) -> None:
    stamps = place.work / "stamps"
    stamps.mkdir()
    note = place.script("note.py", f"import sys; open({str(stamps)!r} + '/' + sys.argv[1], 'a').write('.')")
    kinds = "".join(
        f'[agents.{name}]\ncount = 4\ncommand = [{sys.executable!r}, "-IS", {note!r}, "{name}", "{{}}"]\nlimit = "api"\nweight = {weight}\n'
        for name, weight in (("heavy", 3), ("light", 1))
    )
    place.script("fleet.toml", f'[fleet]\nname = "shares"\n[limits.api]\nrequests = "20/1s"\nburst = 1\n{kinds}')
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        submit(place, {"heavy": 260, "light": 260})
        eventually(lambda: size(stamps / "heavy") + size(stamps / "light") >= 240, 60.0)
        heavy, light = size(stamps / "heavy"), size(stamps / "light")
        assert heavy / (heavy + light) == pytest.approx(0.75, abs=0.05)
    finally:
        place.carry_out("down", "--now")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def submit(place: Place, counts: dict[str, int]) -> None:
    """Tasks for each kind, taken in turns."""
    script = place.script(
        "submit.py",
        "import asyncio, json, sys, muster\n"
        "async def main():\n"
        "    async with muster.join('operator') as me:\n"
        "        for kind, count in json.loads(sys.argv[1]).items():\n"
        "            for n in range(count):\n"
        "                await me.send('coordinator', f'{kind} {n}', type=f'task@{kind}')\n"
        "asyncio.run(main())\n",
    )
    import subprocess

    subprocess.run([sys.executable, script, json.dumps(counts)], cwd=place.work, env=place.env, check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[limits.api]\nrequests = "fast"', "is not a rate such as 100/1m"),
        ('[limits.api]\nrequests = "0/1m"', "lets nothing pass"),
        ("[limits.api]\nburst = 3", "a burst needs the rate of requests"),
        ('[limits.api]\nrequsts = "1/s"', "did you mean 'requests'?"),
        ("[limits.api]\nconcurrency = 0", "concurrency must be between 1 and"),
        ('[limits."a b"]\nrequests = "1/s"', "is not 1 to 64 of the characters"),
        ('[agents.a]\ncommand = ["true"]\nlimit = "api"', "there is no limit 'api'; there are: none"),
        ('[agents.a]\ncommand = ["true"]\nweight = 0', "weight must be between"),
        ('[agents.a]\npreset = "cluade"', "there is no preset 'cluade'"),
        ('[agents.a]\npreset = "claude"\ncommand = ["true"]', "a preset is the command"),
        ('[agents.a]\ncommand = ["true"]\nprompt = "{}"', "belongs to a preset"),
        ('[agents.a]\ncommand = ["true"]\nworktree = "soon"', "none of true, changed, always and never"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    from muster.errors import ConfigError, InvalidNameError
    from muster.fleet import config

    file = tmp_path / "fleet.toml"
    file.write_text(f'[fleet]\nname = "x"\n{text}\n')
    with pytest.raises((ConfigError, InvalidNameError)) as caught:
        config.load(file, environ={})
    assert says in caught.value.message
    assert "\n" not in caught.value.message
