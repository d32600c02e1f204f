"""What `muster status` says: the coordinator's word, checked against the kernel; without its word, what pages and kernel say.

Nothing here is hoped: a figure comes from the coordinator's log, a status page of a living owner, or the process table, and
disagreement between them is shown, not resolved in silence.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from muster.agent.status import read_status
from muster.core.names import HOLDER
from muster.core.protocol import FleetStatus, StatusAsk
from muster.errors import MusterError
from muster.fleet import places, processes
from muster.fleet.asking import ask

#: How long the coordinator may take to answer before status goes by pages and kernel alone.
ANSWER_S = 3.0


def status_of(fleet: places.Fleet, answer_s: float = ANSWER_S) -> dict[str, Any]:
    """Everything known about a fleet as plain data. `problems` lists contradictions and silences, in sentences."""
    found: dict[str, Any] = {"fleet": fleet.name, "store": str(fleet.store), "store_id": fleet.store_id, "problems": []}
    table = processes.of_fleet(fleet)
    found["processes"] = table
    if fleet.spawner_pid is None:
        return {**found, "state": "down", "verdict": "unknown", "agents": agents_by_pages(fleet)}
    if table and table[0]["state"] == "silent":
        found["problems"].append(f"the spawner (process {fleet.spawner_pid}) does not answer")
    told, reason = _ask_coordinator(fleet, answer_s)
    pids = {row["name"]: row["pid"] for row in table if row["role"] == "worker"}
    if told is None:
        found["problems"].append(
            f"the coordinator cannot be reached ({reason}); this is what status pages and the kernel say"
        )
        return {**found, "state": "unreachable", "verdict": "unknown", "agents": agents_by_pages(fleet)}
    found.update(msgspec.to_builtins(told))
    found["problems"] += _contradictions(told, pids)
    return found


def _ask_coordinator(fleet: places.Fleet, answer_s: float) -> tuple[FleetStatus | None, str]:
    try:
        return ask(fleet, StatusAsk(), FleetStatus, answer_s), ""
    except MusterError as error:
        return None, error.message
    except OSError as error:
        return None, str(error.strerror)


def agents_by_pages(fleet: places.Fleet) -> list[dict[str, Any]]:
    """What the status pages say of every agent, checked against the process table."""
    agents = []
    for name in sorted(os.listdir(fleet.store / "agents")):
        page = read_status(fleet.store, name)
        if page is None:
            continue
        lives = _lives(page.pid, page.start_time)
        agents.append(
            {
                "agent": name,
                "pid": page.pid,
                "state": page.state if lives else "gone",
                "verdict": page.verdict if lives else "unknown",
                "incarnation": page.incarnation,
                "task": page.task or None,
                "done": page.done,
                "failed": page.failed,
                "inbox_depth": page.inbox_depth,
                "heartbeat_age_s": round(page.heartbeat_age_s(), 3),
                "pss_bytes": page.pss_bytes or None,
                "evidence": [] if lives else [f"process {page.pid} is gone"],
            }
        )
    return agents


def _lives(pid: int, start_time: int) -> bool:
    from muster.supervise.tree import is_gone

    return pid > 0 and not is_gone(pid, start_time)


def _is_held(fleet: places.Fleet, name: str) -> bool:
    from muster.bus.transports.lanes.locks import holder

    return holder(str(fleet.store / "agents" / name / "inbox.lock")) is not None


def _contradictions(told: FleetStatus, pids: dict[str, int | None]) -> list[str]:
    """Where the coordinator's picture and the spawner's list of living workers differ."""
    problems = []
    for agent in told.agents:
        if agent.pid and agent.worker not in pids:
            problems.append(
                f"{agent.agent}: the coordinator knows process {agent.pid}, which the spawner does not list as alive"
            )
        elif agent.pid and pids[agent.worker] not in (None, agent.pid):
            problems.append(
                f"{agent.agent}: the coordinator knows process {agent.pid}, the spawner process {pids[agent.worker]}"
            )
    return problems


def roster_of(fleet: places.Fleet) -> list[dict[str, Any]]:
    """The agents of a fleet that can be written to, with what waits for them."""
    from muster.bus.transports.lanes.peek import inbox_views

    rows = []
    now_ns = time.time_ns()
    for name, inbox in inbox_views(fleet.store).items():
        if name.startswith(HOLDER):
            continue
        page = read_status(fleet.store, name)
        lives = page is not None and _lives(page.pid, page.start_time)
        # A program of its own has no status page; the lock of its inbox says that it is there.
        state = page.state if page is not None and lives else "joined" if _is_held(fleet, name) else "absent"
        oldest_ns = inbox.oldest_created_ns
        age_s = round(max(0, now_ns - oldest_ns) / 1e9, 3) if oldest_ns else None
        rows.append(
            {"agent": name, "state": state, "inbox_depth": inbox.depth, "oldest_age_s": age_s, "dead": inbox.dead}
        )
    return rows
