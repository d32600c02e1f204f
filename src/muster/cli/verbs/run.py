"""`muster run`: a command or a function over many inputs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import print_json, safe, say
from muster.core import limits
from muster.errors import MusterError
from muster.fleet import inputs as sources
from muster.fleet.durations import parse_duration
from muster.fleet.run_options import RunOptions, default_jobs, parse_env, parse_halt

HELP = """Run CMD once for each input, many at a time.

\b
  muster run -j 8 gzip -k {} ::: *.log
  find . -name '*.py' -print0 | muster run -0 wc -l
  muster run -j 50 -a prompts.txt --results out.jsonl claude -p {}
  muster run --handler package.module:function ::: a b c

Options stand before CMD; what follows CMD belongs to it. In CMD, {} (or {input}) is the input, {.} the input without its extension,
{/} its last path component, {//} its directory, {/.} its last component without extension, {#} the number of the task; without any of
them the input becomes the last argument. Inputs follow :::, or come from files (-a), or from standard input, one per line. CMD is run
directly, without a shell, with an empty standard input.

--resume goes on with an interrupted run: give it the same inputs and the same --results file. Tasks recorded as done are skipped;
failed ones are run again. Ctrl-C lets running tasks finish within the grace; a second one kills them. Either way the results so far are
complete.
"""


@click.command(
    "run",
    help=HELP,
    short_help="Run a command or a Python function over many inputs.",
    context_settings={"allow_interspersed_args": False},
)
@common(fleet=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] CMD [ARG]... [::: INPUT...]")
@click.option(
    "-j", "--jobs", type=int, envvar="MUSTER_JOBS", help="Agents, each working on one task at a time [default: cores]."
)
@click.option(
    "-a",
    "--arg-file",
    "files",
    multiple=True,
    metavar="FILE",
    help="Read inputs from FILE (- is standard input); may be repeated.",
)
@click.option("-0", "--null", is_flag=True, help="Inputs end in NUL bytes instead of newlines.")
@click.option(
    "--tasks",
    multiple=True,
    metavar="FILE",
    help='Read tasks from FILE, a JSON object per line: {"input": …} and, where wanted, priority, delay, after, timeout, retries, backoff.',
)
@click.option(
    "--handler", metavar="MODULE:FUNCTION", help="Call a Python function (sync or async) instead of a command."
)
@click.option("--shell", is_flag=True, help="Run CMD as a line of /bin/sh; inputs are quoted.")
@click.option(
    "--results", type=click.Path(path_type=Path), metavar="FILE", help="Write one JSON object per ended task to FILE."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write a summary as JSON to FILE.")
@click.option("--resume", is_flag=True, help="Go on with the run recorded in --results; failed tasks are run again.")
@click.option(
    "--retries", type=int, default=0, show_default=True, metavar="N", help="Try a failed task again, up to N times."
)
@click.option(
    "--timeout", metavar="DURATION", help="Kill a task (its whole process tree) after this long, e.g. 90s or 5m."
)
@click.option(
    "--halt",
    default="never",
    show_default=True,
    metavar="WHEN",
    help="Give up after failures: soon,fail=N or now,fail=N.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Run a coding CLI: claude, codex or gemini; the words behind the options are its own.",
)
@click.option("--prompt", metavar="TEXT", help="Prompt for --preset, with {} for the input [default: the input].")
@click.option(
    "--transcripts", type=click.Path(path_type=Path), metavar="DIR", help="Keep the event streams of --preset in DIR."
)
@click.option("--worktree", is_flag=True, help="A git worktree and branch for each task, made from the HEAD of --cwd.")
@click.option(
    "--worktree-keep",
    metavar="WHEN",
    help="Keep a done task's worktree: changed, always or never [default: changed]; implies --worktree.",
)
@click.option("--rate", metavar="RATE", help="Start at most so many tasks, over all agents, e.g. 100/1m or 5/s.")
@click.option(
    "--burst", type=int, metavar="N", help="Tasks of --rate that may start at once [default: a second's worth]."
)
@click.option("--limit", metavar="NAME", help="Name of that limit; alone, tasks that meet a vendor's limit pause all.")
@click.option(
    "--limited",
    "limited_pattern",
    metavar="REGEX",
    default="",
    help="A failure that says this on standard error met a vendor's limit (so does exit status 75).",
)
@click.option("--budget", metavar="BUDGET", help="Begin nothing more once so much is spent, e.g. 20USD or '2M tokens'.")
@click.option(
    "--proxy", is_flag=True, help="Send the tasks' API requests through a local proxy that counts, limits and retries."
)
@click.option("--upstream", multiple=True, metavar="NAME=URL", help="An API behind the proxy; implies --proxy.")
@click.option(
    "--key-from",
    multiple=True,
    metavar="NAME=env:VAR",
    help="The key of an API stays with the proxy; also NAME=file:PATH; implies --proxy.",
)
@click.option("--prices", metavar="FILE", help="Prices of models for --proxy [default: list prices].")
@click.option("-k", "--keep-order", is_flag=True, help="Print outputs in the order of the inputs.")
@click.option("--dry-run", is_flag=True, help="Print the quoted command lines, and run nothing.")
@click.option(
    "--agents-per-worker",
    type=int,
    metavar="N",
    help="Agents that share one process [default: 1; up to 5 for commands].",
)
@click.option(
    "--teams",
    type=int,
    metavar="N",
    help="Divide the agents into at most N teams, each with a coordinator below the root.",
)
@click.option(
    "--agents-per-team",
    type=int,
    metavar="N",
    help=f"Agents of a team; alone, it makes as many teams as are needed [default with --teams: as few as fit; "
    f"{limits.AGENTS_PER_TEAM} is a good size].",
)
@click.option(
    "--grace",
    default=f"{limits.GRACE_S:g}s",
    show_default=True,
    envvar="MUSTER_GRACE",
    help="Time for running tasks after Ctrl-C.",
)
@click.option("-d", "--detach", is_flag=True, help="Run in the background; follow it with `muster attach`.")
@click.option("--name", metavar="NAME", help="Name of the run [default: generated].")
@click.option(
    "--cwd", type=click.Path(path_type=Path), default=".", metavar="DIR", help="Directory the tasks start in."
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set a variable for the tasks; may be repeated.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--no-progress", is_flag=True, help="No progress, only the summary.")
def command(**given: Any) -> int:
    """See HELP."""
    options = _options(given)
    if given["dry_run"]:
        return _dry_run(options)
    if given["detach"]:
        return _detached(options)
    return _in_front(options)


def _options(given: dict[str, Any]) -> RunOptions:
    from muster.cli.main import is_debug

    words, behind = sources.split_words(given["words"])
    results, report = given["results"], given["report"]
    return RunOptions(
        command=words,
        inputs=sources.choose(behind, given["files"], null=given["null"], tasks=given["tasks"]),
        handler=given["handler"],
        shell=given["shell"],
        jobs=given["jobs"] if given["jobs"] is not None else default_jobs(),
        results=results.resolve() if results is not None else None,
        report=report.resolve() if report is not None else None,
        resume=given["resume"],
        retries=given["retries"],
        timeout_s=parse_duration(given["timeout"], "--timeout") if given["timeout"] is not None else None,
        halt=parse_halt(given["halt"]),
        keep_order=given["keep_order"],
        agents_per_worker=given["agents_per_worker"],
        teams=given["teams"],
        agents_per_team=given["agents_per_team"],
        name=given["name"],
        store_root=given["store"],
        cwd=given["cwd"].resolve(),
        env=parse_env(given["env"]),
        grace_s=parse_duration(given["grace"], "--grace"),
        debug=is_debug(),
        quiet=given["quiet"],
        progress=not (given["quiet"] or given["no_progress"] or given["as_json"]),
        as_json=given["as_json"],
        preset=given["preset"],
        prompt=given["prompt"],
        transcripts=given["transcripts"].resolve() if given["transcripts"] is not None else None,
        limit=given["limit"],
        rate=given["rate"],
        burst=given["burst"],
        proxy=_proxy(given),
        budget=given["budget"],
        limited_pattern=given["limited_pattern"],
        worktree=given["worktree_keep"] or ("changed" if given["worktree"] else None),
    )


def _proxy(given: dict[str, Any]) -> Any:
    if not (given["proxy"] or given["upstream"] or given["key_from"]):
        return None
    from muster.fleet.proxying import table_of

    prices = None if given["prices"] is None else str(Path(given["prices"]).resolve())
    return table_of(given["upstream"], given["key_from"], prices)


def _dry_run(options: RunOptions) -> int:
    options.check()
    for number, text, line in options.command_lines():
        if options.as_json:
            print_json({"number": number, "input": text, "command": line})
        else:
            sys.stdout.write(line + "\n")
    return 0


def _in_front(options: RunOptions) -> int:
    from muster.fleet import run

    started_at = time.monotonic()
    prepared = run.prepare(options)
    spawner = run.start(prepared)
    # Forked: from here on imports, threads and event loops cost the fleet nothing.
    from muster.fleet.display import Display

    _say_resumed(prepared, options)
    outcome = run.follow(prepared, spawner, Display.fitting(wanted=options.progress))
    _say_end(outcome, prepared, options, started_at)
    return outcome.exit_status


def _say_resumed(prepared: Any, options: RunOptions) -> None:
    recorded = prepared.recorded
    if options.quiet or recorded is None:
        return
    if prepared.killed:
        say(f"muster: ended {len(prepared.killed)} processes that the interrupted run had left")
    if recorded.torn_bytes:
        say(f"muster: cut a torn line of {recorded.torn_bytes} bytes off {options.results}; its task runs again")
    again = len(recorded.inputs) - len(recorded.done)
    failed = f", {again:,} failed ones run again" if again else ""
    say(f"muster: resuming: {len(recorded.done):,} tasks are done{failed}")


def _say_end(outcome: Any, prepared: Any, options: RunOptions, started_at: float) -> None:
    from muster.cli.output import report_error
    from muster.fleet import run

    if outcome.error is not None and (options.as_json or not outcome.error_was_said):
        report_error(outcome.error, as_json=options.as_json)
    if options.quiet or options.as_json:
        return
    for line in run.summary(outcome, started_at):
        say(safe(line))
    if outcome.ended is not None and outcome.ended.reason == "complete" and prepared.store.exists():
        say(f"muster: messages in {prepared.name} are unread, so its store was kept; see `muster doctor`")
    if options.results is not None and (outcome.ended is None or outcome.ended.reason != "complete"):
        say(f"muster: go on with --resume --results {options.results}")


def _detached(options: RunOptions) -> int:
    from muster.fleet import detached

    words = detached.detach(lambda report: _behind(options, report), keep_stdin="-" in options.inputs.files)
    if "error" in words:
        error = MusterError(words["error"]["message"])
        error.exit_status = int(words.get("exit_status", 1))  # type: ignore[misc]
        error.code = words["error"]["code"]  # type: ignore[misc]
        raise error
    if options.as_json:
        print_json(words)
    else:
        sys.stdout.write(f"{words['fleet']}\n")
        if not options.quiet:
            sys.stderr.write(f"muster: running in the background; follow it with: muster attach {words['fleet']}\n")
    return 0


def _behind(options: RunOptions, report: Callable[[dict[str, Any]], None]) -> int:
    """The background process of a detached run."""
    import msgspec

    from muster.fleet import detached, run

    started_at = time.monotonic()
    try:
        prepared = run.prepare(options)
        try:
            record = detached.Record.make(prepared.name, options.store_root)
            record.redirect()
        except BaseException:
            prepared.discard()
            raise
        spawner = run.start(prepared)
    except MusterError as error:
        report({"error": error.as_dict(), "exit_status": error.exit_status})
        return error.exit_status
    report({"fleet": prepared.name, "store": str(prepared.store), "output": str(record.directory)})
    _say_resumed(prepared, options)
    outcome = run.follow(prepared, spawner, detached.FileDisplay(record))
    _say_end(outcome, prepared, options, started_at)
    sys.stdout.flush()
    sys.stderr.flush()
    ended = {"exit_status": outcome.exit_status}
    if outcome.ended is not None:
        ended.update(msgspec.to_builtins(outcome.ended), exit_status=outcome.exit_status)
    record.write("ended.json", msgspec.json.encode(ended))
    return outcome.exit_status
