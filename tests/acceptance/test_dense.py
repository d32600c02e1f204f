"""Many agents in few processes: each answers the coordinator, each does a task, nothing is lost and nothing is left.

MUSTER_DENSE=10000 (`make dense`) makes it the full size, with 1,250 agents in each of eight workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.agent.status import read_status
from muster.testing import eventually

from .cli_world import World, a_world

AGENTS = int(os.environ.get("MUSTER_DENSE", "1000"))
IN_A_WORKER = max(500, AGENTS // 8)
#: For each step; a machine that is busy elsewhere needs many times what it would need alone.
PATIENCE_S = 30.0 + AGENTS / 50
pytestmark = [pytest.mark.timeout(int(5 * PATIENCE_S)), pytest.mark.slow]

FLEET = f"""
[fleet]
name = "dense"
agents_per_worker = {IN_A_WORKER}

[bus]
agents_max = {AGENTS + 64}
inbox_messages_max = {400 * AGENTS + 100_000}

[agents.cell]
count = {AGENTS}
handler = "hand:work"
"""

HANDLER = """
async def work(task):
    return "done"
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        (one.work / "fleet.toml").write_text(FLEET)
        (one.work / "hand.py").write_text(HANDLER)
        yield one


def status_of(world: World) -> dict[str, Any]:
    """What the coordinator says of the fleet as a whole: a line for each of 10,000 agents does not fit into one message."""
    asked = world.muster(
        "ask", "coordinator", '{"agents": false}', "--json-body", "-t", "fleet.status", "--timeout", "30s"
    )
    assert asked.returncode == 0, asked.stderr
    told: dict[str, Any] = json.loads(asked.stdout)
    return told


def each_did_one(world: World) -> bool:
    pages = (read_status(world.root / "dense", f"cell-{number}") for number in range(1, AGENTS + 1))
    return all(page is not None and page.done == 1 for page in pages)


def test_every_one_of_many_agents_answers_the_coordinator_and_does_a_task_and_none_is_left(world: World) -> None:
    up = world.finish(world.start("up", "-d", "--wait", f"{PATIENCE_S:.0f}s"), timeout_s=2 * PATIENCE_S)
    assert up.returncode == 0, up.stderr
    print(up.stdout.strip())
    workers = [row for row in world.ps() if row["role"] == "worker"]
    assert len(workers) == -(-AGENTS // IN_A_WORKER) <= 8

    def everybody_answered() -> bool:
        counters = status_of(world)["counters"]
        assert counters["pings_lost"] == 0
        return bool(counters["agents_answered"] == AGENTS)

    eventually(everybody_answered, PATIENCE_S, f"all {AGENTS} agents have answered")
    tasks = json.dumps({"tasks": [[number, "x"] for number in range(1, AGENTS + 1)]})
    sent = world.muster("send", "coordinator", "-t", "task.submit", "--json-body", stdin=tasks.encode())
    assert sent.returncode == 0, sent.stderr
    eventually(lambda: status_of(world)["tasks"]["done"] >= AGENTS, PATIENCE_S, f"{AGENTS} tasks are done")
    told = status_of(world)
    assert {key: count for key, count in told["tasks"].items() if count} == {"submitted": AGENTS, "done": AGENTS}
    # A page follows its agent at a short distance.
    eventually(lambda: each_did_one(world), PATIENCE_S, "one task for each agent, on its page")

    down = world.finish(world.start("down"), timeout_s=2 * PATIENCE_S)
    assert down.returncode == 0, down.stderr
    eventually(lambda: not world.marked(), PATIENCE_S, f"no process is left: {world.marked()}")
