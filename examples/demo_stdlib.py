"""The demo: 50 agents, one process each, read Python's standard library; three of them are killed on the way; nothing is lost.

    python examples/demo_stdlib.py            (or: make demo)

Every .py file is a task. Three workers get SIGKILL while they hold one. At the end the results are added up, one process does the
same work alone, and the two have to be equal field by field. Exit status 0 means that they were and that every promise was kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stdlib_analysis as work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo_display import Line
    from demo_kills import Kill

    from muster.fleet.client import Outcome

AGENTS = 50
#: Shares of the tasks that are done when a worker is killed.
KILL_AT = (0.05, 0.20, 0.35)
#: The work begins at the latest after this long, whoever is ready by then.
READY_PATIENCE_S = 20.0
HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "demo"


@dataclass
class Story:
    """What happened in the fleet: its outcome, its recorded results and the kills, and what was found afterwards."""

    outcome: Outcome
    lines: list[dict[str, Any]]
    report: dict[str, Any]
    kills: list[Kill]
    left_behind: list[str]


def main() -> int:
    """Run the demo; the exit status."""
    os.environ["MUSTER_STARTED_UNIX_S"] = f"{time.time():.6f}"  # ready is counted from here
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-j", "--agents", type=int, default=AGENTS, help=f"agents, one process each (default {AGENTS})")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder for report.json and results.jsonl")
    given = parser.parse_args()
    files = work.library_files()
    given.out.mkdir(parents=True, exist_ok=True)
    story = run_fleet(files, given.agents, given.out)
    if story.outcome.exit_status >= 128:
        print("demo: interrupted", file=sys.stderr)
        return story.outcome.exit_status
    print("demo: the same work again, in one process alone", file=sys.stderr, flush=True)
    began = time.perf_counter()
    reference = {path: work.analyse(path) for path in files}
    alone_s = time.perf_counter() - began
    return judge(files, story, reference, alone_s, given.out / "report.json")


def run_fleet(files: dict[str, int], agents: int, out: Path) -> Story:
    """Let the fleet do the work, and kill three of its workers."""
    from muster.core.spec import roster
    from muster.fleet import run
    from muster.fleet.inputs import Inputs
    from muster.fleet.run_options import RunOptions

    results, report = out / "results.jsonl", out / "report.json"
    for old in (results, report):
        old.unlink(missing_ok=True)
    options = RunOptions(
        command=(),
        handler="stdlib_analysis:analyse",
        inputs=Inputs(words=tuple(files)),
        jobs=agents,
        results=results,
        report=report,
        cwd=HERE,
    )
    prepared = run.prepare(options)
    spawner = run.start(prepared)
    # The fleet has been forked: threads, event loops and what draws the table belong to this process alone.
    from demo_display import DemoDisplay
    from demo_kills import Killer, Scene

    names = dict(enumerate(files, 1))
    ids = roster(prepared.spec)
    weights = {number: files[path] for number, path in names.items()}
    killer = Killer(Scene(prepared.store, spawner.pid, ids, results, weights), KILL_AT)
    display = DemoDisplay(prepared.store, ids, lambda number: names.get(number, "?"), killer)
    prepared.rest = when_ready(prepared.store, ids, prepared.rest)
    display.say(f"{len(files)} files of Python {platform.python_version()}'s standard library for {agents} agents")
    killer.start()
    try:
        outcome = run.follow(prepared, spawner, display)
    finally:
        killer.over.set()
        killer.join(5.0)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    said = json.loads(report.read_text()) if report.exists() else {}
    return Story(outcome, lines, said, killer.kills, leftovers(prepared.store, prepared.spec.store_id))


def when_ready(store: Path, agents: list[str], inputs: Iterator[list[str]]) -> Iterator[list[str]]:
    """The inputs, held back until every agent is ready: so the figure is the time to start a fleet, not to share cores with its work."""
    from muster.agent.status import read_status

    deadline = time.monotonic() + READY_PATIENCE_S
    while time.monotonic() < deadline:
        pages = [read_status(store, agent) for agent in agents]
        if all(page is not None and page.state == "ready" for page in pages):
            break
        time.sleep(0.02)
    yield from inputs


def leftovers(store: Path, store_id: str) -> list[str]:
    """What is left of the fleet, which should be nothing: its store, its processes and theirs."""
    from muster.supervise.tree import find_marked

    found = [str(store)] if store.exists() else []
    return found + [f"process {pid}" for pid, _started in find_marked(store_id)]


def judge(files: dict[str, int], story: Story, reference: dict[str, Any], alone_s: float, report_path: Path) -> int:
    """Compare, write the report, print the summary; the exit status."""
    from demo_display import print_summary

    answers = {line["value"]["path"]: line["value"] for line in story.lines if line["outcome"] == "done"}
    added, wanted = work.totals(answers.values()), work.totals(reference.values())
    different = [path for path in files if answers.get(path) != reference[path]]
    is_equal = not different and added == wanted
    lines = summary_lines(files, story, added, alone_s)
    what = "every file and the totals equal those of one process that did it alone"
    lines.insert(
        2,
        _line("equal", what if is_equal else f"{len(different)} files differ: {', '.join(different[:3])}", ok=is_equal),
    )
    good = story.outcome.exit_status == 0 and all(line.ok is not False for line in lines)
    told = {
        **story.report,
        "library": added,
        "set_sha256": work.fingerprint(files),
        "equal_to_reference": is_equal,
        "kills": [{"agent": kill.agent, "task": kill.task, "attempt": kill.attempt} for kill in story.kills],
        "single_process_s": round(alone_s, 3),
        "left_behind": story.left_behind,
    }
    report_path.write_text(json.dumps(told, indent=2) + "\n")
    verdict = "All promises kept." if good else "NOT all promises were kept; see the lines marked ✘."
    if story.outcome.error is not None:
        verdict += f" {story.outcome.error}"
    print_summary(
        f"muster demo: {story.report.get('agents', '?')} agents read Python {platform.python_version()}'s standard library",
        lines,
        f"{verdict} Report: {os.path.relpath(report_path)}",
        good=good,
    )
    return 0 if good else 1


def summary_lines(files: dict[str, int], story: Story, added: dict[str, Any], alone_s: float) -> list[Line]:
    """The summary, promises first."""
    report, latency, rtt = story.report, story.report.get("task_latency_ms", {}), story.report.get("message_rtt_ms", {})
    recorded = {line["task"]: line["attempt"] for line in story.lines}
    hits = [kill for kill in story.kills if recorded.get(kill.task, 0) > kill.attempt]
    wanted = len(KILL_AT)
    is_delivered = (
        len(recorded) == len(story.lines) == len(files) == report.get("done") == report.get("tasks")
        and report.get("delivered_ratio") == 1.0
        and report.get("duplicates") == report.get("failed") == 0
    )
    is_recovered = len(hits) >= wanted and report.get("reassigned", 0) >= wanted and report.get("restarts", 0) >= wanted
    longest = added["longest_function"] or {"path": "?", "name": "?", "lines": 0}
    kept = f"{len(hits)} workers SIGKILLed at work: {', '.join(kill.agent for kill in hits) or 'none'}"
    return [
        _line(
            "delivered",
            f"{len(recorded)}/{len(files)} tasks, {report.get('duplicates')} twice, {report.get('failed')} failed",
            ok=is_delivered,
        ),
        _line(
            "recovered",
            f"{kept}; {report.get('restarts')} restarted, {report.get('reassigned')} tasks reassigned",
            ok=is_recovered,
        ),
        _line("left behind", ", ".join(story.left_behind) or "nothing: no process, no file", ok=not story.left_behind),
        _line("ready", f"{report.get('agents')} agents, one process each, after {_seconds(report.get('ready_s'))}"),
        _line("duration", f"{_seconds(report.get('duration_s'))}; one process alone needed {alone_s:.1f} s"),
        _line(
            "task latency", f"p50 {_ms(latency.get('p50'))}, p99 {_ms(latency.get('p99'))}, from assigned to recorded"
        ),
        _line("message", f"round trip p50 {_ms(rtt.get('p50'))}, p99 {_ms(rtt.get('p99'))}"),
        _line("memory", f"{report.get('pss_mb_per_agent') or '?'} MB per agent (PSS)"),
        _line(
            "library",
            f"{added['lines']:,} lines, {added['functions']:,} functions, {added['classes']:,} classes, {added['imports']:,} imports",
        ),
        _line(
            "longest",
            f"{longest['name']}() in {longest['path']}, {longest['lines']} lines; {len(added['unparsable'])} files do not parse",
        ),
        _line(
            "the set", f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB, sha256 {work.fingerprint(files)[:16]}…"
        ),
    ]


def _line(name: str, text: str, *, ok: bool | None = None) -> Line:
    from demo_display import Line

    return Line(name, text, ok)


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f} s"


def _ms(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
