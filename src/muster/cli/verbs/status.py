"""`muster status`: how a fleet is."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from muster.cli.main import common
from muster.cli.output import columns, paint, print_json, safe

#: Agents listed without --all; those that are not well are always among them.
LISTED_MAX = 20
COLORS = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "gone": "red",
    "quarantined": "red",
    "crashed": "red",
    "dead": "red",
    "unreachable": "red",
    "timeout": "red",
    "failed": "red",
}
HEAD = ("AGENT", "TEAM", "STATE", "HEALTH", "PID", "TASK", "DONE", "FAILED", "INBOX", "RESTARTS", "SEEN", "MEMORY")
TEAM_HEAD = ("TEAM", "KIND", "STATE", "HEALTH", "PID", "READY", "TASKS", "DONE", "RESTARTS")
#: Columns that are left out while nobody has anything in them.
OPTIONAL = frozenset({"TEAM", "TASK", "FAILED", "INBOX", "RESTARTS"})


@click.command("status", short_help="Show how a fleet is: agents, tasks, health.")
@common()
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="List every agent.")
@click.option(
    "--timeout",
    default="3s",
    show_default=True,
    metavar="DURATION",
    help="How long the coordinator may take to answer.",
)
def command(
    name: str | None, as_json: bool, store: str | None, fleet: str | None, everybody: bool, timeout: str
) -> int:
    """Show what the coordinator of a fleet says, checked against its processes.

    If the coordinator cannot be asked, that is said, with what the agents' status pages and the kernel tell. Exit status 0 if the fleet
    is up, its coordinator answers and it is not unhealthy, else 1.
    """
    from muster.fleet import places, state
    from muster.fleet.durations import parse_duration

    found = state.status_of(places.chosen(name or fleet, store), parse_duration(timeout, "--timeout"))
    if as_json:
        print_json(found)
    else:
        sys.stdout.write("\n".join(_lines(found, everybody)) + "\n")
    good = found["state"] not in ("down", "unreachable") and found.get("verdict") != "unhealthy"
    return 0 if good else 1


def _lines(found: dict[str, Any], everybody: bool) -> list[str]:
    lines = [_title(found)]
    lines += [paint(f"  ! {safe(problem)}", "red") for problem in found["problems"]]
    tasks = found.get("tasks")
    if tasks:
        lines.append(
            "tasks: "
            + ", ".join(f"{count:,} {what}" for what, count in tasks.items() if count or what in ("done", "queued"))
        )
    paused = found.get("paused")
    if paused:
        who = "nothing new is assigned" if "*" in paused else f"nothing new is assigned to {', '.join(paused)}"
        lines.append(paint(f"paused: {who}; `muster resume` goes on", "yellow"))
    refused = [(found.get("counters") or {}).get(f"{how}_refused", 0) for how in ("stale", "forged")]
    if any(refused):
        lines.append(f"results refused: {refused[0]:,} stale, {refused[1]:,} forged")
    for name, values in (found.get("latency_ms") or {}).items():
        if not values:
            continue
        lines.append(
            f"{name.replace('_', ' ')}: " + ", ".join(f"{key} {value:.1f} ms" for key, value in values.items())
        )
    if found.get("held_back"):
        lines.append(paint(f"nothing new begins: {safe(found['held_back'])}", "yellow"))
    lines += [_account(account) for account in found.get("spent") or []]
    lines += [_limit(limit) for limit in found.get("limits") or []]
    lines += _supervision(found.get("supervision") or {})
    teams = found.get("teams") or []
    if teams:
        lines += ["", *columns(TEAM_HEAD, [_team_row(team) for team in teams], colors=COLORS)]
        lines += [f"  {team['team']}: {safe(text)}" for team in teams for text in team["evidence"]]
    agents = found.get("agents") or []
    listed = agents if everybody else _worth_listing(agents)
    if listed:
        lines += ["", *_table(listed)]
    if len(listed) < len(agents):
        lines.append(f"… and {len(agents) - len(listed)} more that are well; --all lists them")
    for agent in listed:
        lines += [f"  {agent['agent']}: {safe(text)}" for text in agent.get("evidence") or []]
    return lines


def _account(told: dict[str, Any]) -> str:
    """What was spent, beside what may be."""
    usd, tokens = f"{told['usd']:.2f} USD", f"{told['tokens']:,} tokens"
    if told["budget_usd"] is not None:
        usd += f" of {told['budget_usd']:.2f}"
    if told["budget_tokens"] is not None:
        tokens += f" of {told['budget_tokens']:,}"
    line = f"spent by {'the fleet' if told['account'] == 'fleet' else safe(told['account'])}: {usd}, {tokens}"
    return paint(f"{line}; the budget is used up, nothing new begins", "yellow") if told["is_over"] else line


def _limit(told: dict[str, Any]) -> str:
    """One limit: what it lets pass, or since when and until when it lets nothing pass."""
    counts = f"{told['in_flight']:,} in flight, {told['waiting']:,} waiting"
    if told["until_unix_s"] is not None:
        since, until = (
            time.strftime("%H:%M:%S", time.localtime(told[f"{when}_unix_s"])) for when in ("since", "until")
        )
        doing = "probing since then" if told["phase"] == "probing" else "paused"
        why = f" ({safe(told['why'])})" if told["why"] else ""
        return paint(f"limit {told['limit']}: {doing}, since {since} until {until}{why}; {counts}", "yellow")
    left = ", ".join(f"{count:,} {meter} at once" for meter, count in told["available"].items())
    return f"limit {told['limit']}: open{f', {left}' if left else ''}; {counts}, {told['granted']:,} granted so far"


def _supervision(told: dict[str, Any]) -> list[str]:
    """Workers that are replaced or set aside, counts that were changed, hooks: a line each, if there is anything to tell."""
    from muster.fleet.durations import format_duration

    words = []
    if told.get("away"):
        words.append(f"{_few(told['away'])} being replaced")
    if told.get("to_recycle"):
        words.append(f"{len(told['to_recycle'])} to be replaced")
    if told.get("recycled"):
        words.append(f"{told['recycled']:,} replaced so far")
    if told.get("retiring"):
        words.append(f"{_few(told['retiring'])} leaving for good")
    if told.get("quarantined"):
        words.append(paint(f"{_few(told['quarantined'])} quarantined", "red"))
    words += [f"{kind} scaled to {count:,}" for kind, count in told.get("scaled", {}).items()]
    lines = [f"workers: {', '.join(words)}"] if words else []
    hooks = [
        paint(f"{name} {run['outcome']}", COLORS.get(run["outcome"], "")) + f" {format_duration(run['ago_s'])} ago"
        for name, run in told.get("hooks", {}).items()
    ]
    return lines + ([f"hooks: {', '.join(hooks)}"] if hooks else [])


def _few(names: list[str]) -> str:
    return ", ".join(map(safe, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _title(found: dict[str, Any]) -> str:
    from muster.fleet.durations import format_duration

    state, verdict = str(found["state"]), str(found.get("verdict", "unknown"))
    title = f"{found['fleet']} is {paint(state, COLORS.get(state, ''))}"
    if verdict != "unknown":
        title += f", {paint(verdict, COLORS.get(verdict, ''))}"
    if "coordinator_pid" in found:
        title += f"; up {format_duration(found['uptime_s'])}, coordinator {found['coordinator_pid']}"
        if found["coordinator_restarts"]:
            title += f" (restarted {found['coordinator_restarts']} times)"
    return title


def _worth_listing(agents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(agents) <= LISTED_MAX:
        return agents
    unwell = [agent for agent in agents if agent["verdict"] not in ("healthy", "unknown") or agent["state"] in COLORS]
    rest = [agent for agent in agents if agent not in unwell]
    return sorted(unwell + rest[: max(0, LISTED_MAX - len(unwell))], key=agents.index)


def _table(agents: list[dict[str, Any]]) -> list[str]:
    rows = [_row(agent) for agent in agents]
    used = [at for at, title in enumerate(HEAD) if title not in OPTIONAL or any(row[at] for row in rows)]
    return columns([HEAD[at] for at in used], [[row[at] for at in used] for row in rows], colors=COLORS)


def _team_row(team: dict[str, Any]) -> tuple[object, ...]:
    agents = f"{team['ready']} of {team['agents']}"
    return (
        team["team"], team["kind"], team["state"], team["verdict"], team["pid"], agents, team["holding"], team["done"],
        team["restarts"],
    )  # fmt: skip


def _row(agent: dict[str, Any]) -> tuple[object, ...]:
    from muster.fleet.durations import format_duration

    age, pss = agent.get("heartbeat_age_s"), agent.get("pss_bytes")
    return (
        agent["agent"],
        agent.get("team"),
        agent["state"],
        agent["verdict"],
        agent["pid"],
        agent["task"],
        agent["done"],
        agent["failed"],
        agent["inbox_depth"],
        agent.get("restarts", max(0, int(agent.get("incarnation") or 1) - 1)),
        None if age is None else format_duration(age),
        None if not pss else f"{pss / (1 << 20):.1f} MB",
    )
