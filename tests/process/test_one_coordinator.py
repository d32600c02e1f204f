"""Of two coordinators that are started at once on one store, one lives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muster.bus.store import add_agent, create_store, write_spec
from muster.core.spec import AgentSpec, FleetSpec

#: The long form is in tests/fleet.
PAIRS = 20


@pytest.mark.timeout(120)
def test_of_two_coordinators_started_at_once_many_times_one_lives_and_the_other_names_it(tmp_path: Path) -> None:
    store = create_store(tmp_path / "fleet")
    write_spec(store, FleetSpec(name="race", store_id="0" * 32, agents=(AgentSpec(name="w", command=("true",)),)))
    for name in ("coordinator", "operator", "w"):
        add_agent(store, name)
    done = subprocess.run(
        [sys.executable, "-m", "tests.process.two_coordinators", str(store), str(PAIRS)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1] * PAIRS, done.stderr
    refusals = [line for line in done.stderr.splitlines() if "a second coordinator was not started" in line]
    assert len(refusals) == PAIRS, done.stderr
    assert all("'race' is coordinated by process " in line for line in refusals)
